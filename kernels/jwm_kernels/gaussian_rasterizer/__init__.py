"""Gaussian rasterizer: 3D Gaussians to images, differentiable, on CPU, GPU and TPU."""

from jwm_kernels.gaussian_rasterizer.api import blend, rasterization
from jwm_kernels.gaussian_rasterizer.binning.tile_lists import TileLists, bin_tiles, count_tiles
from jwm_kernels.gaussian_rasterizer.capacity import (
    check_overflow,
    default_tile_size,
    is_traced,
    rounded_capacity,
    suggest_capacity,
)
from jwm_kernels.gaussian_rasterizer.contributors import render_ids
from jwm_kernels.gaussian_rasterizer.projection.camera_types import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    RollingShutterType,
    UnscentedTransformParameters,
)
from jwm_kernels.gaussian_rasterizer.projection.project import (
    Projection,
    project,
    quat_scale_to_covar,
)
from jwm_kernels.gaussian_rasterizer.projection.spherical_harmonics import spherical_harmonics
from jwm_kernels.gaussian_rasterizer.sharding import CameraSharding, SplatSharding

__all__ = [
    "CameraSharding",
    "Distortion",
    "FThetaCameraDistortionParameters",
    "FThetaPolynomialType",
    "Projection",
    "RollingShutterType",
    "SplatSharding",
    "TileLists",
    "UnscentedTransformParameters",
    "bin_tiles",
    "blend",
    "check_overflow",
    "count_tiles",
    "default_tile_size",
    "is_traced",
    "project",
    "quat_scale_to_covar",
    "rasterization",
    "render_ids",
    "rounded_capacity",
    "spherical_harmonics",
    "suggest_capacity",
]
