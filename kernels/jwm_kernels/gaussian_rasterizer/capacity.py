"""How many (splat, tile) pairs a scene needs, and what to do when they did not fit.

The capacity of the tile lists is static. A call outside `jax.jit` that names none counts first
(`counted_capacity`): what `default_capacity` gives where that is enough, so that most scenes of a
size share one program, else the count rounded up, so that nearby scenes do. Inside `jax.jit`
nothing can be counted: there it is `default_capacity`, and what did not fit is told as `overflow`.
"""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.binning.tile_lists import count_tiles
from jwm_kernels.gaussian_rasterizer.blending.backends import check_backend
from jwm_kernels.gaussian_rasterizer.platforms import target_platform
from jwm_kernels.gaussian_rasterizer.projection.project import Projection, project

Array = jax.Array | np.ndarray


SPLAT_WIDTH = 32.0
"""Side in pixels of the bounding box that `default_capacity` takes splats to have. Those of a
reconstruction of a street have half of it, those of a capture that fills the image three quarters;
under `jax.jit` nobody looks, so there is room for more."""


ROUNDING = 1e-5
"""Relative error of a count that is summed in float32."""


def default_tile_size(backend: str = "auto", mesh: Mesh | None = None) -> int:
    """8 on CPU, where less wasted arithmetic wins; 16 on accelerators, where shorter lists do."""
    return 8 if target_platform(backend, mesh) == "cpu" else 16


def default_capacity(images: int, gaussians: int, tiles: int, tile_size: int) -> int:
    """Slots for splats whose boxes are `SPLAT_WIDTH` pixels wide on average.

    A box of width w lies over (1 + w / t)^2 tiles of side t on average.

    Args:
      images: batch members times cameras.
      gaussians: of each image.
      tiles: of each image.
      tile_size: side of a tile in pixels.

    Returns:
      number of slots for all images together.
    """
    per_splat = (1 + SPLAT_WIDTH / tile_size) ** 2
    wanted = math.ceil(images * (per_splat * gaussians + 8 * tiles))
    return max(1, min(images * gaussians * tiles, -(-wanted // 1024) * 1024))


def is_traced(*trees) -> bool:
    """Whether values are not known: an array is a tracer, or all that is computed here will be one,
    as within `jax.jit` also of arrays that a function closes over."""
    leaves = [*jax.tree.leaves(trees), jnp.add(0, 0)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def counted_capacity(default: int, pairs: int) -> int:
    """Slots for a number of pairs: the default where it is enough, else the count rounded up.

    Args:
      default: what `default_capacity` gives.
      pairs: as counted.

    Returns:
      number of slots.
    """
    return default if pairs <= default else rounded_capacity(pairs)


def rounded_capacity(pairs: int | float | np.number) -> int:
    """A number of pairs rounded up to a power of 2^(1/4), at least 256."""
    return int(np.ceil(2 ** (np.ceil(4 * np.log2(max(256.0, pairs))) / 4)))


def count_pairs(projection: Projection, width: int, height: int, tile_size: int) -> np.ndarray:
    """(splat, tile) pairs of each image of a projection whose values are known, int64."""
    counts = np.asarray(count_tiles(projection, width, height, tile_size))
    return np.sum(counts, axis=-1, dtype=np.int64)


def warn_of_overflow(meta: dict) -> None:
    """A Python warning if a call outside `jax.jit` that named no capacity dropped splats."""
    try:
        check_overflow(meta)
    except ValueError as error:
        warnings.warn(f"rasterization, {error}", RuntimeWarning, stacklevel=3)


def suggest_capacity(
    means: Float[Array, "..."],
    quats: Float[Array, "..."] | None,
    scales: Float[Array, "..."] | None,
    opacities: Float[Array, "..."],
    viewmats: Float[Array, "..."],
    Ks: Float[Array, "..."],
    width: int,
    height: int,
    *,
    tile_size: int | None = None,
    margin: float = 1.25,
    backend: str = "auto",
    **options,
) -> int:
    """Counts the (splat, tile) pairs of a scene and returns a `capacity` that holds them.

    Call it outside `jax.jit`. Results are rounded up to powers of 2^(1/4), so that slightly
    different scenes share one compiled program.

    Args:
      means: as in `rasterization`, and so `quats`, `scales`, `opacities`, `viewmats`, `Ks`,
        `width`, `height`, `tile_size`.
      quats: rotations.
      scales: standard deviations.
      opacities: opacities.
      viewmats: camera from world.
      Ks: intrinsics.
      width: image width in pixels.
      height: image height in pixels.
      tile_size: side of a tile in pixels.
      margin: room for growth, as a factor.
      backend: as in `rasterization`; decides the default tile size.
      **options: of `project`.

    Returns:
      number of slots.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    check_backend(backend)
    tile_size = default_tile_size(backend) if tile_size is None else tile_size
    validation.check_tile_size(tile_size)
    validation.check_limits(margin=margin)
    projection = project(means, quats, scales, opacities, viewmats, Ks, width, height, **options)
    return rounded_capacity(count_pairs(projection, width, height, tile_size).sum() * margin)


def check_overflow(meta: dict) -> None:
    """Makes an overflow of the capacity an error.

    Call it outside `jax.jit` with the `meta` of `rasterization` or `render_ids`; it waits for the
    result. Inside, `meta["overflow"]` is a traced number for `jax.experimental.checkify` or a log.

    Args:
      meta: with `capacity` and `overflow`, of one or (stacked) several calls.

    Raises:
      ValueError: splats were dropped; says how many slots would have held them all. Where the
        slots are shared out to several devices, all of the overflow may be that of one.
    """
    overflow, capacity = int(np.max(meta["overflow"])), int(np.max(meta["capacity"]))
    if overflow > 0:
        enough = capacity + overflow * int(np.max(meta.get("n_devices", 1)))
        raise ValueError(
            f"capacity: expected at least {enough} slots, got "
            f"{capacity}; the farthest splats were dropped (see suggest_capacity)"
        )
