"""Third stage: tiles of colours from lists of splats; one custom gradient, one file a backend."""
