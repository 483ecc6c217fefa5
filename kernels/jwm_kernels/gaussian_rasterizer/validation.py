"""Checks of the arguments of `rasterization` at the Python boundary."""

import jax.numpy as jnp

from jwm_kernels.gaussian_rasterizer.projection import CAMERAS
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


def check_scalars(
    width, height, near_plane, far_plane, radius_clip, eps2d, tile_size, max_alpha, capacity
) -> None:
    """Checks sizes and ranges.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    for name, value in (("width", width), ("height", height), ("tile_size", tile_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1 pixel, got {value}")
    if not 0 <= near_plane < far_plane:
        raise ValueError(
            f"near_plane, far_plane: expected 0 <= near < far, got {near_plane} and {far_plane}"
        )
    for name, value in (("radius_clip", radius_clip), ("eps2d", eps2d)):
        if value < 0:
            raise ValueError(f"{name}: expected a value >= 0, got {value}")
    if not 0 < max_alpha < 1:
        raise ValueError(f"max_alpha: expected a value between 0 and 1, got {max_alpha}")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity: expected at least 1 slot, got {capacity}")


def check_choice(name: str, value: object, choices) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in tuple(choices):
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_modes(render_mode, rasterize_mode, camera_model) -> None:
    """Raises ValueError for a mode that does not exist here."""
    check_choice("render_mode", render_mode, RENDER_MODES)
    check_choice("rasterize_mode", rasterize_mode, RASTERIZE_MODES)
    check_choice("camera_model", camera_model, CAMERAS)


def check_shape(name: str, array, expected: tuple[int, ...]) -> None:
    """Raises ValueError unless `array` has the expected shape."""
    if tuple(array.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {_shown(expected)}, got {tuple(array.shape)}")


def check_floating(**arrays) -> None:
    """Raises ValueError for an array of integers or booleans."""
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating point values, got dtype {array.dtype}")


def _shown(shape):
    return "[" + ", ".join(str(size) for size in shape) + "]"
