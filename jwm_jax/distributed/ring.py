"""Ring attention: each device keeps its queries while keys and values travel round a mesh axis.

With n devices there are n turns. In turn r device i holds the keys of device i - r and attends to
them blockwise; the results of all turns, normalised each by its own sum of exponentials e^L_r, are
one softmax:

    L = log sum_r e^L_r,   out = sum_r e^(L_r - L) out_r.

In the backward pass keys and values travel again, together with their gradients, which are home
after n turns. The next turn's keys are under way while this turn's are used. Every device holds
tokens of every frame, so that all have the same work whatever frames the mask hides.

Source: Ring Attention (arXiv 2310.01889); the mathematics of a turn is in
`jwm_jax.nn.attention_blockwise`.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jwm_jax.nn.attention_blockwise import (
    HIDDEN,
    Plan,
    attend_blocks,
    attend_blocks_backward,
    make_plan,
)
from jwm_jax.nn.masks import FrameLengths, FrameMask, Padded

Framed = Float[jax.Array, "b f s heads d"]
FramedKeys = Float[jax.Array, "b kf s heads d"]


@dataclass(frozen=True)
class Ring:
    """What all turns share; static and hashable.

    Attributes:
        axis: mesh axis round which keys travel.
        ways: devices along it.
        plan: blocks of a device's queries and of another's keys.
        tokens: tokens of a frame on a device.
        valid: tokens of a frame, over all devices, that are there.
    """

    axis: str
    ways: int
    plan: Plan
    tokens: int
    valid: int

    def there(self, turn: jax.Array) -> Bool[jax.Array, "s"] | None:
        """Tokens of a frame that are there on the device whose keys are here; None: all."""
        if self.valid == self.ways * self.tokens:
            return None
        source = (jax.lax.axis_index(self.axis) - turn) % self.ways
        return source * self.tokens + jnp.arange(self.tokens) < self.valid

    def onward(self, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """To the next device."""
        path = [(i, (i + 1) % self.ways) for i in range(self.ways)]
        return jax.lax.ppermute(arrays, self.axis, path)

    def visible(
        self, turn: jax.Array, lengths: Int[jax.Array, "#b"] | None
    ) -> Bool[jax.Array, "#b k"] | None:
        """Which of the keys here are there, and in a visible frame; None: all."""
        there, frames = self.there(turn), self.plan.keys.frames
        if there is None and lengths is None:
            return None
        in_frame = jnp.ones(self.tokens, bool) if there is None else there
        of_frame = jnp.ones((1, frames), bool)
        if lengths is not None:
            of_frame = jnp.arange(frames) < lengths[:, None]
        return (of_frame[:, :, None] & in_frame).reshape(len(of_frame), -1)


def ring_attention(
    queries: Framed,
    keys: FramedKeys,
    values: FramedKeys,
    mask: FrameMask | FrameLengths | Padded,
    *,
    axis: str,
    ways: int,
) -> Framed:
    """Attention over frames whose tokens are split over a mesh axis; call it within `shard_map`.

    Args:
        queries: this device's [batch, frames, tokens, heads, head_dim].
        keys: this device's [batch, frames of keys, tokens, heads, head_dim].
        values: as the keys.
        mask: over the frames; `Padded` counts the tokens of all devices.
        axis: mesh axis.
        ways: devices along it.

    Returns:
        As the queries; zero where they are padding.
    """
    shape, tokens = queries.shape, queries.shape[2]
    valid = ways * tokens
    if isinstance(mask, Padded):
        mask, valid = mask.mask, mask.valid
    lengths = None
    matrix = np.ones((1, 1), bool)
    if isinstance(mask, FrameLengths):
        lengths = jnp.atleast_1d(jnp.asarray(mask.lengths, jnp.int32))
    else:
        matrix = mask.matrix
    if matrix.size == 1:  # one visible rectangle: say of which frames it consists
        matrix = np.ones((shape[1], keys.shape[1]), bool)
    flat = [x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (queries, keys, values)]
    plan = make_plan(matrix, flat[0].shape[1], flat[1].shape[1])
    ring = Ring(axis, ways, plan, tokens, valid)
    out = _attend(ring, *flat, lengths).reshape(shape)
    own = ring.there(jnp.zeros((), jnp.int32))
    return out if own is None else jnp.where(own[:, None, None], out, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring, queries, keys, values, lengths):
    return _attend_fwd(ring, queries, keys, values, lengths)[0]


def _attend_fwd(ring, queries, keys, values, lengths):
    def turn(carry, r):
        here, out, log_sum = carry
        following = ring.onward(here)
        out_r, log_sum_r = attend_blocks(ring.plan, queries, *here, ring.visible(r, lengths))
        total = jnp.logaddexp(log_sum, log_sum_r)
        before, fresh = (jnp.exp(part - total)[..., None] for part in (log_sum, log_sum_r))
        return (following, before * out + fresh * out_r, total), None

    exact = jnp.promote_types(queries.dtype, jnp.float32)
    nothing = jnp.zeros(queries.shape, exact), jnp.full(queries.shape[:-1], HIDDEN, exact)
    (_, out, log_sum), _ = jax.lax.scan(turn, ((keys, values), *nothing), jnp.arange(ring.ways))
    out = out.astype(queries.dtype)
    return out, (queries, keys, values, lengths, out, log_sum)


def _attend_bwd(ring, saved, cotangent):
    queries, keys, values, lengths, out, log_sum = saved
    exact = log_sum.dtype
    overlap = jnp.sum(out.astype(exact) * cotangent.astype(exact), -1)

    def turn(carry, r):
        here, dq, dk, dv = carry
        following = ring.onward(here)
        more = attend_blocks_backward(
            ring.plan, queries, *here, ring.visible(r, lengths), log_sum, overlap, cotangent
        )
        return (following, dq + more[0], *ring.onward((dk + more[1], dv + more[2]))), None

    start = ((keys, values), *(jnp.zeros(x.shape, exact) for x in (queries, keys, values)))
    (_, *parts), _ = jax.lax.scan(turn, start, jnp.arange(ring.ways))
    gradients = (g.astype(x.dtype) for g, x in zip(parts, saved[:3], strict=True))
    return *gradients, None


_attend.defvjp(_attend_fwd, _attend_bwd)
