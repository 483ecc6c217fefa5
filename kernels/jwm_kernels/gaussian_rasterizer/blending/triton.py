"""Blending as a Pallas kernel in Triton form, for NVIDIA GPUs.

One program blends one tile: it walks through the tile's list in chunks of `CHUNK` splats until the
list ends or all pixels have. Splats are gathered in the kernel, so no entry is copied beforehand.
Triton has running sums only, hence transmittances are exp(running sum of ln(1 - alpha)).

Backward is the walk of `xla`. How many channels are blended, and how the gradient's rows are
added up, is in `gpu`.

Pallas gives up its Triton form: since jax 0.11 lowering it raises a DeprecationWarning. Nothing but
this file depends on it; `mosaic_gpu` takes over where it is gone.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jwm_kernels.gaussian_rasterizer.blending.gpu import (
    grouped_gradients,
    grouped_table,
    scatter_rows,
)
from jwm_kernels.gaussian_rasterizer.constants import TRANSMITTANCE_MIN
from jwm_kernels.gaussian_rasterizer.gaussian_terms import (
    counted_weight,
    geometry_terms,
    limited_alpha,
    log_alpha,
    log_alpha_gradient,
)
from jwm_kernels.gaussian_rasterizer.table import (
    GEOMETRY,
    LOG_OPACITY,
    UNLISTED,
    feature_count,
    result_shape,
    zero_of,
)

CHUNK = 16
"""Splats blended together."""

TILE_SIZES = (4, 8, 16, 32)
"""Triton's arrays have sides that are powers of two, and larger tiles do not fit into registers."""


def forward(table, rows, starts, counts, spec, *, interpret=False):
    """Blends every tile; arguments and results as in `xla.forward`.

    `interpret` is that of `pl.pallas_call`.

    Raises:
      ValueError: not float32, or not one of `TILE_SIZES`.
    """
    grouped, group = grouped_table(table, spec, TILE_SIZES, "Triton")
    tiles, pixels = starts.shape[0], spec.tile_size**2
    channels = grouped.shape[1] - GEOMETRY
    out, transmittance = pl.pallas_call(
        functools.partial(_forward_tile, spec=spec, group=group),
        grid=(tiles, channels // group),
        out_shape=[
            result_shape((tiles, channels, pixels), starts),
            result_shape((tiles, pixels), starts),
        ],
        compiler_params=_compiler_params(pixels),
        interpret=interpret,
    )(grouped, rows, starts, counts)
    return out[:, : feature_count(table, spec)], transmittance


def backward(
    table, rows, starts, counts, out, transmittance, grad_out, grad_transmittance, spec,
    *, interpret=False,
):  # fmt: skip
    """Gradient of the table; arguments and result as in `xla.backward`."""
    grouped, group = grouped_table(table, spec, TILE_SIZES, "Triton")
    grad_out, remaining = grouped_gradients(
        grouped, out, transmittance, grad_out, grad_transmittance
    )
    shape = (grouped.shape[1] + 2 * spec.absgrad, rows.shape[0])
    gradients = pl.pallas_call(
        functools.partial(_backward_tile, spec=spec, group=group),
        grid=(starts.shape[0],),
        out_shape=result_shape(shape, starts),
        input_output_aliases={6: 0},
        compiler_params=_compiler_params(spec.tile_size**2),
        interpret=interpret,
    )(
        grouped, rows, starts, counts, grad_out, remaining,
        jnp.zeros(shape, table.dtype) + zero_of(table, starts),
    )  # fmt: skip
    return scatter_rows(gradients.T, grouped, table, rows, spec)


def _forward_tile(
    table_ref, rows_ref, starts_ref, counts_ref, out_ref, transmittance_ref, *, spec, group
):
    tile, first = pl.program_id(0), pl.program_id(1) * group
    count = counts_ref[tile]
    x, y = _pixel_centres(tile, spec)

    def alive(carry):
        place, running, _, _ = carry
        return (place < count) & (jnp.max(running) > TRANSMITTANCE_MIN)

    def advance(carry):
        place, running, transmittance, out = carry
        load, _, _ = _chunk(table_ref, rows_ref, starts_ref[tile], count, place)
        _, _, alpha, _ = _alpha(load, x, y, spec)
        before, after = _transmittances(alpha, running)
        counted, weight = counted_weight(alpha, before, after)
        out = tuple(
            total + jnp.sum(weight * load(GEOMETRY + first + channel), 0)
            for channel, total in enumerate(out)
        )
        last = jnp.min(jnp.where(counted, after, 1.0), 0)
        return place + CHUNK, jnp.min(after, 0), jnp.minimum(transmittance, last), out

    one = jnp.ones((spec.tile_size**2,), jnp.float32)
    start = (jnp.int32(0), one, one, (jnp.zeros_like(one),) * group)
    _, _, transmittance, out = lax.while_loop(alive, advance, start)
    for channel, total in enumerate(out):
        out_ref[tile, first + channel, :] = total
    transmittance_ref[tile, :] = transmittance


def _backward_tile(
    table_ref, rows_ref, starts_ref, counts_ref, grad_ref, remaining_ref, _, gradient_ref,
    *, spec, group,
):  # fmt: skip
    tile = pl.program_id(0)
    count = counts_ref[tile]
    x, y = _pixel_centres(tile, spec)
    channels = grad_ref.shape[1]

    def alive(carry):
        place, running, _ = carry
        return (place < count) & (jnp.max(running) > TRANSMITTANCE_MIN)

    def advance(carry):
        place, running, remaining = carry
        load, entry, listed = _chunk(table_ref, rows_ref, starts_ref[tile], count, place)
        dx, v, alpha, free = _alpha(load, x, y, spec)
        before, after = _transmittances(alpha, running)
        counted, weight = counted_weight(alpha, before, after)

        def store(column, term):
            value = jnp.sum(term, 1)
            pltriton.store(gradient_ref.at[column, entry], value, mask=listed)

        def blend_group(index, value):
            for channel in range(group):
                channel = index * group + channel
                grad_out = grad_ref[tile, channel, :][None]
                value = value + load(GEOMETRY + channel) * grad_out
                store(GEOMETRY + channel, weight * grad_out)
            return value

        value = lax.fori_loop(0, channels // group, blend_group, jnp.zeros_like(weight))
        left = remaining[None] - jnp.cumsum(weight * value, 0)
        grad = log_alpha_gradient(alpha, counted & free, before, value, left)
        terms = geometry_terms(grad, dx, v, load(2), load(3), load(4))
        for column, term in enumerate(terms):
            store(column, term)
        if spec.absgrad:
            store(GEOMETRY + channels, jnp.abs(terms[0]))
            store(GEOMETRY + channels + 1, jnp.abs(terms[1]))
        return place + CHUNK, jnp.min(after, 0), remaining - jnp.sum(weight * value, 0)

    one = jnp.ones((spec.tile_size**2,), jnp.float32)
    lax.while_loop(alive, advance, (jnp.int32(0), one, remaining_ref[tile, :]))


def _chunk(table_ref, rows_ref, start, count, place):
    """How to load a column of the next splats as [chunk, 1], their list entries, their validity."""
    offset = place + lax.iota(jnp.int32, CHUNK)
    listed = offset < count
    entry = start + offset
    row = pltriton.load(rows_ref.at[entry], mask=listed, other=0)

    def load(column, other=0.0):
        return pltriton.load(table_ref.at[row, column], mask=listed, other=other)[:, None]

    return load, entry, listed


def _alpha(load, x, y, spec):
    """dx, v, alpha and whether alpha has a gradient, each [chunk, pixels]."""
    dx, dy = x - load(0), y - load(1)
    power, v = log_alpha(dx, dy, load(2), load(3), load(4), load(LOG_OPACITY, UNLISTED))
    return dx, v, *limited_alpha(jnp.exp(power), spec.max_alpha)


def _transmittances(alpha, running):
    after = running[None] * jnp.exp(jnp.cumsum(jnp.log(1 - alpha), 0))
    return after / (1 - alpha), after


def _pixel_centres(tile, spec):
    """x and y [1, pixels] of the pixel centres of a tile."""
    size = spec.tile_size
    within = lax.rem(tile, spec.tiles_x * spec.tiles_y)
    index = lax.iota(jnp.int32, size * size)
    x = lax.rem(within, spec.tiles_x) * size + lax.rem(index, size)
    y = lax.div(within, spec.tiles_x) * size + lax.div(index, size)
    return x.astype(jnp.float32)[None] + 0.5, y.astype(jnp.float32)[None] + 0.5


def _compiler_params(pixels):
    return pltriton.CompilerParams(num_warps=max(1, pixels // 64), num_stages=1)
