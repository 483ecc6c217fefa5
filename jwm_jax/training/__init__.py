"""The shared loop, state and optimiser, and one file per training paradigm."""
