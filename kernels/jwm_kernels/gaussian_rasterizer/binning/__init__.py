"""Second stage: which splats touch which tile, front to back; integers, without gradient."""
