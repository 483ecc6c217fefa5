"""Attention by blocks with a running softmax, forward and backward, in plain XLA.

For a block of queries the maximum m, the sum l and the weighted sum o of what has been seen so far
are kept; a block of keys with logits s = q k^T / sqrt(d) changes them to

    m' = max(m, max s),  l' = l e^(m - m') + sum e^(s - m'),  o' = o e^(m - m') + e^(s - m') v.

At the end out = o / l and L = m + log l. The backward pass keeps only out and L and computes each
block's probabilities p = e^(s - L) again:

    D = sum out dout,   ds = p (dout v^T - D),   dq = ds k,   dk = ds^T q,   dv = p^T dout.

No array of all logits exists. Blocks are frames that see the same, or equal parts of one. Pairs of
blocks that the mask hides are never visited, nor at run time those behind the last visible key.
Softmax and sums are float32 (float64 for float64 inputs).

Source: FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jwm_jax.nn.masks import FrameMask, Mask, frame_tokens, key_lengths

BLOCK = 512
"""Most tokens of a block."""
FEWEST = 128
"""Tokens below which a block takes in more frames than see the same, and hides logits instead."""

HIDDEN = -1e30
"""Logit of what is not visible; finite, so that a row that has seen nothing yet stays a number."""

Queries = Float[jax.Array, "b q heads d"]
Keys = Float[jax.Array, "b k heads d"]
LogSum = Float[jax.Array, "b q heads"]
Visible = Bool[jax.Array, "#b k"]


@dataclass(frozen=True)
class Tiling:
    """How one sequence is cut: `frames` frames of `tokens`, `group` frames or 1 / `split` a block.

    Attributes:
        frames: frames of the sequence.
        tokens: tokens of a frame.
        group: frames of a block; the last block may reach beyond the sequence.
        split: blocks of a frame; the last one may reach beyond it. Either is 1.
    """

    frames: int
    tokens: int
    group: int
    split: int

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return -(-self.tokens // self.split) * self.group

    @property
    def count(self) -> int:
        """Blocks of the sequence."""
        return -(-self.frames // self.group) * self.split

    @property
    def exact(self) -> bool:
        """Whether blocks hold nothing but tokens of the sequence."""
        return self.count * self.block == self.frames * self.tokens

    def cut(self, x: Shaped[jax.Array, "b t *rest"]) -> Shaped[jax.Array, "n b p *rest"]:
        """[batch, tokens, ...] -> [blocks, batch, tokens of a block, ...], filled with zeros."""
        batch, rest = x.shape[0], x.shape[2:]
        x = x.reshape(batch, self.frames, self.tokens, *rest)
        spare = (self.count // self.split * self.group - self.frames, 0)
        if self.split > 1:
            spare = (0, self.block * self.split - self.tokens)
        if any(spare):
            x = jnp.pad(x, ((0, 0), (0, spare[0]), (0, spare[1]), *((0, 0),) * len(rest)))
        return jnp.moveaxis(x.reshape(batch, self.count, self.block, *rest), 1, 0)

    def join(self, x: Shaped[jax.Array, "n b p *rest"]) -> Shaped[jax.Array, "b t *rest"]:
        """The inverse of `cut`."""
        batch, rest = x.shape[1], x.shape[3:]
        x = jnp.moveaxis(x, 0, 1)
        if self.split > 1:
            x = x.reshape(batch, self.frames, -1, *rest)[:, :, : self.tokens]
        else:
            x = x.reshape(batch, -1, self.tokens, *rest)[:, : self.frames]
        return x.reshape(batch, self.frames * self.tokens, *rest)


@dataclass(frozen=True)
class Plan:
    """A mask cut into blocks: static and hashable.

    Attributes:
        queries: how the queries are cut.
        keys: how the keys are cut.
        bits: the mask's matrix over frames, packed.
    """

    queries: Tiling
    keys: Tiling
    bits: bytes


class Pairs(NamedTuple):
    """The pairs of blocks that are visited, ordered by block of keys.

    Attributes:
        query: block of queries of each pair.
        key: block of keys of each pair.
        until: pairs up to and with each block of keys.
        partial: [pairs, group, group] what a pair's frames see; None where they see all.
    """

    query: Int[np.ndarray, "pairs"]
    key: Int[np.ndarray, "pairs"]
    until: Int[np.ndarray, "key_blocks"]
    partial: Bool[np.ndarray, "pairs query_group key_group"] | None


class State(NamedTuple):
    """The running softmax of every block of queries.

    Attributes:
        maximum: of the logits, [blocks, batch, heads, tokens].
        total: sum of exponentials, as the maximum.
        weighted: weighted sum of values, [blocks, batch, heads, tokens, head_dim].
    """

    maximum: jax.Array
    total: jax.Array
    weighted: jax.Array


def make_plan(
    matrix: Bool[np.ndarray, "query_frames key_frames"], queries: int, keys: int, block: int = BLOCK
) -> Plan:
    """Cut a mask over frames into blocks of at most `block` tokens.

    Args:
        matrix: the mask.
        queries: tokens of the queries.
        keys: tokens of the keys.
        block: most tokens of a block.
    """
    sizes = frame_tokens(matrix, queries, keys)
    tilings = []
    for axis, tokens in enumerate(sizes):
        most = max(block // tokens, 1)
        group = _largest_divisor(_repeats(matrix if axis == 0 else matrix.T), most)
        if group * tokens < min(FEWEST, block) or matrix.all():
            group = min(most, matrix.shape[axis])
        tilings.append(Tiling(matrix.shape[axis], tokens, group, -(-tokens // block)))
    return Plan(*tilings, np.packbits(matrix).tobytes())


def _repeats(rows: Bool[np.ndarray, "rows columns"]) -> int:
    """The largest number n such that rows come in runs of n equal ones: frames of a chunk."""
    change = np.flatnonzero((rows[1:] != rows[:-1]).any(1)) + 1
    return math.gcd(len(rows), *change.tolist())


def _largest_divisor(number: int, most: int) -> int:
    return max(n for n in range(1, min(number, most) + 1) if number % n == 0)


@lru_cache(maxsize=64)
def visited_pairs(plan: Plan) -> Pairs:
    """The pairs of blocks of which some frame of queries sees some frame of keys."""
    rows, columns = plan.queries, plan.keys
    shape = (rows.frames, columns.frames)
    bits = np.unpackbits(np.frombuffer(plan.bits, np.uint8), count=math.prod(shape))
    whole = np.zeros(
        (-(-shape[0] // rows.group), rows.group, -(-shape[1] // columns.group), columns.group), bool
    )
    whole.reshape(whole.shape[0] * rows.group, -1)[: shape[0], : shape[1]] = bits.reshape(shape)
    tiles = whole.swapaxes(1, 2).repeat(rows.split, 0).repeat(columns.split, 1)
    key, query = np.nonzero(tiles.any((2, 3)).T)
    inner = tiles[query, key]
    until = np.searchsorted(key, np.arange(columns.count), side="right")
    as_index = [a.astype(np.int32) for a in (query, key, until)]
    return Pairs(*as_index, None if inner.all() else inner)


def blockwise_attention(
    queries: Queries, keys: Keys, values: Keys, mask: Mask, *, block: int = BLOCK
) -> Queries:
    """Attention without an array of logits.

    Args:
        queries: [batch, queries, heads, head_dim].
        keys: [batch, keys, heads, head_dim].
        values: as the keys.
        mask: over frames, or the number of visible leading keys.
        block: most tokens of a block.

    Returns:
        As the queries.
    """
    if isinstance(mask, FrameMask):
        matrix, visible = mask.matrix, None
    else:
        matrix = np.ones((1, 1), bool)
        lengths = key_lengths(mask, keys.shape[1]).reshape(-1, 1)
        visible = jnp.arange(keys.shape[1]) < lengths
    plan = make_plan(matrix, queries.shape[1], keys.shape[1], block)
    return _attend(plan, queries, keys, values, visible)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, queries, keys, values, visible):
    return attend_blocks(plan, queries, keys, values, visible)[0].astype(queries.dtype)


def _attend_fwd(plan, queries, keys, values, visible):
    out, log_sum = attend_blocks(plan, queries, keys, values, visible)
    out = out.astype(queries.dtype)
    return out, (queries, keys, values, visible, out, log_sum)


def _attend_bwd(plan, saved, cotangent):
    queries, keys, values, visible, out, log_sum = saved
    exact = log_sum.dtype
    overlap = jnp.sum(out.astype(exact) * cotangent.astype(exact), -1)
    parts = attend_blocks_backward(
        plan, queries, keys, values, visible, log_sum, overlap, cotangent
    )
    gradients = (g.astype(x.dtype) for g, x in zip(parts, saved[:3], strict=True))
    return *gradients, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def attend_blocks(
    plan: Plan, queries: Queries, keys: Keys, values: Keys, visible: Visible | None
) -> tuple[Queries, LogSum]:
    """The forward pass.

    Args:
        plan: what the mask says of frames.
        queries: [batch, queries, heads, head_dim].
        keys: [batch, keys, heads, head_dim].
        values: as the keys.
        visible: keys that are there, [batch or 1, keys]; None: all.

    Returns:
        Out in the softmax's precision, zero for a query that sees nothing, and the logarithm of its
        sum of exponentials L, `HIDDEN` for such a query.
    """
    pairs, there = visited_pairs(plan), _visible_blocks(plan, visible)
    q, k, v = _heads_first(plan, queries, keys, values)
    exact = jnp.promote_types(queries.dtype, jnp.float32)
    scale = queries.shape[-1] ** -0.5
    shape = q.shape[:-1]

    def visit(step, state: State) -> State:
        i, j = jnp.asarray(pairs.query)[step], jnp.asarray(pairs.key)[step]
        m, total, weighted = (_at(x, i) for x in state)
        seen = _seen(plan, pairs, there, step, j)
        logits = _product("bhqd,bhkd->bhqk", _at(q, i), _at(k, j), exact) * scale
        larger = jnp.maximum(m, jnp.max(logits, -1, initial=HIDDEN, where=seen))
        weights = jnp.exp(logits - larger[..., None])
        weights = weights if seen is True else jnp.where(seen, weights, 0.0)
        keep = jnp.exp(m - larger)
        total = total * keep + weights.sum(-1)
        fresh = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), _at(v, j), exact)
        changed = State(larger, total, weighted * keep[..., None] + fresh)
        return State(*(_put(x, new, i) for x, new in zip(state, changed, strict=True)))

    start = State(
        jnp.full(shape, HIDDEN, exact), jnp.zeros(shape, exact), jnp.zeros(q.shape, exact)
    )
    m, total, weighted = jax.lax.fori_loop(0, _visits(pairs, there), visit, start)
    safe = jnp.where(total > 0, total, 1.0)
    log_sum = jnp.where(total > 0, m + jnp.log(safe), HIDDEN)
    out = _tokens_first(plan.queries, weighted / safe[..., None])
    return out, _tokens_first(plan.queries, log_sum)


def attend_blocks_backward(
    plan: Plan,
    queries: Queries,
    keys: Keys,
    values: Keys,
    visible: Visible | None,
    log_sum: LogSum,
    overlap: LogSum,
    cotangent: Queries,
) -> tuple[Queries, Keys, Keys]:
    """The backward pass.

    Args:
        plan: as in the forward pass.
        queries: as in the forward pass.
        keys: as in the forward pass.
        values: as in the forward pass.
        visible: as in the forward pass.
        log_sum: L.
        overlap: D, the sum over head_dim of out times its cotangent.
        cotangent: of out.

    Returns:
        Gradients of queries, keys and values in the softmax's precision.
    """
    pairs, there = visited_pairs(plan), _visible_blocks(plan, visible)
    q, k, v = _heads_first(plan, queries, keys, values)
    do = jnp.moveaxis(plan.queries.cut(cotangent.astype(queries.dtype)), 2, 3)
    # queries that see nothing, those that fill a block up included, get no probability
    known = jnp.where(log_sum > HIDDEN, log_sum, -HIDDEN)
    big_l, big_d = (jnp.moveaxis(plan.queries.cut(x), 2, 3) for x in (known, overlap))
    exact = log_sum.dtype
    scale = queries.shape[-1] ** -0.5

    def visit(step, state):
        i, j = jnp.asarray(pairs.query)[step], jnp.asarray(pairs.key)[step]
        dq, dk, dv = state
        seen = _seen(plan, pairs, there, step, j)
        q_i, k_j, v_j, do_i = _at(q, i), _at(k, j), _at(v, j), _at(do, i)
        logits = _product("bhqd,bhkd->bhqk", q_i, k_j, exact) * scale
        p = jnp.exp(logits - _at(big_l, i)[..., None])
        p = p if seen is True else jnp.where(seen, p, 0.0)
        dp = _product("bhqd,bhkd->bhqk", do_i, v_j, exact)
        ds = (p * (dp - _at(big_d, i)[..., None]) * scale).astype(q.dtype)
        dq = _add(dq, _product("bhqk,bhkd->bhqd", ds, k_j, exact), i)
        dk = _add(dk, _product("bhqk,bhqd->bhkd", ds, q_i, exact), j)
        dv = _add(dv, _product("bhqk,bhqd->bhkd", p.astype(q.dtype), do_i, exact), j)
        return dq, dk, dv

    start = tuple(jnp.zeros(x.shape, exact) for x in (q, k, v))
    dq, dk, dv = jax.lax.fori_loop(0, _visits(pairs, there), visit, start)
    return (
        _tokens_first(plan.queries, dq),
        _tokens_first(plan.keys, dk),
        _tokens_first(plan.keys, dv),
    )


def _visible_blocks(plan: Plan, visible: Visible | None) -> jax.Array | None:
    """Which keys of each block are there, [blocks, batch or 1, tokens]; None where all are."""
    if visible is None:
        if plan.keys.exact:
            return None
        visible = jnp.ones((1, plan.keys.frames * plan.keys.tokens), bool)
    return plan.keys.cut(visible)


def _visits(pairs: Pairs, there: jax.Array | None) -> int | jax.Array:
    """Pairs up to the last block of keys in which any key is there."""
    if there is None or isinstance(there, np.ndarray):
        return len(pairs.query)
    some = there.any((1, 2))
    last = len(some) - 1 - jnp.argmax(some[::-1])
    return jnp.where(some.any(), jnp.asarray(pairs.until)[last], 0)


def _seen(plan, pairs, there, step, j) -> jax.Array | bool:
    """What a pair's queries see of its keys, [b or 1, 1, queries or 1, keys]; True: everything."""
    seen = True
    if pairs.partial is not None:
        tile = jnp.asarray(pairs.partial)[step]
        per_frame = (plan.queries.block // plan.queries.group, plan.keys.block // plan.keys.group)
        seen = tile.repeat(per_frame[0], 0).repeat(per_frame[1], 1)[None, None]
    if there is not None:
        seen = _at(there, j)[:, None, None, :] & seen
    return seen


def _heads_first(plan: Plan, queries: Queries, keys: Keys, values: Keys) -> list[jax.Array]:
    """Blocks [blocks, batch, heads, tokens, head_dim]."""
    cut = (plan.queries.cut(queries), plan.keys.cut(keys), plan.keys.cut(values))
    return [jnp.moveaxis(x, 2, 3) for x in cut]


def _tokens_first(tiling: Tiling, blocks: jax.Array) -> jax.Array:
    return tiling.join(jnp.moveaxis(blocks, 2, 3))


def _product(rule: str, a: jax.Array, b: jax.Array, exact) -> jax.Array:
    return jnp.einsum(rule, a, b, preferred_element_type=exact)


def _at(x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)


def _put(x: jax.Array, new: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, new, i, 0)


def _add(x: jax.Array, more: jax.Array, i: jax.Array) -> jax.Array:
    return _put(x, _at(x, i) + more, i)
