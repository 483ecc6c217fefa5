"""Checks of the arguments of the public functions at the Python boundary.

Every check raises a ValueError that names the argument, what was expected and what came.
"""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from jwm_kernels.gaussian_rasterizer.projection.camera_types import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    RollingShutterType,
    UnscentedTransformParameters,
)
from jwm_kernels.gaussian_rasterizer.projection.ewa import needs_unscented
from jwm_kernels.gaussian_rasterizer.projection.lenses import LENSES

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")

MAX_SH_DEGREE = 4
"""Highest degree of spherical harmonics."""

MAX_TILE = 1024
"""Longest side of a tile in pixels."""

LENS_SIZES = {
    "pinhole": {"radial_coeffs": (4, 6), "tangential_coeffs": (2,), "thin_prism_coeffs": (4,)},
    "ortho": {},
    "fisheye": {"radial_coeffs": (4,)},
    "ftheta": {},
}
"""camera_model -> coefficients that it takes and how many there may be for each camera."""

FTHETA_SHAPES = {
    "pixeldist_to_angle_poly": (6,),
    "angle_to_pixeldist_poly": (6,),
    "max_angle": (),
    "linear_cde": (3,),
}
"""Numbers of an f-theta lens and their shapes, which the axes of the cameras may precede."""


def check_splats(
    means, quats, scales, opacities, viewmats, Ks, covars=None
) -> tuple[tuple[int, ...], int, int]:
    """Checks the arrays that all stages share.

    Quats and scales may be anything where there are covars.

    Returns:
      batch shape, number of Gaussians N, number of cameras C.

    Raises:
      ValueError: one is not an array of floating point values or has another shape.
    """
    shape = {} if covars is not None else {"quats": quats, "scales": scales}
    check_floating(means=means, **shape, opacities=opacities, viewmats=viewmats, Ks=Ks)
    if means.ndim < 2 or means.shape[-1] != 3:
        raise ValueError(f"means: expected shape [*batch, N, 3], got {tuple(means.shape)}")
    *batch, n, _ = means.shape
    batch = tuple(batch)
    if viewmats.ndim != len(batch) + 3:
        raise ValueError(
            f"viewmats: expected shape {_shown((*batch, 'C', 4, 4))}, got {tuple(viewmats.shape)}"
        )
    cameras = viewmats.shape[-3]
    if covars is None:
        check_shape("quats", quats, (*batch, n, 4))
        check_shape("scales", scales, (*batch, n, 3))
    else:
        check_array("covars", covars, (*batch, n, 3, 3))
    check_shape("opacities", opacities, (*batch, n))
    check_shape("viewmats", viewmats, (*batch, cameras, 4, 4))
    check_shape("Ks", Ks, (*batch, cameras, 3, 3))
    if cameras < 1:
        raise ValueError(f"viewmats: expected at least one camera, got {tuple(viewmats.shape)}")
    if 0 in batch:
        raise ValueError(f"means: expected batch axes of at least 1, got {tuple(means.shape)}")
    return batch, n, cameras


def check_colors(colors, sh_degree, batch, n, cameras) -> None:
    """Checks colours [*batch, N, D], [*batch, C, N, D], or SH [*batch, (C,) N, K, 3].

    Raises:
      ValueError: they are not such an array, or the degree does not exist.
    """
    check_floating(colors=colors)
    given = tuple(colors.shape)
    tail = 1 if sh_degree is None else 2
    per_splat, per_camera = (*batch, n), (*batch, cameras, n)
    if len(given) < tail or given[: len(given) - tail] not in (per_splat, per_camera):
        last = ("D",) if sh_degree is None else ("K", 3)
        raise ValueError(
            f"colors: expected shape {_shown((*per_splat, *last))} or "
            f"{_shown((*per_camera, *last))}{'' if sh_degree is None else ' with sh_degree set'}, "
            f"got {given}"
        )
    if sh_degree is not None:
        check_harmonics("sh_degree", sh_degree, "colors", colors)
    if given[-1] < 1 or (sh_degree is not None and given[-1] != 3):
        expected = "at least one channel" if sh_degree is None else "3 channels with sh_degree set"
        raise ValueError(f"colors: expected {expected}, got shape {given}")


def check_harmonics(degree_name: str, degree, coeffs_name: str, coeffs) -> None:
    """Raises ValueError unless coefficients [..., K, D] suffice for a degree that exists."""
    if not _is_whole(degree) or not 0 <= degree <= MAX_SH_DEGREE:
        raise ValueError(
            f"{degree_name}: expected a whole number from 0 to {MAX_SH_DEGREE}, got {degree!r}"
        )
    if coeffs.ndim < 2:
        raise ValueError(f"{coeffs_name}: expected shape [..., K, D], got {tuple(coeffs.shape)}")
    needed = (degree + 1) ** 2
    if coeffs.shape[-2] < needed:
        raise ValueError(
            f"{coeffs_name}: {degree_name} {degree} needs at least {needed} coefficients, "
            f"got shape {tuple(coeffs.shape)}"
        )


def check_sizes(**sizes) -> None:
    """Raises ValueError unless every size is a whole number of at least 1."""
    for name, value in sizes.items():
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def check_capacity(capacity) -> None:
    """Raises ValueError unless a number of slots is at least 1 and an int32."""
    check_sizes(capacity=capacity)
    if capacity >= 2**31:
        raise ValueError(f"capacity: expected fewer than 2^31 slots, got {capacity}")


def check_tile_size(tile_size) -> None:
    """Raises ValueError unless a tile has at least one pixel, and sides of at most `MAX_TILE`."""
    check_sizes(tile_size=tile_size)
    if tile_size > MAX_TILE:
        raise ValueError(f"tile_size: expected at most {MAX_TILE} pixels, got {tile_size}")


def check_number(name: str, value) -> None:
    """Raises ValueError for what is not one number that is known while tracing."""
    try:
        float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected a number, known outside jax.jit, got {type(value).__name__}"
        ) from None


def check_flag(name: str, value) -> None:
    """Raises ValueError unless `value` is True, False or None."""
    if not isinstance(value, bool | int | np.bool_ | None) or value not in (True, False, None):
        raise ValueError(f"{name}: expected True, False or None, got {value!r}")


def check_limits(
    near_plane=0.0,
    far_plane=1.0,
    radius_clip=0.0,
    eps2d=0.0,
    max_alpha=0.5,
    margin=1.0,
    capacity=None,
) -> None:
    """Checks the ranges of numbers.

    Raises:
      ValueError: one is out of its range.
    """
    limits = dict(
        near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d,
        max_alpha=max_alpha, margin=margin,
    )  # fmt: skip
    for name, value in limits.items():
        check_number(name, value)
    if not 0 <= near_plane < far_plane:
        raise ValueError(
            f"near_plane, far_plane: expected 0 <= near < far, got {near_plane} and {far_plane}"
        )
    for name, value in (("radius_clip", radius_clip), ("eps2d", eps2d)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a finite value >= 0, got {value}")
    if not 0 < max_alpha < 1:
        raise ValueError(f"max_alpha: expected a value between 0 and 1, got {max_alpha}")
    if not 0 < margin < math.inf:
        raise ValueError(f"margin: expected a finite value > 0, got {margin}")
    if capacity is not None:
        check_capacity(capacity)


def check_camera(
    camera_model,
    distortion,
    rolling_shutter,
    viewmats_rs,
    with_ut,
    ut_params,
    covars,
    cameras: tuple[int, ...],
) -> None:
    """Checks that lens, shutter and method of projection fit the camera model.

    Raises:
      ValueError: one does not.
    """
    check_choice("camera_model", camera_model, LENSES)
    check_type("rolling_shutter", rolling_shutter, RollingShutterType)
    check_flag("with_ut", with_ut)
    moving = rolling_shutter is not RollingShutterType.GLOBAL
    if moving != (viewmats_rs is not None):
        raise ValueError(
            "viewmats_rs: expected camera poses at the end of the frame exactly where there is a "
            f"rolling shutter, got {_described(viewmats_rs)} with {rolling_shutter}"
        )
    if moving:
        check_array("viewmats_rs", viewmats_rs, (*cameras, 4, 4))
    _check_distortion(camera_model, distortion, cameras)
    if ut_params is not None:
        check_type("ut_params", ut_params, UnscentedTransformParameters)
    unscented = needs_unscented(camera_model, distortion, rolling_shutter)
    if with_ut is False and unscented:
        raise ValueError(
            "with_ut: expected True or None, since only the unscented transform projects f-theta, "
            "distorted and rolling-shutter cameras, got False"
        )
    if covars is not None and (with_ut or unscented):
        raise ValueError(
            "covars: expected None, since the unscented transform (with_ut, f-theta, distortion, "
            "rolling shutter) needs quats and scales, got covariances"
        )


def _check_distortion(camera_model, distortion, cameras):
    if distortion is not None:
        check_type("distortion", distortion, Distortion)
    given = {} if distortion is None else distortion._asdict()
    given = {name: part for name, part in given.items() if part is not None}
    ftheta = given.pop("ftheta_coeffs", None)
    if (camera_model == "ftheta") != (ftheta is not None):
        raise ValueError(
            "distortion.ftheta_coeffs: expected exactly for camera_model 'ftheta', got "
            f"{'none' if ftheta is None else 'some'} for {camera_model!r}"
        )
    if ftheta is not None:
        _check_ftheta(ftheta, cameras)
    for name, part in given.items():
        sizes = LENS_SIZES[camera_model].get(name)
        if sizes is None:
            raise ValueError(
                f"distortion.{name}: expected None for camera_model {camera_model!r}, "
                f"got {_described(part)}"
            )
        check_floating(**{f"distortion.{name}": part})
        if tuple(part.shape) not in [(*cameras, size) for size in sizes]:
            expected = _shown((*cameras, " or ".join(map(str, sizes))))
            raise ValueError(
                f"distortion.{name}: expected shape {expected}, got {tuple(part.shape)}"
            )


def _check_ftheta(ftheta, cameras):
    name = "distortion.ftheta_coeffs"
    check_type(name, ftheta, FThetaCameraDistortionParameters)
    check_type(f"{name}.reference_poly", ftheta.reference_poly, FThetaPolynomialType)
    for part, shape in FTHETA_SHAPES.items():
        value = getattr(ftheta, part)
        try:
            given = jax.eval_shape(jnp.asarray, value)
        except (TypeError, ValueError):
            given = None
        real = given is not None and any(
            jnp.issubdtype(given.dtype, kind) for kind in (jnp.floating, jnp.integer)
        )
        if not real or given.shape not in (shape, (*cameras, *shape)):
            raise ValueError(
                f"{name}.{part}: expected numbers of shape {_shown(shape)} or "
                f"{_shown((*cameras, *shape))}, got {value!r}"
            )


def check_type(name: str, value: object, kind: type) -> None:
    """Raises ValueError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")


def check_choice(name: str, value: object, choices) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in tuple(choices):
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_modes(render_mode, rasterize_mode) -> None:
    """Raises ValueError for a mode that does not exist here."""
    check_choice("render_mode", render_mode, RENDER_MODES)
    check_choice("rasterize_mode", rasterize_mode, RASTERIZE_MODES)


def check_probe(absgrad, means2d_probe, shape: tuple[int, ...]) -> None:
    """Raises ValueError where absolute gradients have nowhere to go, or the probe does not fit."""
    if absgrad and means2d_probe is None:
        raise ValueError(
            f"means2d_probe: expected zeros of shape {_shown(shape)}, whose gradient absgrad "
            "sets, got None"
        )
    if means2d_probe is not None:
        check_array("means2d_probe", means2d_probe, shape)


def check_multiple(name: str, value: int, factor: int, axis: str) -> None:
    """Raises ValueError unless a number of things can be dealt out over a mesh axis."""
    if value < 1 or value % factor:
        raise ValueError(
            f"{name}: expected a positive multiple of {factor}, the size of mesh axis {axis!r}, "
            f"got {value}"
        )


def check_array(name: str, array, expected: tuple[int, ...]) -> None:
    """Raises ValueError unless `array` holds floating point values in the expected shape."""
    check_floating(**{name: array})
    check_shape(name, array, expected)


def check_shape(name: str, array, expected: tuple[int, ...]) -> None:
    """Raises ValueError unless `array` has the expected shape."""
    if not hasattr(array, "shape") or tuple(array.shape) != tuple(expected):
        given = tuple(array.shape) if hasattr(array, "shape") else type(array).__name__
        raise ValueError(f"{name}: expected shape {_shown(expected)}, got {given}")


def check_floating(**arrays) -> None:
    """Raises ValueError for what is not an array of floating point values."""
    for name, array in arrays.items():
        if not (hasattr(array, "dtype") and hasattr(array, "shape")):
            raise ValueError(f"{name}: expected an array, got {type(array).__name__}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating point values, got dtype {array.dtype}")


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _described(array):
    if array is None:
        return "None"
    return f"shape {tuple(array.shape)}" if hasattr(array, "shape") else type(array).__name__


def _shown(shape):
    return "[" + ", ".join(str(size) for size in shape) + "]"
