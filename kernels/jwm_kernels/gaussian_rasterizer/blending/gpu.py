"""What `triton` and `mosaic_gpu` do around their kernels.

Channels are blended in groups of at most `CHANNELS`, the last one filled up with channels of zeros:
forward by programs of their own, which find the same weights again, backward in a loop. A kernel
writes one gradient row per list entry, and a single scatter adds them up.
"""

import jax.numpy as jnp

from jwm_kernels.gaussian_rasterizer.gaussian_terms import total_to_blend
from jwm_kernels.gaussian_rasterizer.table import GEOMETRY, feature_count, join_columns

CHANNELS = 16
"""Channels blended together."""


def grouped_table(table, spec, tile_sizes, kernel):
    """The table as a kernel reads it.

    Args:
      table: float32 [R, 6 + D (+ 2)].
      spec: `BlendSpec`.
      tile_sizes: sides of a tile that the kernel takes.
      kernel: its name, for errors.

    Returns:
      table [R, 6 + P] without the columns of `absgrad` and with whole groups of channels, and the
      channels of a group.

    Raises:
      ValueError: not float32, or not one of `tile_sizes`.
    """
    if table.dtype != jnp.float32:
        raise ValueError(
            f"backend: the {kernel} kernel needs float32, got {table.dtype}; use 'xla'"
        )
    if spec.tile_size not in tile_sizes:
        raise ValueError(
            f"tile_size: the {kernel} kernel takes one of {tile_sizes}, got {spec.tile_size}"
        )
    features = feature_count(table, spec)
    group = min(features, CHANNELS)
    table = table[:, : GEOMETRY + features]
    return jnp.pad(table, ((0, 0), (0, -features % group))), group


def grouped_gradients(grouped, out, transmittance, grad_out, grad_transmittance):
    """The gradients of the loss as a kernel reads them.

    Args:
      grouped: from `grouped_table`.
      out: [T, D, P] blended features.
      transmittance: [T, P] what is left.
      grad_out: [T, D, P] gradient of the loss.
      grad_transmittance: [T, P] gradient of the loss.

    Returns:
      `grad_out` with the channels of `grouped`, and `total_to_blend`.
    """
    remaining = total_to_blend(out, transmittance, grad_out, grad_transmittance)
    extra = grouped.shape[1] - GEOMETRY - grad_out.shape[1]
    return jnp.pad(grad_out, ((0, 0), (0, extra), (0, 0))), remaining


def scatter_rows(gradients, grouped, table, rows, spec):
    """Gradient of the table from the rows that a kernel wrote.

    Args:
      gradients: [M, 6 + P (+ 2)] one row per list entry.
      grouped: from `grouped_table`.
      table: [R, 6 + D (+ 2)].
      rows: int32 [M] row of each list entry.
      spec: `BlendSpec`.

    Returns:
      gradient of the shape of `table`.
    """
    features = feature_count(table, spec)
    gradients = join_columns(
        gradients[:, :GEOMETRY],
        gradients[:, GEOMETRY : GEOMETRY + features],
        gradients[:, grouped.shape[1] :],
        spec,
    )
    return jnp.zeros_like(table).at[rows].add(gradients)
