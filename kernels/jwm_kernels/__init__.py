"""Accelerator kernels of jwm_jax, usable on their own: a Gaussian rasterizer for JAX."""

from jwm_kernels.gaussian_rasterizer import (
    Projection,
    TileLists,
    bin_tiles,
    blend,
    project,
    quat_scale_to_covar,
    rasterization,
    spherical_harmonics,
    suggest_capacity,
)

__all__ = [
    "Projection",
    "TileLists",
    "bin_tiles",
    "blend",
    "project",
    "quat_scale_to_covar",
    "rasterization",
    "spherical_harmonics",
    "suggest_capacity",
]
