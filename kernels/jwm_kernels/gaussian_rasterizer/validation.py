"""Checks of the arguments of `rasterization` at the Python boundary."""

import numbers

import jax.numpy as jnp

from jwm_kernels.gaussian_rasterizer.camera_types import RollingShutterType
from jwm_kernels.gaussian_rasterizer.ewa import needs_unscented
from jwm_kernels.gaussian_rasterizer.lenses import LENSES
from jwm_kernels.gaussian_rasterizer.spherical_harmonics import MAX_DEGREE

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")


def check_splats(means, quats, scales, opacities, viewmats, Ks) -> tuple[tuple[int, ...], int, int]:
    """Checks the shapes that all stages share.

    Returns:
      batch shape, number of Gaussians N, number of cameras C.

    Raises:
      ValueError: names the argument, the expected and the given shape.
    """
    if means.ndim < 2 or means.shape[-1] != 3:
        raise ValueError(f"means: expected shape [*batch, N, 3], got {tuple(means.shape)}")
    *batch, n, _ = means.shape
    batch = tuple(batch)
    if viewmats.ndim != len(batch) + 3:
        raise ValueError(
            f"viewmats: expected shape {_shown((*batch, 'C', 4, 4))}, got {tuple(viewmats.shape)}"
        )
    cameras = viewmats.shape[-3]
    for name, array, expected in (
        ("quats", quats, (*batch, n, 4)),
        ("scales", scales, (*batch, n, 3)),
        ("opacities", opacities, (*batch, n)),
        ("viewmats", viewmats, (*batch, cameras, 4, 4)),
        ("Ks", Ks, (*batch, cameras, 3, 3)),
    ):
        check_shape(name, array, expected)
    if cameras < 1:
        raise ValueError(f"viewmats: expected at least one camera, got {tuple(viewmats.shape)}")
    return batch, n, cameras


def check_colors(colors, sh_degree, batch, n, cameras) -> None:
    """Checks colours [*batch, N, D], [*batch, C, N, D], or SH [*batch, (C,) N, K, 3].

    Raises:
      ValueError: names the expected and the given shape.
    """
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
    if sh_degree is None:
        return
    if not 0 <= sh_degree <= MAX_DEGREE:
        raise ValueError(f"sh_degree: expected 0 to {MAX_DEGREE}, got {sh_degree}")
    if given[-2] < (sh_degree + 1) ** 2:
        raise ValueError(
            f"colors: sh_degree {sh_degree} needs at least {(sh_degree + 1) ** 2} coefficients "
            f"per Gaussian, got shape {given}"
        )


def check_sizes(**sizes) -> None:
    """Raises ValueError unless every size is a whole number of at least 1."""
    for name, value in sizes.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def check_limits(
    near_plane=0.0, far_plane=1.0, radius_clip=0.0, eps2d=0.0, max_alpha=0.5, capacity=None
) -> None:
    """Checks the ranges of numbers.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    if not 0 <= near_plane < far_plane:
        raise ValueError(
            f"near_plane, far_plane: expected 0 <= near < far, got {near_plane} and {far_plane}"
        )
    for name, value in (("radius_clip", radius_clip), ("eps2d", eps2d)):
        if not value >= 0:
            raise ValueError(f"{name}: expected a value >= 0, got {value}")
    if not 0 < max_alpha < 1:
        raise ValueError(f"max_alpha: expected a value between 0 and 1, got {max_alpha}")
    if capacity is not None:
        check_sizes(capacity=capacity)


def check_camera(
    camera_model, distortion, rolling_shutter, viewmats_rs, with_ut, cameras: tuple[int, ...]
) -> None:
    """Checks that lens, shutter and method of projection fit the camera model.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    check_choice("camera_model", camera_model, LENSES)
    if not isinstance(rolling_shutter, RollingShutterType):
        raise ValueError(f"rolling_shutter: expected a RollingShutterType, got {rolling_shutter!r}")
    moving = rolling_shutter is not RollingShutterType.GLOBAL
    if moving != (viewmats_rs is not None):
        raise ValueError(
            "viewmats_rs: expected camera poses at the end of the frame exactly where there is a "
            f"rolling shutter, got {_described(viewmats_rs)} with {rolling_shutter}"
        )
    if moving:
        check_shape("viewmats_rs", viewmats_rs, (*cameras, 4, 4))
    _check_distortion(camera_model, distortion, cameras)
    if with_ut is False and needs_unscented(camera_model, distortion, rolling_shutter):
        raise ValueError(
            "with_ut: expected True or None, since only the unscented transform projects f-theta, "
            "distorted and rolling-shutter cameras, got False"
        )


LENS_SIZES = {
    "pinhole": {"radial_coeffs": (4, 6), "tangential_coeffs": (2,), "thin_prism_coeffs": (4,)},
    "ortho": {},
    "fisheye": {"radial_coeffs": (4,)},
    "ftheta": {},
}
"""camera_model -> coefficients that it takes and how many there may be for each camera."""


def _check_distortion(camera_model, distortion, cameras):
    if distortion is None:
        given = {}
    elif hasattr(distortion, "_asdict"):
        given = {name: part for name, part in distortion._asdict().items() if part is not None}
    else:
        raise ValueError(f"distortion: expected a Distortion, got {type(distortion).__name__}")
    ftheta = given.pop("ftheta_coeffs", None)
    if (camera_model == "ftheta") != (ftheta is not None):
        raise ValueError(
            "distortion.ftheta_coeffs: expected exactly for camera_model 'ftheta', got "
            f"{'none' if ftheta is None else 'some'} for {camera_model!r}"
        )
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
        check_floating(means2d_probe=means2d_probe)
        check_shape("means2d_probe", means2d_probe, shape)


def check_shape(name: str, array, expected: tuple[int, ...]) -> None:
    """Raises ValueError unless `array` has the expected shape."""
    if tuple(array.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {_shown(expected)}, got {tuple(array.shape)}")


def check_floating(**arrays) -> None:
    """Raises ValueError for what is not an array of floating point values; None is left alone."""
    for name, array in arrays.items():
        if array is None:
            continue
        if not (hasattr(array, "dtype") and hasattr(array, "shape")):
            raise ValueError(f"{name}: expected an array, got {type(array).__name__}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating point values, got dtype {array.dtype}")


def _described(array):
    return "None" if array is None else f"shape {tuple(array.shape)}"


def _shown(shape):
    return "[" + ", ".join(str(size) for size in shape) + "]"
