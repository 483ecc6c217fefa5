"""What is trained: one file per paradigm, and the sources they read."""
