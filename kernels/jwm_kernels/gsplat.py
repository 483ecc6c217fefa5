"""`rasterization` with all of gsplat's keywords, so that code written for it changes an import:

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


def rasterization(
    *arguments,
    packed: bool = True,
    sparse_grad: bool = False,
    channel_chunk: int = 32,
    segmented: bool = False,
    distributed: bool = False,
    with_eval3d: bool = False,
    covars: Float[Array, "..."] | None = None,
    radial_coeffs: Float[Array, "..."] | None = None,
    tangential_coeffs: Float[Array, "..."] | None = None,
    thin_prism_coeffs: Float[Array, "..."] | None = None,
    ftheta_coeffs: FThetaCameraDistortionParameters | None = None,
    **options,
) -> tuple[Float[Array, "*batch c h w x"], Float[Array, "*batch c h w 1"], dict]:
    """Calls `jwm_kernels.rasterization`.

    Args:
      *arguments: as there.
      packed: without effect, and so `sparse_grad`, `channel_chunk`, `segmented`: they choose memory
        layouts inside gsplat that leave its results alone.
      sparse_grad: without effect.
      channel_chunk: without effect.
      segmented: without effect.
      distributed: must be False; shard the cameras with `jax.shard_map` instead.
      with_eval3d: must be False; splats are evaluated in the image plane.
      covars: must be None; pass quats and scales.
      radial_coeffs: fields of `Distortion`, and so the next three.
      tangential_coeffs: see there.
      thin_prism_coeffs: see there.
      ftheta_coeffs: see there.
      **options: as there.

    Returns:
      as there.

    Raises:
      ValueError: something that is not available here was asked for.
    """
    for name, value in (
        ("distributed", distributed), ("with_eval3d", with_eval3d), ("covars", covars is not None),
    ):  # fmt: skip
        if value:
            raise ValueError(f"{name}: not available here, expected the default")
    lens = Distortion(radial_coeffs, tangential_coeffs, thin_prism_coeffs, ftheta_coeffs)
    if any(part is not None for part in lens):
        options["distortion"] = lens
    return gaussian_rasterizer.rasterization(*arguments, **options)
