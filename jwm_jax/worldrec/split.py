"""The pictures of one scene split over devices, inside `jax.shard_map`.

Each device has its own pictures from the backbone to the Gaussians of their queries. What crosses
the mesh axis: the maps that queries of all pictures read (`gather`), and sums over all pictures
(`total`). Without an axis one device has all pictures and nothing moves.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Int

Tree = TypeVar("Tree")


def gather(tree: Tree, axis: str | None) -> Tree:
    """Arrays [p, ...] of this device's pictures to arrays [P, ...] of all, in their order."""
    if axis is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), tree)


def total(tree: Tree, axis: str | None) -> Tree:
    """Sums over the devices."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def picture_numbers(count: int, axis: str | None) -> Int[jax.Array, "p"]:
    """Numbers of this device's `count` pictures among all."""
    first = 0 if axis is None else jax.lax.axis_index(axis) * count
    return first + jnp.arange(count)
