"""Accelerator kernels of jwm_jax, usable on their own: a Gaussian rasterizer for JAX."""

from jwm_kernels.gaussian_rasterizer import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    Projection,
    RollingShutterType,
    TileLists,
    UnscentedTransformParameters,
    bin_tiles,
    blend,
    check_overflow,
    project,
    quat_scale_to_covar,
    rasterization,
    render_ids,
    spherical_harmonics,
    suggest_capacity,
)

__all__ = [
    "Distortion",
    "FThetaCameraDistortionParameters",
    "FThetaPolynomialType",
    "Projection",
    "RollingShutterType",
    "TileLists",
    "UnscentedTransformParameters",
    "bin_tiles",
    "blend",
    "check_overflow",
    "project",
    "quat_scale_to_covar",
    "rasterization",
    "render_ids",
    "spherical_harmonics",
    "suggest_capacity",
]
