"""Checkpoints in, benchmark tables and pictures out."""
