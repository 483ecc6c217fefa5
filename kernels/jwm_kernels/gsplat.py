"""`rasterization` with gsplat's parameters in gsplat's order, so that only an import changes:

    from jwm_kernels.gsplat import rasterization  # was: from gsplat import rasterization

Arrays are those of JAX, gradients come from `jax.grad`, and the gradients that gsplat leaves in
`meta["means2d"]` come out of `means2d_probe`, see `jwm_kernels.rasterization`. New code calls that
function.
"""

import jax
import numpy as np
from jaxtyping import Float

from jwm_kernels import gaussian_rasterizer
from jwm_kernels.gaussian_rasterizer import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    RollingShutterType,
    UnscentedTransformParameters,
    spherical_harmonics,
)

__all__ = [
    "FThetaCameraDistortionParameters",
    "FThetaPolynomialType",
    "RollingShutterType",
    "UnscentedTransformParameters",
    "rasterization",
    "spherical_harmonics",
]

Array = jax.Array | np.ndarray

INSTEAD = {
    "distributed": "pass sharding=SplatSharding(mesh, axis)",
    "with_eval3d": "splats are evaluated in the image plane; with_ut projects by any camera",
    "return_normals": "they need with_eval3d",
    "rays": "they need with_eval3d",
    "renderer_config": "it needs with_eval3d",
    "global_z_order": "splats are ordered by z",
    "lidar_coeffs": "there is no lidar",
    "external_distortion_coeffs": "pass the coefficients of a lens",
    "extra_signals": "append them to colors, whose number of channels is free",
    "extra_signals_sh_degree": "evaluate spherical_harmonics and append the values to colors",
}
"""What is not available, and what to do."""


def rasterization(
    means: Float[Array, "..."],
    quats: Float[Array, "..."] | None,
    scales: Float[Array, "..."] | None,
    opacities: Float[Array, "..."],
    colors: Float[Array, "..."] | None,
    viewmats: Float[Array, "..."],
    Ks: Float[Array, "..."],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int | None = None,
    backgrounds: Float[Array, "..."] | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Float[Array, "..."] | None = None,
    with_ut: bool | None = None,
    with_eval3d: bool = False,
    radial_coeffs: Float[Array, "..."] | None = None,
    tangential_coeffs: Float[Array, "..."] | None = None,
    thin_prism_coeffs: Float[Array, "..."] | None = None,
    ftheta_coeffs: FThetaCameraDistortionParameters | None = None,
    rolling_shutter: RollingShutterType = RollingShutterType.GLOBAL,
    viewmats_rs: Float[Array, "..."] | None = None,
    *,
    macro_tile: bool = False,
    global_z_order: bool = True,
    **options,
) -> tuple[Float[Array, "*batch c h w x"], Float[Array, "*batch c h w 1"], dict]:
    """Calls `jwm_kernels.rasterization`.

    Parameters stand in the order of gsplat 1.5. In 1.6 `channel_chunk` is gone and others are new:
    what comes after `rasterize_mode` there has to be named here.

    Args:
      means: as there, and so all that is not mentioned here.
      quats: rotations.
      scales: standard deviations.
      opacities: opacities.
      colors: colours or SH coefficients.
      viewmats: camera from world.
      Ks: intrinsics.
      width: image width in pixels.
      height: image height in pixels.
      near_plane: nearest visible depth.
      far_plane: farthest visible depth.
      radius_clip: drops splats with half-widths of at most this many pixels.
      eps2d: blur added to the screen covariance, px^2.
      sh_degree: degree of the SH colours.
      packed: without effect, and so `sparse_grad`, `channel_chunk`, `segmented`, `macro_tile`: they
        choose memory layouts inside gsplat that leave its results alone.
      tile_size: side of a tile in pixels.
      backgrounds: colour behind everything.
      render_mode: "RGB", "D", "ED", "RGB+D", "RGB+ED".
      sparse_grad: without effect.
      absgrad: gives `means2d_probe`, which it needs, absolute gradients.
      rasterize_mode: "classic" or "antialiased".
      channel_chunk: without effect.
      distributed: must be False, see `INSTEAD`.
      camera_model: "pinhole", "ortho", "fisheye" or "ftheta".
      segmented: without effect.
      covars: covariances in place of quats and scales.
      with_ut: projects by the unscented transform.
      with_eval3d: must be False, see `INSTEAD`.
      radial_coeffs: field of `Distortion`, and so the next three.
      tangential_coeffs: see there.
      thin_prism_coeffs: see there.
      ftheta_coeffs: see there.
      rolling_shutter: order in which the lines of the image are read.
      viewmats_rs: camera from world at the line read last.
      macro_tile: without effect.
      global_z_order: must be True, see `INSTEAD`.
      **options: of `jwm_kernels.rasterization`; what else gsplat has must be None or False.

    Returns:
      as there.

    Raises:
      ValueError: something that is not available here was asked for, or an argument is wrong.
    """
    if isinstance(channel_chunk, bool):
        raise ValueError(
            f"channel_chunk: expected a whole number, got {channel_chunk}; arguments after "
            "rasterize_mode stand in the order of gsplat 1.5, so name them"
        )
    refused = {"distributed": distributed, "with_eval3d": with_eval3d}
    refused["global_z_order"] = not global_z_order
    refused |= {name: options.pop(name) for name in INSTEAD if name in options}
    for name, value in refused.items():
        if value is not None and value is not False:
            raise ValueError(f"{name}: not available here, expected the default; {INSTEAD[name]}")
    lens = Distortion(radial_coeffs, tangential_coeffs, thin_prism_coeffs, ftheta_coeffs)
    if any(part is not None for part in lens):
        options["distortion"] = lens
    return gaussian_rasterizer.rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, covars=covars,
        near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d,
        sh_degree=sh_degree, tile_size=tile_size, backgrounds=backgrounds, render_mode=render_mode,
        rasterize_mode=rasterize_mode, camera_model=camera_model, rolling_shutter=rolling_shutter,
        viewmats_rs=viewmats_rs, with_ut=with_ut, absgrad=absgrad, **options,
    )  # fmt: skip
