"""Attention by JAX's splash attention kernel (Pallas), for TPUs.

The kernel wants sequences in whole blocks. They are filled up, and what is not there, fill and keys
behind `lengths` alike, belongs to another segment than the queries, so that it is not seen.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Float, Int

LANES = 128
BLOCK = 1024
"""Most queries and keys of a block, a multiple of `LANES`."""
FEWEST = 512
"""Queries times keys below which XLA's attention serves as well: `FEWEST`^2."""

Queries = Float[jax.Array, "b q heads d"]
Keys = Float[jax.Array, "b k heads d"]


def splash_takes(queries: Queries, keys: Keys) -> bool:
    """Whether the kernel is worth its filling up: half a block of logits or more."""
    floats = queries.dtype in (jnp.bfloat16, jnp.float32)
    return floats and queries.shape[1] * keys.shape[1] >= FEWEST**2


def splash_attention(
    queries: Queries, keys: Keys, values: Keys, lengths: Int[jax.Array, "b"] | None = None
) -> Queries:
    """Attention of every query to the first `lengths` keys.

    Args:
        queries: [batch, queries, heads, head_dim], bfloat16 or float32.
        keys: [batch, keys, heads, head_dim].
        values: as the keys.
        lengths: visible keys of each row of the batch; None: all.

    Returns:
        As the queries.
    """
    (q_block, q_size), (k_block, k_size) = (_blocks(x.shape[1]) for x in (queries, keys))
    visible = lengths if lengths is not None else jnp.full(keys.shape[:1], keys.shape[1])
    there = jnp.arange(k_size) < visible[:, None]
    segments = splash.SegmentIds(jnp.ones((len(there), q_size), jnp.int32), there.astype(jnp.int32))
    kernel = _kernel(queries.shape[2], q_size, k_size, q_block, k_block)
    queries = queries * jnp.asarray(queries.shape[-1] ** -0.5, queries.dtype)
    q, k, v = (_heads_first(x, n) for x, n in ((queries, q_size), (keys, k_size), (values, k_size)))
    if lengths is None and k_size == keys.shape[1]:
        out = jax.vmap(kernel)(q, k, v)
    else:
        out = jax.vmap(kernel)(q, k, v, segments)
    return out[:, :, : queries.shape[1]].swapaxes(1, 2)


def _kernel(heads: int, queries: int, keys: int, q_block: int, k_block: int):
    mask = splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads)
    sizes = splash.BlockSizes(
        block_q=q_block,
        block_kv=k_block,
        block_kv_compute=k_block,
        block_q_dkv=q_block,
        block_kv_dkv=k_block,
        block_kv_dkv_compute=k_block,
        block_q_dq=q_block,
        block_kv_dq=k_block,
    )
    return splash.make_splash_mha_single_device(mask, block_sizes=sizes)


def _blocks(length: int) -> tuple[int, int]:
    """Block and filled-up length: as few blocks as `BLOCK` allows, of equal size."""
    count = -(-length // BLOCK)
    block = -(-length // (count * LANES)) * LANES
    return block, count * block


def _heads_first(x: Float[jax.Array, "b t heads d"], length: int) -> jax.Array:
    """[batch, heads, filled-up length, head_dim]."""
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
    return x.swapaxes(1, 2)
