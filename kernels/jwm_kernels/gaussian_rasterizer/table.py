"""Columns of the flat table that backends blend, and of its gradient.

    mean x, mean y, A, s, C, ln o | D features | with absgrad: two columns of zeros

The zeros carry no value; their gradient is the absolute gradient of the means.
"""

import jax
import jax.numpy as jnp
import numpy as np

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


def pad_channels(table, features, most):
    """A table [R, 6 + D] with whole groups of at most `most` channels, and the group's size."""
    group = min(features, most)
    return jnp.pad(table, ((0, 0), (0, -features % group))), group


def local_centres(size, dtype=jnp.float32):
    """x and y [2, P] of the pixel centres of a tile, from its centre, in pixels."""
    index = np.arange(size * size)
    return jnp.asarray(np.stack([index % size, index // size]) + 0.5 - size / 2, dtype)


def result_shape(shape, like, dtype=jnp.float32):
    """A kernel's result that varies over the same mesh axes as `like`, as `jax.shard_map` asks."""
    kind = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
