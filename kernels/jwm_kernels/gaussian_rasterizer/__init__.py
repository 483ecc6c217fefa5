"""Gaussian rasterizer: 3D Gaussians to images, differentiable, on CPU, GPU and TPU."""

from jwm_kernels.gaussian_rasterizer.api import blend, rasterization, suggest_capacity
from jwm_kernels.gaussian_rasterizer.binning import TileLists, bin_tiles
from jwm_kernels.gaussian_rasterizer.projection import (
    Projection,
    project,
    quat_scale_to_covar,
)
from jwm_kernels.gaussian_rasterizer.spherical_harmonics import spherical_harmonics

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
