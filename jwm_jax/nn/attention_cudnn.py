"""Attention by cuDNN's fused kernel, for NVIDIA GPUs and 16-bit arrays.

`jax.nn.dot_product_attention` asks for cuDNN's version while it is traced, which fails on a machine
without CUDA. A program that is traced here for a GPU elsewhere (ahead of time, or `auto` on a CPU)
then binds the same operation with the oldest version it may meet; what is compiled does not depend
on it. The parameters are bound by name, since newer versions of JAX have more of them.
"""

import inspect

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax._src.lib import cuda_versions
from jaxtyping import Float, Int

OLDEST_VERSION = 90100
MAX_HEAD_DIM = 128
"""Beyond it only newer GPUs would do."""

Queries = Float[jax.Array, "b q heads d"]
Keys = Float[jax.Array, "b k heads d"]


def cudnn_takes(queries: Queries) -> bool:
    """Whether the kernel takes arrays of this type and head_dim."""
    small = queries.dtype in (jnp.bfloat16, jnp.float16)
    return small and queries.shape[-1] % 8 == 0 and queries.shape[-1] <= MAX_HEAD_DIM


def cudnn_attention(
    queries: Queries, keys: Keys, values: Keys, lengths: Int[jax.Array, "b"] | None = None
) -> Queries:
    """Attention of every query to the first `lengths` keys.

    Args:
        queries: [batch, queries, heads, head_dim], 16-bit.
        keys: [batch, keys, heads, head_dim].
        values: as the keys.
        lengths: visible keys of each row of the batch; None: all.

    Returns:
        As the queries.

    Raises:
        ValueError: when the kernel does not take the arrays.
    """
    if not cudnn_takes(queries):
        raise ValueError(
            "attention by cudnn needs bfloat16 or float16 and a head_dim that is a multiple of 8 "
            f"up to {MAX_HEAD_DIM}, got {queries.dtype} and {queries.shape[-1]}; choose auto, xla "
            "or blockwise."
        )
    if cuda_versions is not None:
        return jax.nn.dot_product_attention(
            queries, keys, values, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    unused = jnp.zeros(0, queries.dtype)
    whole = jnp.full(queries.shape[:1], queries.shape[1], jnp.int32)
    named = {
        "query": queries,
        "key": keys,
        "value": values,
        "q_seqlen": unused if lengths is None else whole,
        "kv_seqlen": unused if lengths is None else lengths,
        "scale": queries.shape[-1] ** -0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # no bias, no gradient of one
        "mask_type": fused.MaskType.NO_MASK if lengths is None else fused.MaskType.PADDING,
        "layout": fused.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
        "score_mod_args": (),
        "score_mod": None,
        "cudnn_version": OLDEST_VERSION,
        "return_residual": False,
    }
    wanted = inspect.signature(fused._dot_product_attention).parameters
    return fused._dot_product_attention(*(named.get(name, unused) for name in wanted))
