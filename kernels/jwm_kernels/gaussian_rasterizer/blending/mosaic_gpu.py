"""Blending as a Pallas kernel in Mosaic form, for NVIDIA GPUs from Hopper on.

The successor of `triton`: one warpgroup blends one tile and walks through its list splat by
splat, with the arithmetic of `xla`: the sign of a transmittance marks a pixel that has ended.
The columns of a splat are scalars, the pixels of a tile one vector. After every `CHUNK` splats it
looks whether all pixels have ended.

Backward also says how far it walked: rows of the gradient behind that are not written. How many
channels are blended, and how the rows are added up, is in `gpu`.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jwm_kernels.gaussian_rasterizer.blending.gpu import (
    grouped_gradients,
    grouped_table,
    scatter_rows,
)
from jwm_kernels.gaussian_rasterizer.gaussian_terms import (
    counted_weight,
    geometry_terms,
    limited_alpha,
    log_alpha,
    log_alpha_gradient,
)
from jwm_kernels.gaussian_rasterizer.table import (
    GEOMETRY,
    feature_count,
    local_centres,
    result_shape,
    tile_centres,
)

CHUNK = 16
"""Splats between two looks at whether all pixels have ended."""

TILE_SIZES = (16, 32)
"""A warpgroup holds vectors of whole multiples of 128 pixels."""


def forward(table, rows, starts, counts, spec, *, interpret=None):
    """Blends every tile; arguments and results as in `xla.forward`.

    `interpret` is that of `plgpu.kernel`.

    Raises:
      ValueError: not float32, or not one of `TILE_SIZES`.
    """
    grouped, group = grouped_table(table, spec, TILE_SIZES, "Mosaic")
    tiles, pixels = starts.shape[0], spec.tile_size**2
    channels = grouped.shape[1] - GEOMETRY
    out, transmittance = plgpu.kernel(
        functools.partial(_forward_tile, spec=spec, group=group),
        out_type=[
            result_shape((tiles, channels, pixels), starts),
            result_shape((tiles, pixels), starts),
        ],
        grid=(tiles, channels // group),
        grid_names=("tile", "group"),
        interpret=interpret,
    )(grouped, rows, starts, counts, local_centres(spec.tile_size))
    return out[:, : feature_count(table, spec)], transmittance


def backward(
    table, rows, starts, counts, out, transmittance, grad_out, grad_transmittance, spec,
    *, interpret=None,
):  # fmt: skip
    """Gradient of the table; arguments and result as in `xla.backward`."""
    grouped, group = grouped_table(table, spec, TILE_SIZES, "Mosaic")
    grad_out, remaining = grouped_gradients(
        grouped, out, transmittance, grad_out, grad_transmittance
    )
    entries, tiles = rows.shape[0], starts.shape[0]
    gradients, walked = plgpu.kernel(
        functools.partial(_backward_tile, spec=spec, group=group),
        out_type=[
            result_shape((entries, grouped.shape[1] + 2 * spec.absgrad), starts),
            result_shape((tiles,), starts, jnp.int32),
        ],
        grid=(tiles,),
        grid_names=("tile",),
        interpret=interpret,
    )(grouped, rows, starts, counts, local_centres(spec.tile_size), grad_out, remaining)
    edges = jnp.zeros((entries + 1,), jnp.int32).at[starts].add(1).at[starts + walked].add(-1)
    reached = jnp.cumsum(edges[:entries]) > 0
    gradients = jnp.where(reached[:, None], gradients, 0.0)
    return scatter_rows(gradients, grouped, table, rows, spec)


def _forward_tile(
    table_ref, rows_ref, starts_ref, counts_ref, centre_ref, out_ref, transmittance_ref,
    *, spec, group,
):  # fmt: skip
    tile = lax.axis_index("tile")
    first = GEOMETRY + lax.axis_index("group") * group
    start, alpha_at = starts_ref[tile], _alpha_at(table_ref, centre_ref, tile, spec)

    def blend(place, carry):
        transmittance, out = carry
        row = rows_ref[start + place]
        _, _, _, alpha, _ = alpha_at(row)
        transmittance, weight, _ = _pass(transmittance, alpha)
        out = tuple(
            total + weight * table_ref[row, first + channel] for channel, total in enumerate(out)
        )
        return transmittance, out

    zero = 0 * centre_ref[0, :]
    carry = (zero + 1, (zero,) * group)
    _, (transmittance, out) = _walk(blend, counts_ref[tile], carry)
    for channel, total in enumerate(out):
        out_ref[tile, first - GEOMETRY + channel, :] = total
    transmittance_ref[tile, :] = jnp.abs(transmittance)


def _backward_tile(
    table_ref, rows_ref, starts_ref, counts_ref, centre_ref, grad_ref, remaining_ref,
    gradient_ref, walked_ref, *, spec, group,
):  # fmt: skip
    tile = lax.axis_index("tile")
    start, alpha_at = starts_ref[tile], _alpha_at(table_ref, centre_ref, tile, spec)
    channels = grad_ref.shape[1]

    def blend(place, carry):
        before, remaining = carry
        entry = start + place
        row = rows_ref[entry]
        columns, dx, v, alpha, free = alpha_at(row)
        transmittance, weight, counted = _pass(before, alpha)

        def blend_group(index, value):
            for channel in range(group):
                channel = index * group + channel
                grad_out = grad_ref[tile, channel, :]
                gradient_ref[entry, GEOMETRY + channel] = jnp.sum(weight * grad_out)
                value = value + table_ref[row, GEOMETRY + channel] * grad_out
            return value

        value = lax.fori_loop(0, channels // group, blend_group, 0 * weight)
        remaining = remaining - weight * value
        grad = log_alpha_gradient(alpha, counted & free, before, value, remaining)
        terms = geometry_terms(grad, dx, v, *columns[2:5])
        for column, term in enumerate(terms):
            gradient_ref[entry, column] = jnp.sum(term)
        if spec.absgrad:
            for column, term in enumerate(terms[:2]):
                gradient_ref[entry, GEOMETRY + channels + column] = jnp.sum(jnp.abs(term))
        return transmittance, remaining

    carry = (0 * centre_ref[0, :] + 1, remaining_ref[tile, :])
    walked_ref[tile], _ = _walk(blend, counts_ref[tile], carry)


def _walk(blend, count, carry):
    """Blends splats 0 to count - 1 until all pixels have ended; also returns how many."""

    def alive(state):
        place, (transmittance, _) = state
        return (place < count) & (jnp.max(transmittance) > 0)

    def advance(state):
        place, carry = state
        end = jnp.minimum(place + CHUNK, count)
        return end, lax.fori_loop(place, end, blend, carry)

    return lax.while_loop(alive, advance, (jnp.int32(0), carry))


def _pass(before, alpha):
    """Transmittance behind a splat, its weight, and where it counts."""
    after = before * (1 - alpha)
    counted, weight = counted_weight(alpha, before, after)
    return jnp.where(counted, after, -jnp.abs(before)), weight, counted


def _alpha_at(table_ref, centre_ref, tile, spec):
    """A function from a row to its columns, dx, v, alpha, and where alpha has a gradient."""
    centre_x, centre_y = tile_centres(tile, spec)
    x, y = centre_ref[0, :], centre_ref[1, :]

    def alpha_at(row):
        columns = [table_ref[row, column] for column in range(GEOMETRY)]
        dx, dy = x - (columns[0] - centre_x), y - (columns[1] - centre_y)
        power, v = log_alpha(dx, dy, *columns[2:])
        return columns, dx, v, *limited_alpha(jnp.exp(power), spec.max_alpha)

    return alpha_at
