"""Blending as a Pallas kernel for TPU; `interpret=True` runs the same kernel on any platform.

The list of every tile is cut into chunks of `CHUNK` entries, and the grid walks over all chunks of
all tiles in order: one step blends one chunk into the block of its tile, which stays in memory
while consecutive steps revisit it. Which tile a step belongs to comes from a prefetched list, so a
long tile has many steps, an empty one a single step, and none waits for another.

Within a step splats lie along sublanes and pixels along lanes. Transmittances before and after each
splat are a running product over the chunk, found by log2(CHUNK) rolls. Because they only fall, "the
first splat that would bring T to the limit ends the pixel" is just the mask T' > limit. A step
whose pixels have all ended does nothing.

Backward walks in the same order with what remains of out . g_out + T g_T (see `xla`), another
running sum. It writes one gradient row per list entry, and a scatter adds them up.

Rows are gathered and scattered outside of the kernel in blocks of steps: a TPU keeps an array of
rows with every row filled up to 128 columns, which would be 512 bytes for every list entry.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jwm_kernels.gaussian_rasterizer.constants import TRANSMITTANCE_MIN
from jwm_kernels.gaussian_rasterizer.gaussian_terms import (
    counted_weight,
    geometry_terms,
    limited_alpha,
    log_alpha,
    log_alpha_gradient,
    total_to_blend,
)
from jwm_kernels.gaussian_rasterizer.table import (
    GEOMETRY,
    LOG_OPACITY,
    UNLISTED,
    feature_count,
    join_columns,
    local_centres,
    result_shape,
    tile_centres,
    zero_of,
)

CHUNK = 128
"""List entries per grid step: the number of lanes, so that gathered entries fill registers."""

STEPS_MAX = 200_000
"""Grid steps of one call; their tiles take 4 bytes each of the 1 MB of scalar memory."""

BLOCK_STEPS = 512
"""Most grid steps whose rows are gathered or scattered together, 32 MB."""

TILE_SIZE_MAX = 32
"""Largest side of a tile in pixels for which a step's arrays fit into vector memory."""

_ROWS = 8
"""Rows of a block before the features: six geometric columns, filled up to a whole register. In
gradients the last two hold the sums for `absgrad`."""


def forward(table, rows, starts, counts, spec, *, interpret=False):
    """Blends every tile; arguments and results as in `xla.forward`.

    `interpret` is that of `pl.pallas_call`.

    Raises:
      ValueError: not float32, a tile too large, or more grid steps than scalar memory holds.
    """
    tile, _, _, entries = _gather(table, rows, starts, counts, spec)
    steps, _, chunk = entries.shape
    tiles, pixels, features = starts.shape[0], spec.tile_size**2, feature_count(table, spec)
    out, transmittance = pl.pallas_call(
        functools.partial(_forward_step, max_alpha=spec.max_alpha),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(steps,),
            in_specs=[_per_step(_ROWS + features, chunk), _constant(2, pixels)],
            out_specs=[_per_tile(features, pixels), _per_tile(1, pixels)],
            scratch_shapes=[pltpu.VMEM((1, pixels), jnp.float32)],
        ),
        out_shape=[
            result_shape((tiles, features, pixels), entries),
            result_shape((tiles, 1, pixels), entries),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
    )(tile, entries, local_centres(spec.tile_size))
    return out, transmittance[:, 0]


def backward(
    table, rows, starts, counts, out, transmittance, grad_out, grad_transmittance, spec,
    *, interpret=False,
):  # fmt: skip
    """Gradient of the table; arguments and result as in `xla.backward`."""
    tile, row, listed, entries = _gather(table, rows, starts, counts, spec)
    steps, _, chunk = entries.shape
    pixels, features = spec.tile_size**2, feature_count(table, spec)
    remaining = total_to_blend(out, transmittance, grad_out, grad_transmittance)
    gradients = pl.pallas_call(
        functools.partial(_backward_step, max_alpha=spec.max_alpha, absgrad=spec.absgrad),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(steps,),
            in_specs=[
                _per_step(_ROWS + features, chunk),
                _constant(2, pixels),
                _per_tile(features, pixels),
                _per_tile(1, pixels),
            ],
            out_specs=_per_step(_ROWS + features, chunk),
            scratch_shapes=[pltpu.VMEM((1, pixels), jnp.float32)] * 2,
        ),
        out_shape=result_shape(entries.shape, entries),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
    )(tile, entries, local_centres(spec.tile_size), grad_out, remaining[:, None])

    def add_block(gradient, block):
        row, listed, columns = block
        columns = jnp.where(listed[:, None], columns, 0.0).swapaxes(1, 2)
        columns = join_columns(
            columns[..., :GEOMETRY], columns[..., _ROWS:], columns[..., GEOMETRY:_ROWS], spec
        )
        columns = columns.reshape(-1, table.shape[1])
        return gradient.at[row.reshape(-1)].add(columns), None

    blocks = [_in_blocks(values) for values in (row, listed, gradients)]
    return lax.scan(add_block, jnp.zeros_like(table) + zero_of(table, starts), blocks)[0]


def _forward_step(
    tile_ref, entry_ref, centre_ref, out_ref, transmittance_ref, running_ref, *, max_alpha
):
    @pl.when(_is_first(tile_ref))
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)
        transmittance_ref[...] = jnp.ones_like(transmittance_ref)
        running_ref[...] = jnp.ones_like(running_ref)

    @pl.when(jnp.max(running_ref[...]) > TRANSMITTANCE_MIN)
    def _():
        entries = entry_ref[0]
        _, _, alpha, _ = _alpha(entries[:_ROWS].T, centre_ref, max_alpha)
        before, after = _transmittances(alpha, running_ref)
        counted, weight = counted_weight(alpha, before, after)
        out_ref[0] += _dot(entries[_ROWS:], weight, (1, 0))
        last = jnp.min(jnp.where(counted, after, 1.0), axis=0, keepdims=True)
        transmittance_ref[0] = jnp.minimum(transmittance_ref[0], last)


def _backward_step(
    tile_ref, entry_ref, centre_ref, grad_ref, total_ref, gradient_ref, running_ref, remaining_ref,
    *, max_alpha, absgrad,
):  # fmt: skip
    @pl.when(_is_first(tile_ref))
    def _():
        running_ref[...] = jnp.ones_like(running_ref)
        remaining_ref[...] = total_ref[0]

    gradient_ref[...] = jnp.zeros_like(gradient_ref)

    @pl.when(jnp.max(running_ref[...]) > TRANSMITTANCE_MIN)
    def _():
        entries, grad_out = entry_ref[0], grad_ref[0]
        columns = entries[:_ROWS].T
        dx, v, alpha, free = _alpha(columns, centre_ref, max_alpha)
        before, after = _transmittances(alpha, running_ref)
        counted, weight = counted_weight(alpha, before, after)
        value = _dot(entries[_ROWS:], grad_out, (0, 0))
        remaining = remaining_ref[...] - _scan(jnp.add, weight * value, 0.0)
        remaining_ref[...] = remaining[-1:]
        grad = log_alpha_gradient(alpha, counted & free, before, value, remaining)
        terms = geometry_terms(grad, dx, v, columns[:, 2:3], columns[:, 3:4], columns[:, 4:5])
        if absgrad:
            terms = (*terms, jnp.abs(terms[0]), jnp.abs(terms[1]))
        sums = [jnp.sum(term, axis=1, keepdims=True) for term in terms]
        sums += [jnp.zeros_like(sums[0])] * (_ROWS - len(sums))
        gradient_ref[0, :_ROWS] = jnp.concatenate(sums, axis=1).T
        gradient_ref[0, _ROWS:] = _dot(grad_out, weight, (1, 1))


def _is_first(tile_ref):
    step = pl.program_id(0)
    return (step == 0) | (tile_ref[step] != tile_ref[jnp.maximum(step - 1, 0)])


def _alpha(columns, centre_ref, max_alpha):
    """dx, v, alpha and whether alpha has a gradient, each [chunk, pixels]."""
    dx = centre_ref[0:1] - columns[:, 0:1]
    dy = centre_ref[1:2] - columns[:, 1:2]
    power, v = log_alpha(dx, dy, *(columns[:, k : k + 1] for k in range(2, GEOMETRY)))
    return dx, v, *limited_alpha(jnp.exp(power), max_alpha)


def _transmittances(alpha, running_ref):
    """Transmittance before and after each splat; moves the running one to the end of the chunk."""
    start = running_ref[...]
    after = start * _scan(jnp.multiply, 1 - alpha, 1.0)
    running_ref[...] = after[-1:]
    row = lax.broadcasted_iota(jnp.int32, after.shape, 0)
    return jnp.where(row == 0, start, pltpu.roll(after, 1, 0)), after


def _scan(combine, values, neutral):
    """Inclusive running sum or product along the first axis."""
    row = lax.broadcasted_iota(jnp.int32, values.shape, 0)
    shift = 1
    while shift < values.shape[0]:
        shifted = jnp.where(row >= shift, pltpu.roll(values, shift, 0), neutral)
        values = combine(values, shifted)
        shift *= 2
    return values


def _dot(left, right, axes):
    contract = ((axes[0],), (axes[1],))
    return lax.dot_general(
        left, right, (contract, ((), ())),
        precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip


def _gather(table, rows, starts, counts, spec):
    """Tile, rows, validity and entries of every grid step.

    Every tile has at least one step. Surplus steps belong to the last tile and list nothing.

    Returns:
      tile [S], row [S, chunk], listed [S, chunk] and entries [S, 8 + D, chunk] with means relative
      to the centre of the tile.
    """
    tiles = starts.shape[0]
    steps = tiles + rows.shape[0] // CHUNK
    _check(table, spec.tile_size, steps, tiles, rows.shape[0])
    blocks = -(-steps // BLOCK_STEPS)
    steps = -(-steps // blocks) * blocks
    per_tile = jnp.maximum(-(-counts // CHUNK), 1)
    tile = jnp.repeat(lax.iota(jnp.int32, tiles), per_tile, total_repeat_length=steps)
    chunk = lax.iota(jnp.int32, steps) - (jnp.cumsum(per_tile) - per_tile)[tile]

    def gather_block(block):
        tile, chunk = block
        place = chunk[:, None] * CHUNK + lax.iota(jnp.int32, CHUNK)
        listed = place < counts[tile][:, None]
        row = rows[jnp.where(listed, starts[tile][:, None] + place, 0)]
        gathered = jnp.where(listed[..., None], table[row], 0.0)
        centre = jnp.stack(tile_centres(tile, spec), -1)
        entries = jnp.concatenate(
            [
                gathered[..., :2] - centre[:, None],
                gathered[..., 2:LOG_OPACITY],
                jnp.where(listed, gathered[..., LOG_OPACITY], UNLISTED)[..., None],
                jnp.zeros((*row.shape, _ROWS - GEOMETRY), table.dtype),
                gathered[..., GEOMETRY : GEOMETRY + feature_count(table, spec)],
            ],
            -1,
        )
        return row, listed, entries.swapaxes(1, 2)

    gathered = lax.map(gather_block, (_in_blocks(tile), _in_blocks(chunk)))
    return tile, *(values.reshape(steps, *values.shape[2:]) for values in gathered)


def _in_blocks(values):
    """[S, ...] to [blocks, at most `BLOCK_STEPS`, ...]."""
    return values.reshape(-(-values.shape[0] // BLOCK_STEPS), -1, *values.shape[1:])


def _check(table, tile_size, steps, tiles, capacity):
    if table.dtype != jnp.float32:
        raise ValueError(f"backend: the TPU kernel needs float32, got {table.dtype}; use 'xla'")
    if tile_size > TILE_SIZE_MAX:
        raise ValueError(
            f"tile_size: the TPU kernel takes at most {TILE_SIZE_MAX} pixels, got {tile_size}"
        )
    if steps > STEPS_MAX:
        raise ValueError(
            f"capacity: {capacity} entries in {tiles} tiles are {steps} grid steps, at most "
            f"{STEPS_MAX} fit into scalar memory; lower capacity, or render fewer cameras per call"
        )


def _per_step(*block):
    return pl.BlockSpec((1, *block), lambda step, tile: (step, 0, 0))


def _per_tile(*block):
    return pl.BlockSpec((1, *block), lambda step, tile: (tile[step], 0, 0))


def _constant(*block):
    return pl.BlockSpec(block, lambda step, tile: (0, 0))
