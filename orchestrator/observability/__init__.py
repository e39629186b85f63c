"""Metrics of both planes, logs, traces."""
