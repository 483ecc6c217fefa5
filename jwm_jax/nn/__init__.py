"""Layers that both models share, with logical axis names on every parameter."""
