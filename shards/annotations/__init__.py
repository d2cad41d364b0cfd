"""Annotation formats that more than one floor reads."""
