"""Experiments, one a file: `config()` and a docstring that is its record. See README.md."""
