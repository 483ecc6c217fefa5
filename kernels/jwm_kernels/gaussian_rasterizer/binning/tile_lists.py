"""Which splats touch which tile, front to back: integer work with static shapes and no gradient.

Images (batch axes times cameras) are folded into one list of tiles, splats into one list of rows
`image * N + gaussian`, so that any number of cameras costs one sort and one blend.

1. Rows are ranked by depth; invisible ones come last.
2. Each row asks for one entry per tile of its bounding box. Entries are laid out in rank order in
   `capacity` static slots; those that do not fit are therefore the farthest, and they are counted.
3. A slot whose splat stays under alpha = 1/255 on every pixel centre of its tile is dropped: the
   minimum of the quadratic form over a rectangle lies inside it or on one of its four edges.
4. One sort of `tile << bits | rank` without payload orders everything. Keys are unique, so the sort
   need not be stable; splats of equal depth keep their order in the input. Where 32 bits do not
   hold both, a stable sort by tile does the same, since slots come in order of rank.

Steps 1, 2 and 4 have a second form in NumPy for CPUs; in between, everything is one fused loop over
the slots, which reads its splat's numbers from a table in order of rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.buffer_callback import buffer_callback
from jax.sharding import Mesh
from jaxtyping import Int

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.constants import ALPHA_MIN, LOG_ALPHA_SLACK
from jwm_kernels.gaussian_rasterizer.gaussian_terms import quadratic_columns
from jwm_kernels.gaussian_rasterizer.platforms import target_platform
from jwm_kernels.gaussian_rasterizer.projection.project import Projection, check_projection

Array = jax.Array | np.ndarray

HOST_SORT_SLOTS = 500_000
"""From this many slots on, NumPy's sort on the host beats XLA's on CPU by more than the loss of the
compilation cache (programs with host callbacks are never cached)."""

_INT_MAX = 2**31 - 1

KEY_BITS = 32
"""Width of a sort key that packs tile and rank; where they need more, the rank is a payload."""


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


def default_host_sort(capacity: int, backend: str = "auto", mesh: Mesh | None = None) -> bool:
    """Whether to sort with NumPy: on CPU with one device, from `HOST_SORT_SLOTS` slots on."""
    on_cpu = target_platform(backend, mesh) == "cpu" and jax.local_device_count("cpu") == 1
    return on_cpu and capacity >= HOST_SORT_SLOTS


def count_tiles(
    projection: Projection, width: int, height: int, tile_size: int
) -> Int[Array, "*batch c n"]:
    """Tiles in the bounding box of each splat, 0 where invisible."""
    return _tile_box(projection, width, height, tile_size)[2]


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
      host_sort: sorts with NumPy through a callback; by default `default_host_sort`. A program with
        a callback cannot be exported: pass False.

    Returns:
      `TileLists`.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    *leading, gaussians = check_projection(projection)
    validation.check_sizes(width=width, height=height)
    validation.check_tile_size(tile_size)
    validation.check_capacity(capacity)
    projection = lax.stop_gradient(projection)
    images = int(np.prod(leading))
    rows = images * gaussians
    tiles_x, tiles_y = grid_shape(width, height, tile_size)
    tiles = tiles_x * tiles_y
    if not rows:
        nothing = jnp.zeros(images * tiles, jnp.int32)
        of_each = jnp.zeros(leading, jnp.int32)
        empty = jnp.zeros(capacity, jnp.int32)
        none = jnp.zeros((*leading, gaussians), jnp.int32)
        return TileLists(empty, nothing, nothing, none, of_each, jnp.int32(0))
    if host_sort is None:
        host_sort = default_host_sort(capacity)

    low, across, per_splat = _tile_box(projection, width, height, tile_size)
    depths = jnp.where(projection.visible, projection.depths, jnp.inf).reshape(rows)
    columns = [*_shapes(projection), *jnp.moveaxis(low, -1, 0), across]
    columns = jnp.stack([column.reshape(rows).astype(depths.dtype) for column in columns])
    expand = _expand_on_host if host_sort else _expand
    order, rank, start, total, columns = expand(depths, per_splat.reshape(rows), columns, capacity)

    slot = jnp.arange(capacity, dtype=jnp.int32)
    *shapes, first_x, first_y, across = (column[rank] for column in columns)
    inside = (slot - start[rank]).astype(depths.dtype)
    down = jnp.floor((inside + 0.5) / across)
    tile_x, tile_y = first_x + (inside - down * across), first_y + down
    keep = (slot < total) & _reaches(shapes, tile_x, tile_y, tile_size)
    tile = (tile_y * tiles_x + tile_x).astype(jnp.int32) + (order // gaussians * tiles)[rank]

    tile = jnp.where(keep, tile, images * tiles)
    sort = _sort_by_tile_on_host if host_sort else _sort_by_tile
    sorted_rank, edges = sort(tile, rank, images * tiles, rows)
    per_image = jnp.sum(per_splat, -1, dtype=jnp.int32)
    wraps = jnp.sum(per_splat.astype(jnp.float32), -1) > 2.0**30
    return TileLists(
        rows=order[sorted_rank],
        starts=edges[:-1],
        counts=edges[1:] - edges[:-1],
        tiles_per_gauss=per_splat,
        isect_total=jnp.where(wraps, _INT_MAX, per_image),
        overflow=jnp.maximum(total - capacity, 0),
    )


def _tile_box(projection, width, height, tile_size):
    """First tile [..., 2], tiles across, and tiles in all of each splat's bounding box."""
    limit = np.array(grid_shape(width, height, tile_size))
    low = jnp.floor((projection.means2d - projection.extents) / tile_size)
    high = jnp.floor((projection.means2d + projection.extents) / tile_size) + 1
    low = jnp.clip(low, 0, limit).astype(jnp.int32)
    high = jnp.clip(high, 0, limit).astype(jnp.int32)
    across, down = jnp.moveaxis(high - low, -1, 0)
    per_splat = jnp.where(projection.visible, across * down, 0)
    return low, jnp.maximum(across, 1), per_splat


def _shapes(projection):
    """What `_reaches` needs of each splat: mean, A, s, C, xy/yy, ln(255 o)."""
    _, xy, yy = jnp.moveaxis(projection.covars2d, -1, 0)
    return [
        *jnp.moveaxis(projection.means2d, -1, 0),
        *quadratic_columns(projection.covars2d, projection.dets),
        xy / yy,
        jnp.log(jnp.maximum(projection.opacities / ALPHA_MIN, 1.0)) + LOG_ALPHA_SLACK,
    ]


def _reaches(shapes, tile_x, tile_y, tile_size):
    """Whether a splat's alpha gets to 1/255 anywhere among the pixel centres of a tile.

    The logarithm of alpha / o is A x^2 + C (y + s x)^2, see `gaussian_terms`.
    """
    mean_x, mean_y, a, slope, c, best_x, reach = shapes
    left = tile_x * tile_size + 0.5 - mean_x
    top = tile_y * tile_size + 0.5 - mean_y
    right, bottom = left + (tile_size - 1), top + (tile_size - 1)

    def along_column(x):
        offset = slope * x
        nearest = jnp.clip(0.0, top + offset, bottom + offset)
        return a * x * x + c * nearest * nearest

    def along_row(y):
        x = jnp.clip(best_x * y, left, right)
        distance = y + slope * x
        return a * x * x + c * distance * distance

    most = jnp.maximum(
        jnp.maximum(along_column(left), along_column(right)),
        jnp.maximum(along_row(top), along_row(bottom)),
    )
    contains_mean = (left <= 0) & (right >= 0) & (top <= 0) & (bottom >= 0)
    return contains_mean | (most >= -reach)


def _expand(depths, counts, columns, capacity):
    """Ranks rows by depth and lays out one slot per tile of each, in this order.

    Args:
      depths: [R] positive; infinite for rows that are not drawn.
      counts: int32 [R] slots of each row.
      columns: [K, R] numbers that the slots need.
      capacity: static number of slots.

    Returns:
      order: int32 [R] row of each rank; rows of equal depth keep their order.
      rank: int32 [capacity] of each slot.
      start: int32 [R] first slot of each rank; `capacity` where int32 would wrap round.
      total: int32 [] slots asked for, `_INT_MAX` where int32 would wrap round.
      columns: in order of rank.
    """
    index = lax.iota(jnp.int32, depths.shape[0])
    order = lax.sort((_bits(depths), index), num_keys=1, is_stable=True)[1]
    counts = counts[order]
    end = jnp.cumsum(counts, dtype=jnp.int32)
    too_many = jnp.cumsum(counts.astype(jnp.float32)) > 2.0**30
    start = jnp.where(too_many, capacity, end - counts)
    total = jnp.where(too_many[-1], _INT_MAX, end[-1])
    marks = jnp.zeros((capacity + 1,), jnp.int32).at[jnp.minimum(start, capacity)].add(1)
    rank = jnp.cumsum(marks[:capacity], dtype=jnp.int32) - 1
    return order, rank, start, total, columns[:, order]


def _expand_on_host(depths, counts, columns, capacity):
    """`_expand` in NumPy, whose sort and repetition are several times as fast as XLA's on a CPU."""

    def expand(bits, counts, columns):
        rows = len(bits)
        if bits.itemsize == 4:  # one key without payload: the index breaks ties
            keys = bits.astype(np.uint64) << np.uint64(32) | np.arange(rows, dtype=np.uint64)
            keys.sort()
            order = keys.astype(np.uint32).astype(np.int32)
        else:
            order = np.argsort(bits, kind="stable").astype(np.int32)
        counts = counts[order]
        end = np.cumsum(counts, dtype=np.int64)
        last = int(np.searchsorted(end, capacity)) + 1  # later ranks have no slot
        rank = np.full(capacity, rows - 1, np.int32)
        slots = np.repeat(np.arange(min(last, rows), dtype=np.int32), counts[:last])[:capacity]
        rank[: len(slots)] = slots
        start = np.minimum(end - counts, capacity).astype(np.int32)
        total = np.int32(min(end[-1], _INT_MAX))
        return order, rank, start, total, columns[:, order]

    rows = depths.shape[0]
    shapes = [(rows,), (capacity,), (rows,), ()]
    results = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    results.append(jax.ShapeDtypeStruct(columns.shape, columns.dtype))
    return _on_host(expand, results, _bits(depths), counts, columns)


def _on_host(function, results, *arguments):
    """Calls a NumPy function of arrays on views of the program's buffers.

    `jax.pure_callback` would hand over JAX arrays: to copy a large one takes a thread besides that
    of the callback, and waits for ever on a machine with a single core.
    """

    def call(_, outputs, *inputs):
        values = function(*(np.asarray(buffer) for buffer in inputs))
        for output, value in zip(outputs, values, strict=True):
            np.asarray(output)[...] = value

    values = buffer_callback(call, tuple(results), vmap_method="sequential")(*arguments)
    axes = tuple(jax.typeof(arguments[0]).manual_axis_type.varying)
    return lax.pcast(values, axes, to="varying") if axes else values


def _bits(depths):
    """Bit patterns of positive numbers sort as unsigned integers do."""
    wide = depths.dtype == jnp.float64
    return lax.bitcast_convert_type(depths, jnp.uint64 if wide else jnp.uint32)


def _sort_by_tile(tile, rank, tiles, rows):
    """Slots, which come in order of rank, in order of (tile, rank).

    Args:
      tile: int32 [M], `tiles` for slots to be left out.
      rank: int32 [M].
      tiles: number of tiles.
      rows: number of ranks.

    Returns:
      ranks [M], and where each tile's begin and the last one's end [tiles + 1].
    """
    bits = _rank_bits(rows)
    tile, rank = tile.astype(jnp.uint32), rank.astype(jnp.uint32)
    bounds = jnp.arange(tiles + 1, dtype=jnp.uint32)
    if (tiles + 1) << bits <= 2**KEY_BITS:
        keys = lax.sort(tile << bits | rank, is_stable=False)
        rank, edges = keys & jnp.uint32((1 << bits) - 1), jnp.searchsorted(keys, bounds << bits)
    else:  # several times as slow, because of the payload
        tile, rank = lax.sort((tile, rank), num_keys=1, is_stable=True)
        edges = jnp.searchsorted(tile, bounds)
    return rank.astype(jnp.int32), edges.astype(jnp.int32)


def _sort_by_tile_on_host(tile, rank, tiles, rows):
    """`_sort_by_tile` in NumPy."""
    bits = _rank_bits(rows)
    kind = np.uint32 if (tiles + 1) << bits <= 2**KEY_BITS else np.uint64

    def sort(tile, rank):
        keys = tile.astype(kind) << kind(bits) | rank.astype(kind)
        keys.sort()
        edges = np.searchsorted(keys, np.arange(tiles + 1, dtype=kind) << kind(bits))
        return (keys & kind((1 << bits) - 1)).astype(np.int32), edges.astype(np.int32)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in (tile.shape, (tiles + 1,))]
    return _on_host(sort, shapes, tile, rank)


def _rank_bits(rows):
    return max(1, (rows - 1).bit_length())
