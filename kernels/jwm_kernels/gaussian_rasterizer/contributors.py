"""Which Gaussians make up a pixel: the k that weigh most, in XLA operations, without gradient.

The traversal is that of `xla.forward`. Instead of a sum of features every pixel carries its k
largest weights so far, in falling order; the weight of the next splat sinks to its place by k
exchanges. Of equal weights the one in front comes first.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.binning.tile_lists import bin_tiles, grid_shape
from jwm_kernels.gaussian_rasterizer.blending import xla
from jwm_kernels.gaussian_rasterizer.blending.layout import pack_table, tiles_to_image
from jwm_kernels.gaussian_rasterizer.blending.vjp import BlendSpec
from jwm_kernels.gaussian_rasterizer.capacity import (
    count_pairs,
    counted_capacity,
    default_capacity,
    default_tile_size,
    is_traced,
)
from jwm_kernels.gaussian_rasterizer.projection.project import project
from jwm_kernels.gaussian_rasterizer.table import zero_of

Array = jax.Array | np.ndarray


def render_ids(
    means: Float[Array, "*batch n 3"],
    quats: Float[Array, "*batch n 4"] | None,
    scales: Float[Array, "*batch n 3"] | None,
    opacities: Float[Array, "*batch n"],
    viewmats: Float[Array, "*batch c 4 4"],
    Ks: Float[Array, "*batch c 3 3"],
    width: int,
    height: int,
    *,
    k: int = 1,
    tile_size: int | None = None,
    max_alpha: float = 0.99,
    capacity: int | None = None,
    host_sort: bool | None = None,
    **options,
) -> tuple[Int[Array, "*batch c h w k"], Float[Array, "*batch c h w k"], dict]:
    """Finds for every pixel the k Gaussians with the largest weights alpha T.

    The weights are those with which `rasterization` blends colours. gsplat's counterpart is
    `rasterize_top_contributing_gaussian_ids`.

    Args:
      means: as in `rasterization`, and so all others that are not described here.
      quats: rotations.
      scales: standard deviations.
      opacities: opacities.
      viewmats: camera from world.
      Ks: intrinsics.
      width: image width in pixels.
      height: image height in pixels.
      k: how many, at least 1; time grows with it.
      tile_size: side of a tile in pixels.
      max_alpha: limit of a splat's alpha.
      capacity: number of (splat, tile) pairs; counted first by default, see `rasterization`.
      host_sort: sorts with NumPy.
      **options: of `project`.

    Returns:
      ids: int32 indices of Gaussians, largest weight first; -1 where fewer than k contribute.
      weights: their weights, 0 where there is none; their sum over all Gaussians is alpha.
      meta: `overflow` and `capacity`, see `check_overflow`.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    tile_size = default_tile_size() if tile_size is None else tile_size
    validation.check_tile_size(tile_size)
    validation.check_sizes(k=k)
    validation.check_limits(max_alpha=max_alpha, capacity=capacity)
    projection = project(means, quats, scales, opacities, viewmats, Ks, width, height, **options)
    projection = lax.stop_gradient(projection)
    leading, n = projection.depths.shape[:-1], projection.depths.shape[-1]
    if n == 0:
        shape = (*leading, height, width, k)
        ids, weights = jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, projection.depths.dtype)
        return ids, weights, {"overflow": jnp.int32(0), "capacity": capacity or 1}
    if capacity is None:
        tiles = int(np.prod(grid_shape(width, height, tile_size)))
        capacity = default_capacity(int(np.prod(leading)), n, tiles, tile_size)
        if not is_traced(projection):
            pairs = count_pairs(projection, width, height, tile_size).sum()
            capacity = counted_capacity(capacity, int(pairs))
    lists = bin_tiles(
        projection, width, height, tile_size=tile_size, capacity=capacity, host_sort=host_sort
    )
    spec = BlendSpec(width, height, tile_size, max_alpha)
    table = pack_table(projection, projection.means2d[..., :0])
    rows, weights = _strongest(table, lists.rows, lists.starts, lists.counts, spec, k)
    ids = tiles_to_image(jnp.where(rows < 0, -1, rows % n), spec, leading)
    return (
        ids,
        tiles_to_image(weights, spec, leading),
        {"overflow": lists.overflow, "capacity": capacity},
    )


@functools.partial(jax.jit, static_argnames=("spec", "k"))
def _strongest(table, rows, starts, counts, spec, k):
    """Rows int32 [T, k, P], -1 for none, and weights [T, k, P]."""
    pixels, total = spec.tile_size**2, starts.shape[0]
    zero = zero_of(table, starts)

    def one_group(tiles):
        start, count = xla.tile_lists(tiles, starts, counts)
        x, y = xla.pixel_centres(tiles, spec, table.dtype)

        def alive(carry):
            step, transmittance, _, _ = carry
            return (step < jnp.max(count)) & jnp.any(transmittance > 0)

        def advance(carry):
            step, transmittance, best, best_rows = carry
            row, entries, _ = xla.list_entries(table, rows, start, count, step, 1)
            before = transmittance
            transmittance = xla.behind(entries, 0, x, y, before, spec)
            weight = jnp.abs(before) - jnp.abs(transmittance)
            row = jnp.broadcast_to(row, weight.shape)
            ranked, ranked_rows = [], []
            for place in range(k):
                wins = weight > best[:, place]
                ranked.append(jnp.where(wins, weight, best[:, place]))
                ranked_rows.append(jnp.where(wins, row, best_rows[:, place]))
                weight, row = (
                    jnp.where(wins, best[:, place], weight),
                    jnp.where(wins, best_rows[:, place], row),
                )
            return step + 1, transmittance, jnp.stack(ranked, 1), jnp.stack(ranked_rows, 1)

        shape = (tiles.shape[0], k, pixels)
        none = zero.astype(jnp.int32)
        first = (
            none,
            jnp.ones((shape[0], pixels), table.dtype) + zero,
            jnp.zeros(shape, table.dtype) + zero,
            jnp.full(shape, -1, jnp.int32) + none,
        )
        return lax.while_loop(alive, advance, first)[2:]

    groups = xla.tile_groups(counts, pixels, xla.GROUP_PIXELS)
    best, best_rows = lax.map(one_group, groups)
    place = xla.places(groups, total)
    return (
        best_rows.reshape(groups.size, k, pixels)[place],
        best.reshape(groups.size, k, pixels)[place],
    )
