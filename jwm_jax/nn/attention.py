"""Scaled dot-product attention under a mask, and the choice of its implementation.

softmax(q k^T / sqrt(d)) v with the softmax in float32. The implementation is chosen by name:

    xla        rectangles without masked logits, each with all its logits in memory
    blockwise  running softmax over blocks of keys, no array of logits, in XLA (any platform)
    cudnn      rectangles by cuDNN's fused kernel: NVIDIA GPU, 16-bit, head_dim a multiple of 8
    splash     rectangles by JAX's Pallas kernel for TPU
    auto       for the platform a program is lowered for, not the one it is traced on: cudnn on cuda
               and splash on tpu where they take the arrays, else xla up to `BLOCKWISE_FROM` logits
               a head and blockwise beyond

Which queries see which keys is said in `masks`.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jwm_jax.nn.attention_blockwise import blockwise_attention
from jwm_jax.nn.attention_cudnn import cudnn_attention, cudnn_takes
from jwm_jax.nn.attention_splash import splash_attention, splash_takes
from jwm_jax.nn.masks import (
    FrameMask,
    Full,
    Mask,
    Padded,
    count_frames,
    frame_tokens,
    key_lengths,
)
from jwm_jax.nn.rectangles import attend_rectangles

Implementation = Literal["auto", "xla", "blockwise", "cudnn", "splash"]
Heads = Float[jax.Array, "b t heads d"]
Padding = Float[jax.Array, "b padded heads d"]
Queries = Float[jax.Array, "b q heads d"]
Keys = Float[jax.Array, "b k heads d"]
Rectangle = Callable[..., Queries]
Attention = Callable[[Queries, Keys, Keys, Mask], Queries]

BLOCKWISE_FROM = 2048**2
"""Queries times keys from which `auto` computes blockwise where no kernel fits."""


def attention(
    queries: Queries,
    keys: Keys,
    values: Keys,
    mask: Mask = Full(),  # noqa: B008, a frozen value
    *,
    implementation: Implementation = "auto",
) -> Queries:
    """Attention of every query to the keys it may see.

    Args:
        queries: [batch, queries, heads, head_dim].
        keys: [batch, keys, heads, head_dim].
        values: as the keys.
        mask: which queries see which keys; every query must see at least one.
        implementation: see above.

    Returns:
        As the queries.

    Raises:
        ValueError: when the sequences are not whole frames of the mask, or the implementation does
            not take the arrays.
    """
    if isinstance(mask, Padded):
        bare = (_strip(x, mask.tokens, mask.valid) for x in (queries, keys, values))
        out = attention(*bare, mask.mask, implementation=implementation)
        return _pad(out, mask.tokens, mask.valid)
    if isinstance(mask, FrameMask):
        frame_tokens(mask.matrix, queries.shape[1], keys.shape[1])
    if implementation != "auto":
        return IMPLEMENTATIONS[implementation](queries, keys, values, mask)
    logits = queries.shape[1] * keys.shape[1]
    default = IMPLEMENTATIONS["blockwise" if logits >= BLOCKWISE_FROM else "xla"]
    kernels = {}
    if cudnn_takes(queries):
        kernels["cuda"] = IMPLEMENTATIONS["cudnn"]
    if splash_takes(queries, keys):
        kernels["tpu"] = IMPLEMENTATIONS["splash"]
    if not kernels:
        return default(queries, keys, values, mask)
    return jax.lax.platform_dependent(queries, keys, values, mask, **kernels, default=default)


def _by_rectangles(attend: Rectangle) -> Attention:
    """Attention under any mask by one that knows key lengths at most."""

    def masked(queries: Queries, keys: Keys, values: Keys, mask: Mask) -> Queries:
        if isinstance(mask, FrameMask):
            return attend_rectangles(attend, queries, keys, values, mask.matrix)
        lengths = jnp.broadcast_to(key_lengths(mask, keys.shape[1]), queries.shape[:1])
        return attend(queries, keys, values, lengths)

    return masked


def _xla(
    queries: Queries, keys: Keys, values: Keys, lengths: Int[jax.Array, "b"] | None = None
) -> Queries:
    return jax.nn.dot_product_attention(
        queries, keys, values, key_value_seq_lengths=lengths, implementation="xla"
    )


IMPLEMENTATIONS: dict[str, Attention] = {
    "xla": _by_rectangles(_xla),
    "blockwise": blockwise_attention,
    "cudnn": _by_rectangles(cudnn_attention),
    "splash": _by_rectangles(splash_attention),
}


def _strip(x: Padding, tokens: int, valid: int) -> Heads:
    frames = count_frames(x.shape[1], tokens)
    return x.reshape(x.shape[0], frames, tokens, *x.shape[2:])[:, :, :valid].reshape(
        x.shape[0], frames * valid, *x.shape[2:]
    )


def _pad(x: Heads, tokens: int, valid: int) -> Padding:
    framed = x.reshape(x.shape[0], -1, valid, *x.shape[2:])
    padded = jnp.pad(framed, ((0, 0), (0, 0), (0, tokens - valid), (0, 0), (0, 0)))
    return padded.reshape(x.shape[0], -1, *x.shape[2:])
