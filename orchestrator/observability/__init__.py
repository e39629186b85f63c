"""Metrics (one file, all series) and logs."""
