"""The differentiable blend: one custom gradient and one batching rule, shared by every backend.

A backend is a pair of functions over flat arrays: a table with one row per splat and image, and
the list of table rows of every tile. It knows nothing of cameras, batches or projections.

`jax.vmap` over a blend becomes a single blend with more tiles, because a loop over lists of
different lengths would otherwise wait for the longest of all and copy its state at every step.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class BlendSpec:
    """What a backend must know at compile time."""

    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""
    tile_size: int
    """Side of a tile in pixels."""
    max_alpha: float
    """Upper limit of a splat's alpha at a pixel, under 1."""
    absgrad: bool = False
    """Two columns of zeros follow the features. Forward ignores them; backward gives them the sums
    over pixels of |d loss / d mean x| and |d loss / d mean y|."""

    @property
    def tiles_x(self) -> int:
        """Tiles across."""
        return -(-self.width // self.tile_size)

    @property
    def tiles_y(self) -> int:
        """Tiles down."""
        return -(-self.height // self.tile_size)


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of the blend; see `xla` for the arguments of the two functions."""

    forward: Callable
    backward: Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def blend_tiles(table, rows, starts, counts, spec: BlendSpec, backend: Backend):
    """Blends every tile with a backend.

    Args:
      table: [R, 6 + D] mean x, mean y, A, s, C, ln o, features (see `xla`); two more columns
        with `spec.absgrad`.
      rows: int32 [M] table row of every list entry.
      starts: int32 [T] first entry of each tile; T is a multiple of the tiles of one image.
      counts: int32 [T] entries of each tile.
      spec: sizes and the alpha limit.
      backend: the implementation.

    Returns:
      features [T, D, P] and the remaining transmittance [T, P], P = tile_size^2.
    """
    return _forward(spec, backend)(table, rows, starts, counts)


def _blend_forward(table, rows, starts, counts, spec, backend):
    out, transmittance = _forward(spec, backend)(table, rows, starts, counts)
    return (out, transmittance), (table, rows, starts, counts, out, transmittance)


def _blend_backward(spec, backend, residuals, gradients):
    return _backward(spec, backend)(*residuals, *gradients), None, None, None


blend_tiles.defvjp(_blend_forward, _blend_backward)


@functools.cache
def _forward(spec, backend):
    @jax.custom_batching.custom_vmap
    def forward(table, rows, starts, counts):
        return backend.forward(table, rows, starts, counts, spec)

    @forward.def_vmap
    def batched(size, in_batched, *arguments):
        folded, unfold = _fold(size, in_batched, arguments)
        out, transmittance = forward(*folded)
        return (unfold(out), unfold(transmittance)), (True, True)

    return forward


@functools.cache
def _backward(spec, backend):
    @jax.custom_batching.custom_vmap
    def backward(*arguments):
        return backend.backward(*arguments, spec)

    @backward.def_vmap
    def batched(size, in_batched, *arguments):
        folded, unfold = _fold(size, in_batched, arguments)
        return unfold(backward(*folded)), True

    return backward


def _fold(size, in_batched, arguments):
    """Turns a batch of blends into one: rows and entries of member b follow those of b - 1."""
    table, rows, starts, *others = (
        value if is_batched else jnp.broadcast_to(value, (size, *value.shape))
        for value, is_batched in zip(arguments, in_batched, strict=True)
    )
    member = jnp.arange(size, dtype=jnp.int32)[:, None]
    rows = rows + member * table.shape[1]
    starts = starts + member * rows.shape[1]

    def flat(value):
        return value.reshape(-1, *value.shape[2:])

    def unfold(value):
        return value.reshape(size, -1, *value.shape[1:])

    return [flat(value) for value in (table, rows, starts, *others)], unfold
