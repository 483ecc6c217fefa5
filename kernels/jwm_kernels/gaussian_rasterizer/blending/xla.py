"""Blending in plain XLA operations: runs on every platform, and is tuned for CPUs.

Forward, per pixel, front to back over the splats of its tile:

    alpha = min(max_alpha, exp(ln o + A dx^2 + C (dy + s dx)^2)),   not counted under 1/255
    T' = T (1 - alpha);  if T' <= 1e-4 the pixel is finished and this splat is not counted
    out += w f;  w = alpha T = T - T'

Backward walks in the same order. With R = out . g_out + T_end g_T known per pixel, what remains of
R behind a splat is a running difference, so no list of counted splats is needed:

    remaining -= w (f . g_out)
    d loss / d ln alpha = w (f . g_out - remaining / T'),   since alpha / (1 - alpha) = w / T'

Transmittances before and after a splat say all that the sums need: whether it counted (w > 0),
whether its alpha was limited (T' = T (1 - max_alpha)), and its weight. So the loop keeps one array
a splat, and evaluates each exponential once; w carries an error of 6e-8 T.

The sums of that over a tile's pixels, weighted by 1, x, y, x^2, x y, y^2 in tile coordinates, give
the gradients of all six geometric columns after a shift to the splat's centre.

Tiles are sorted by list length and advance together in groups, so that every operation is wide
enough for vector units and threads; several splats are unrolled per loop step. The sign of T marks
finished pixels; a group stops when all of its pixels have.
"""

import jax.numpy as jnp
from jax import lax

from jwm_kernels.gaussian_rasterizer.constants import TRANSMITTANCE_MIN
from jwm_kernels.gaussian_rasterizer.gaussian_terms import (
    geometry_terms,
    limited_alpha,
    log_alpha,
    total_to_blend,
)
from jwm_kernels.gaussian_rasterizer.table import (
    GEOMETRY,
    LOG_OPACITY,
    UNLISTED,
    feature_count,
    local_centres,
    tile_centres,
    zero_of,
)

GROUP_PIXELS = 65_536
"""Pixels that advance together."""

UNROLL = 4
"""Splats per loop step; 8 is up to a tenth faster and compiles twice as long."""

_FEW_FEATURES = 8


def forward(table, rows, starts, counts, spec, *, group_pixels=GROUP_PIXELS, unroll=UNROLL):
    """Blends every tile.

    Args:
      table: [R, 6 + D] one row per splat and image, see `table`; [R, 6 + D + 2] with
        `spec.absgrad`.
      rows: int32 [M] row of each list entry.
      starts: int32 [T] first entry of each tile.
      counts: int32 [T] number of entries of each tile.
      spec: `BlendSpec`.
      group_pixels: pixels that advance together.
      unroll: splats per loop step.

    Returns:
      features [T, D, P] and transmittance [T, P], P pixels of a tile row by row.
    """
    features = feature_count(table, spec)
    pixels = spec.tile_size**2
    groups = tile_groups(counts, pixels, group_pixels)
    zero = zero_of(table, starts)

    def one_group(tiles):
        start, count = tile_lists(tiles, starts, counts)
        x, y = pixel_centres(tiles, spec, table.dtype)
        longest = jnp.max(count)

        def alive(carry):
            step, transmittance, _ = carry
            return (step * unroll < longest) & jnp.any(transmittance > 0)

        def advance(carry):
            step, transmittance, out = carry
            _, entries, _ = list_entries(table, rows, start, count, step, unroll)
            values, weights = _values(entries, features), []
            for k in range(unroll):
                before, transmittance = transmittance, behind(entries, k, x, y, transmittance, spec)
                weights.append(jnp.abs(before) - jnp.abs(transmittance))
            if features <= _FEW_FEATURES:
                for k, weight in enumerate(weights):
                    out = out + values[:, k, :, None] * weight[:, None, :]
            else:
                out = out + _einsum("wuc,wup->wcp", values, jnp.stack(weights, 1))
            return step + 1, transmittance, out

        shape = (tiles.shape[0], pixels)
        first = (
            zero_of(starts, starts).astype(jnp.int32),
            jnp.ones(shape, table.dtype) + zero,
            jnp.zeros((shape[0], features, pixels), table.dtype) + zero,
        )
        _, transmittance, out = lax.while_loop(alive, advance, first)
        return jnp.abs(transmittance), out

    transmittance, out = lax.map(one_group, groups)
    place = places(groups, starts.shape[0])
    return (
        out.reshape(groups.size, features, pixels)[place],
        transmittance.reshape(groups.size, pixels)[place],
    )


def backward(
    table,
    rows,
    starts,
    counts,
    out,
    transmittance,
    grad_out,
    grad_transmittance,
    spec,
    *,
    group_pixels=GROUP_PIXELS,
    unroll=UNROLL,
):
    """Gradient of the table.

    Args:
      table: as in `forward`, and so `rows`, `starts`, `counts`, `spec`, `group_pixels`, `unroll`.
      rows: row of each entry.
      starts: first entry of each tile.
      counts: number of entries of each tile.
      out: [T, D, P] what `forward` returned.
      transmittance: [T, P] what `forward` returned.
      grad_out: [T, D, P] gradient of the loss.
      grad_transmittance: [T, P] gradient of the loss.
      spec: `BlendSpec`.
      group_pixels: pixels that advance together.
      unroll: splats per loop step.

    Returns:
      gradient of the shape of `table`; with `spec.absgrad` the last two columns are the sums over
      pixels of |d loss / d mean x| and |d loss / d mean y|.
    """
    features = feature_count(table, spec)
    size = spec.tile_size
    pixels = size**2
    groups = tile_groups(counts, pixels, group_pixels)
    zero = zero_of(table, starts)
    local_x, local_y = local_centres(size, table.dtype)
    monomials = jnp.stack(
        [
            jnp.ones(pixels, table.dtype),
            local_x,
            local_y,
            local_x * local_x,
            local_x * local_y,
            local_y * local_y,
        ],
        1,
    )
    remaining_all = total_to_blend(out, transmittance, grad_out, grad_transmittance)
    least = 1 - table.dtype.type(spec.max_alpha)  # of T' / T, reached where alpha is limited

    def one_group(gradient, tiles):
        start, count = tile_lists(tiles, starts, counts)
        x, y = pixel_centres(tiles, spec, table.dtype)
        centre_x, centre_y = tile_centres(tiles[:, None], spec, table.dtype)
        longest = jnp.max(count)
        real = jnp.minimum(tiles, starts.shape[0] - 1)
        grad_tile = grad_out[real]

        def alive(carry):
            step, transmittance, _, _ = carry
            return (step * unroll < longest) & jnp.any(transmittance > 0)

        def advance(carry):
            step, transmittance, remaining, gradient = carry
            row, entries, listed = list_entries(table, rows, start, count, step, unroll)
            values = _values(entries, features)
            weights, grads, absolute = [], [], []
            for k in range(unroll):
                before, transmittance = transmittance, behind(entries, k, x, y, transmittance, spec)
                weight = jnp.abs(before) - jnp.abs(transmittance)
                if features <= _FEW_FEATURES:
                    value = sum(values[:, k, c, None] * grad_tile[:, c] for c in range(features))
                else:
                    value = _einsum("wc,wcp->wp", values[:, k], grad_tile)
                remaining = remaining - weight * value
                grad = weight * (value - remaining / jnp.abs(transmittance))
                grad = jnp.where(transmittance > before * least, grad, 0.0)
                grads.append(grad)
                weights.append(weight)
                if spec.absgrad:
                    absolute.append(_absolute_gradient(entries, k, x, y, grad))
            sums = _einsum("wup,pk->wuk", jnp.stack(grads, 1), monomials)
            if features <= _FEW_FEATURES:
                each = [_einsum("wp,wcp->wc", weight, grad_tile) for weight in weights]
                grad_features = jnp.stack(each, 1)
            else:
                grad_features = _einsum("wup,wcp->wuc", jnp.stack(weights, 1), grad_tile)
            parts = [_geometry_gradient(entries, sums, centre_x, centre_y), grad_features]
            if spec.absgrad:
                parts.append(jnp.stack(absolute, 1))
            grad_rows = jnp.concatenate(parts, -1)
            grad_rows = jnp.where(listed[:, :, None], grad_rows, 0.0)
            gradient = gradient.at[row.reshape(-1)].add(grad_rows.reshape(-1, table.shape[1]))
            return step + 1, transmittance, remaining, gradient

        first = (
            zero_of(starts, starts).astype(jnp.int32),
            jnp.ones((tiles.shape[0], pixels), table.dtype) + zero,
            remaining_all[real],
            gradient,
        )
        return lax.while_loop(alive, advance, first)[3], None

    return lax.scan(one_group, jnp.zeros_like(table) + zero, groups)[0]


def _geometry_gradient(entries, sums, centre_x, centre_y):
    """Gradient of the six geometric columns from pixel sums in tile coordinates.

    With u = dx and v = dy + s dx, both linear in the tile coordinates (x, y): u = u0 + x and
    v = v0 + y + s x, where u0, v0 belong to the tile's centre. Forming v0 first keeps the result
    accurate for long thin splats, whose dy and s dx nearly cancel.
    """
    mean_x, mean_y, a, slope, c = (entries[:, :, k] for k in range(5))
    s1, sx, sy, sxx, sxy, syy = (sums[:, :, k] for k in range(6))
    u0 = centre_x - mean_x
    v0 = centre_y - mean_y + slope * u0
    su = sx + u0 * s1
    vx = sy + slope * sx
    sv = vx + v0 * s1
    suu = sxx + u0 * (2 * sx + u0 * s1)
    xv = sxy + slope * sxx
    suv = xv + v0 * sx + u0 * sv
    svv = syy + slope * (2 * sxy + slope * sxx) + v0 * (2 * vx + v0 * s1)
    return jnp.stack([-2 * (a * su + c * slope * sv), -2 * c * sv, suu, 2 * c * suv, svv, s1], -1)


def _absolute_gradient(entries, k, x, y, grad):
    """[W, 2] sums over the pixels of a tile of |d loss / d mean x| and |d loss / d mean y|."""
    _, dx, v = _log_alpha(entries, k, x, y)
    shape = (entries[:, k, j, None] for j in (2, 3, 4))
    terms = geometry_terms(grad, dx, v, *shape)[:2]
    return jnp.stack([jnp.sum(jnp.abs(term), -1) for term in terms], -1)


def _values(entries, features):
    return entries[:, :, GEOMETRY : GEOMETRY + features]


def _log_alpha(entries, k, x, y):
    """ln alpha of splat k of each tile at its pixels, before any limit, and dx and v there."""
    mean_x, mean_y, *shape = (entries[:, k, j, None] for j in range(GEOMETRY))
    dx = x - mean_x
    power, v = log_alpha(dx, y - mean_y, *shape)
    return power, dx, v


def behind(entries, k, x, y, transmittance, spec):
    """Transmittance behind splat k of each tile; of the same magnitude if the splat does not count.

    It is negative from the splat on that ends the pixel.
    """
    alpha, _ = limited_alpha(jnp.exp(_log_alpha(entries, k, x, y)[0]), spec.max_alpha)
    after = transmittance * (1 - alpha)
    return jnp.where(after > TRANSMITTANCE_MIN, after, -jnp.abs(transmittance))


def list_entries(table, rows, start, count, step, unroll):
    """Rows, table entries and validity of `unroll` list entries of each tile of a group."""
    place = step * unroll + lax.iota(jnp.int32, unroll)
    listed = place[None] < count[:, None]
    row = rows[jnp.minimum(start[:, None] + place[None], rows.shape[0] - 1)]
    entries = table[row]
    log_opacity = jnp.where(listed, entries[:, :, LOG_OPACITY], UNLISTED)
    return row, entries.at[:, :, LOG_OPACITY].set(log_opacity), listed


def tile_groups(counts, pixels, group_pixels):
    """Tiles in order of falling list length, [groups, tiles per group]; the surplus is tile T."""
    tiles = counts.shape[0]
    groups = -(-tiles // max(1, group_pixels // pixels))
    per_group = -(-tiles // groups)
    order = jnp.argsort(-counts).astype(jnp.int32)
    surplus = jnp.full((groups * per_group - tiles,), tiles, jnp.int32)
    return jnp.concatenate([order, surplus]).reshape(groups, per_group)


def places(groups, tiles):
    """Where each tile stands in the flattened groups."""
    order = lax.iota(jnp.int32, groups.size)
    return jnp.zeros((tiles + 1,), jnp.int32).at[groups.reshape(-1)].set(order)[:tiles]


def tile_lists(tiles, starts, counts):
    """First entry and number of entries of the tiles of a group; none for surplus tiles."""
    real = jnp.minimum(tiles, starts.shape[0] - 1)
    return starts[real], jnp.where(tiles < starts.shape[0], counts[real], 0)


def pixel_centres(tiles, spec, dtype):
    """Pixel coordinates x, y [W, P] of the pixels of tiles."""
    local_x, local_y = local_centres(spec.tile_size, dtype)
    x, y = tile_centres(tiles[:, None], spec, dtype)
    return x + local_x, y + local_y


def _einsum(formula, *operands):
    return jnp.einsum(formula, *operands, precision=lax.Precision.HIGHEST)
