"""Scores in, numbers of the published tables out: plain numpy, no model."""
