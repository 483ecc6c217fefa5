"""Metrics and named protocols. See README.md in this folder."""
