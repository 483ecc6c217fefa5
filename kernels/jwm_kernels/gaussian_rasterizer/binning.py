"""Which splats touch which tile, front to back: integer work with static shapes and no gradient.

Images (batch axes times cameras) are folded into one list of tiles, splats into one list of rows
`image * N + gaussian`, so that any number of cameras costs one sort and one blend.

1. Rows are ranked by depth; invisible ones come last.
2. Each row asks for one entry per tile of its bounding box. Entries are laid out in rank order in
   `capacity` static slots; those that do not fit are therefore the farthest, and they are counted.
3. A slot whose splat stays under alpha = 1/255 on every pixel centre of its tile is dropped: the
   minimum of the quadratic form over a rectangle lies inside it or on one of its four edges.
4. One sort of `tile << bits | rank` without payload orders everything. Keys are unique, so the sort
   need not be stable; splats of equal depth keep their order in the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int

from jwm_kernels.gaussian_rasterizer.constants import ALPHA_MIN, LOG_ALPHA_SLACK
from jwm_kernels.gaussian_rasterizer.projection import Projection

Array = jax.Array | np.ndarray

HOST_SORT_SLOTS = 500_000
"""From this many slots on, NumPy's sort on the host beats XLA's on CPU by more than the loss of the
compilation cache (programs with host callbacks are never cached)."""

_INT_MAX = 2**31 - 1
KEY_BITS = 32
"""Width of a sort key that packs tile and rank; both are sorted separately where they need more."""

_NO_KEY = 0xFFFFFFFF


class TileLists(NamedTuple):
    """For each tile of each image, its splats from front to back."""

    rows: Int[Array, "slots"]
    """`image * N + gaussian` of every entry; entries of one tile are consecutive."""
    starts: Int[Array, "images*tiles"]
    """First entry of each tile; tiles run row by row, image after image."""
    counts: Int[Array, "images*tiles"]
    """Number of entries of each tile."""
    tiles_per_gauss: Int[Array, "*batch c n"]
    """Tiles in the bounding box of each splat."""
    isect_total: Int[Array, "*batch c"]
    """Entries each image asked for (sum of tiles_per_gauss)."""
    overflow: Int[Array, ""]
    """Entries that did not fit into the capacity, the farthest of all images; 0 if complete."""


def grid_shape(width: int, height: int, tile_size: int) -> tuple[int, int]:
    """Number of tiles (across, down) of an image."""
    return -(-width // tile_size), -(-height // tile_size)


def default_capacity(images: int, gaussians: int, tiles: int, tile_size: int) -> int:
    """Slots for splats of a few pixels: measured were 7.4 tiles a splat at 8 px, 3.3 at 16."""
    factor = 9 if tile_size <= 8 else 5
    wanted = images * (factor * gaussians + 8 * tiles)
    return max(1, min(images * gaussians * tiles, -(-wanted // 1024) * 1024))


def count_tiles(
    projection: Projection, width: int, height: int, tile_size: int
) -> Int[Array, "*batch c n"]:
    """Tiles in the bounding box of each splat, 0 where invisible."""
    return _tile_box(projection, width, height, tile_size)[1]


def bin_tiles(
    projection: Projection,
    width: int,
    height: int,
    *,
    tile_size: int,
    capacity: int,
    host_sort: bool | None = None,
) -> TileLists:
    """Lists the splats of each tile from front to back.

    Args:
      projection: splats on the screen, axes [*batch, C, N].
      width: image width in pixels.
      height: image height in pixels.
      tile_size: side of a tile in pixels.
      capacity: number of slots, static, for all images together.
      host_sort: sorts with NumPy through a callback. Default: on CPU with a single device and at
        least `HOST_SORT_SLOTS` slots. A program with a callback cannot be exported: pass False.

    Returns:
      `TileLists`.
    """
    projection = lax.stop_gradient(projection)
    images = int(np.prod(projection.depths.shape[:-1]))
    gaussians = projection.depths.shape[-1]
    rows = images * gaussians
    tiles_x, tiles_y = grid_shape(width, height, tile_size)
    tiles = tiles_x * tiles_y
    if host_sort is None:
        single_cpu = jax.default_backend() == "cpu" and jax.local_device_count() == 1
        host_sort = single_cpu and capacity >= HOST_SORT_SLOTS

    box, per_splat = _tile_box(projection, width, height, tile_size)
    order = _depth_order(
        jnp.where(projection.visible, projection.depths, jnp.inf).reshape(rows), host_sort
    )
    count = per_splat.reshape(rows)[order]
    end = jnp.cumsum(count, dtype=jnp.int32)
    start = end - count
    too_many = jnp.cumsum(count.astype(jnp.float32)) > 2.0**30  # where int32 could wrap round
    start = jnp.where(too_many, capacity, start)
    total = jnp.where(too_many[-1], _INT_MAX, end[-1])

    slot = jnp.arange(capacity, dtype=jnp.int32)
    marks = jnp.zeros((capacity + 1,), jnp.int32).at[jnp.minimum(start, capacity)].add(1)
    rank = jnp.cumsum(marks[:capacity], dtype=jnp.int32) - 1
    row = order[rank]
    first_x, first_y, across = jnp.moveaxis(box.reshape(rows, 3)[row], -1, 0)
    inside = slot - start[rank]
    across = jnp.maximum(across, 1)
    tile_x, tile_y = first_x + inside % across, first_y + inside // across
    keep = (slot < total) & _reaches(_shapes(projection)[row], tile_x, tile_y, tile_size)
    tile = (row // gaussians) * tiles + tile_y * tiles_x + tile_x

    sorted_rank, starts, counts = _sort_by_tile(tile, rank, keep, images * tiles, rows, host_sort)
    per_image = jnp.sum(per_splat, -1, dtype=jnp.int32)
    wraps = jnp.sum(per_splat.astype(jnp.float32), -1) > 2.0**30
    return TileLists(
        rows=order[sorted_rank],
        starts=starts,
        counts=counts,
        tiles_per_gauss=per_splat,
        isect_total=jnp.where(wraps, _INT_MAX, per_image),
        overflow=jnp.maximum(total - capacity, 0),
    )


def _tile_box(projection, width, height, tile_size):
    tiles_x, tiles_y = grid_shape(width, height, tile_size)
    limit = np.array([tiles_x, tiles_y])
    low = jnp.floor((projection.means2d - projection.extents) / tile_size)
    high = jnp.floor((projection.means2d + projection.extents) / tile_size) + 1
    low = jnp.clip(low, 0, limit).astype(jnp.int32)
    high = jnp.clip(high, 0, limit).astype(jnp.int32)
    size = high - low
    per_splat = jnp.where(projection.visible, size[..., 0] * size[..., 1], 0)
    return jnp.concatenate([low, size[..., :1]], -1), per_splat


def _shapes(projection):
    """[R, 7] what `_reaches` needs of each row: mean, s, 1/(2 xx), xx/(2 det), xy/yy, ln(255 o).

    One packed array keeps XLA from recomputing the projection for every slot that gathers from it.
    """
    xx, xy, yy = (projection.covars2d[..., k] for k in range(3))
    columns = [
        projection.means2d[..., 0],
        projection.means2d[..., 1],
        -xy / xx,
        0.5 / xx,
        0.5 * xx / projection.dets,
        xy / yy,
        jnp.log(jnp.maximum(projection.opacities / ALPHA_MIN, 1.0)) + LOG_ALPHA_SLACK,
    ]
    return jnp.stack(columns, -1).reshape(-1, len(columns))


def _reaches(shapes, tile_x, tile_y, tile_size):
    """Whether a splat's alpha gets to 1/255 anywhere among the pixel centres of a tile.

    The quadratic form is taken as x^2 / xx + (y + s x)^2 xx / det with s = -xy / xx, all over 2.
    """
    mean_x, mean_y, slope, weight_x, weight_y, best_x, reach = (shapes[:, k] for k in range(7))
    left = tile_x * tile_size + 0.5 - mean_x
    top = tile_y * tile_size + 0.5 - mean_y
    right, bottom = left + (tile_size - 1), top + (tile_size - 1)

    def along_column(x):
        offset = slope * x
        nearest = jnp.clip(0.0, top + offset, bottom + offset)
        return weight_x * x * x + weight_y * nearest * nearest

    def along_row(y):
        x = jnp.clip(best_x * y, left, right)
        distance = y + slope * x
        return weight_x * x * x + weight_y * distance * distance

    least = jnp.minimum(
        jnp.minimum(along_column(left), along_column(right)),
        jnp.minimum(along_row(top), along_row(bottom)),
    )
    contains_mean = (left <= 0) & (right >= 0) & (top <= 0) & (bottom >= 0)
    return contains_mean | (least <= reach)


def _depth_order(depths, host_sort):
    """Stable argsort of positive depths: their bit patterns sort as unsigned integers."""
    bits = lax.bitcast_convert_type(
        depths, jnp.uint32 if depths.dtype == jnp.float32 else jnp.uint64
    )
    if host_sort:

        def argsort(keys):
            return np.argsort(np.asarray(keys), -1, kind="stable").astype(np.int32)

        shape = jax.ShapeDtypeStruct(depths.shape, jnp.int32)
        return jax.pure_callback(argsort, shape, bits, vmap_method="broadcast_all")
    index = lax.iota(jnp.int32, depths.shape[0])
    return lax.sort((bits, index), num_keys=1, is_stable=True)[1]


def _sort_by_tile(tile, rank, keep, tiles, rows, host_sort):
    """Ranks in order of (tile, rank), first entry and number of entries of each tile."""
    bits = max(1, (rows - 1).bit_length())
    bounds = jnp.arange(tiles + 1, dtype=jnp.uint32)
    if tiles << bits >= 2**KEY_BITS:
        tile = jnp.where(keep, tile, tiles).astype(jnp.uint32)
        tile, rank = lax.sort((tile, rank), num_keys=2, is_stable=False)
        edges = jnp.searchsorted(tile, bounds)
    else:
        key = tile.astype(jnp.uint32) << bits | rank.astype(jnp.uint32)
        key = jnp.where(keep, key, jnp.uint32(_NO_KEY))
        if host_sort:

            def sort(keys):
                return np.sort(np.asarray(keys), -1)

            shape = jax.ShapeDtypeStruct(key.shape, jnp.uint32)
            key = jax.pure_callback(sort, shape, key, vmap_method="broadcast_all")
        else:
            key = lax.sort(key, is_stable=False)
        rank = jnp.minimum((key & jnp.uint32((1 << bits) - 1)).astype(jnp.int32), rows - 1)
        edges = jnp.searchsorted(key, bounds << bits)
    edges = edges.astype(jnp.int32)
    return rank, edges[:-1], edges[1:] - edges[:-1]
