"""Columns of the flat table that backends blend, and of its gradient.

    mean x, mean y, A, s, C, ln o | D features | with absgrad: two columns of zeros

The zeros carry no value; their gradient is the absolute gradient of the means.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

GEOMETRY = 6
"""Columns before the features."""

LOG_OPACITY = 5
"""The column ln o."""

UNLISTED = -1e9
"""Log opacity of places beyond the end of a list: their alpha is 0."""


def feature_count(table, spec) -> int:
    """D, the number of blended features of a table [R, 6 + D (+ 2)]."""
    return table.shape[1] - GEOMETRY - 2 * spec.absgrad


def join_columns(geometry, features, absolute, spec):
    """Gradient rows [..., 6 + D (+ 2)] from geometry [..., 6], features [..., D], sums [..., 2]."""
    parts = [geometry, features, absolute] if spec.absgrad else [geometry, features]
    return jnp.concatenate(parts, -1)


def local_centres(size, dtype=jnp.float32):
    """x and y [2, P] of the pixel centres of a tile, from its centre, in pixels."""
    index = np.arange(size * size)
    return jnp.asarray(np.stack([index % size, index // size]) + 0.5 - size / 2, dtype)


def tile_centres(tiles, spec, dtype=jnp.float32):
    """x and y, each of the shape of `tiles`, of the centres of tiles in their image, in pixels."""
    size, tiles_x, per_image = np.int32([spec.tile_size, spec.tiles_x, spec.tiles_x * spec.tiles_y])
    within = lax.rem(tiles, per_image)
    corners = lax.rem(within, tiles_x) * size, lax.div(within, tiles_x) * size
    return tuple(corner.astype(dtype) + spec.tile_size / 2 for corner in corners)


def result_shape(shape, like, dtype=jnp.float32):
    """A kernel's result that varies over the same mesh axes as `like`, as `jax.shard_map` asks."""
    kind = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


def zero_of(values, integers):
    """A zero of the dtype of `values` that depends on `integers`, which are never NaN.

    What starts from it varies over the same mesh axes as the tiles, as `jax.shard_map` demands of
    the carry of a loop.
    """
    return (integers[0] * 0).astype(values.dtype)


def interleave(parts):
    """[..., K] array of K arrays [...], as `jnp.stack(parts, -1)`.

    The parts are written one after the other. XLA for CPUs fuses a stack along the last axis with
    all that its parts depend on and evaluates that element by element, without vectors.
    """
    shape = jnp.broadcast_shapes(*(jnp.shape(part) for part in parts))
    out = jnp.zeros((*shape, len(parts)), jnp.result_type(*parts))
    for k, part in enumerate(parts):
        out = out.at[..., k].set(part)
    return out
