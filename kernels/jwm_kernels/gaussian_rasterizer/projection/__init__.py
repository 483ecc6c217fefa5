"""First stage: Gaussians to splats on the screen, differentiable by JAX."""
