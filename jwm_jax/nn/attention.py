"""Scaled dot-product attention and the choice of its implementation.

softmax(q k^T / sqrt(d)) v with the softmax in float32. On a GPU, 16-bit inputs without a mask go to
cuDNN's fused kernel; everything else is XLA's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float


def attention(
    queries: Float[jax.Array, "b q heads d"],
    keys: Float[jax.Array, "b k heads d"],
    values: Float[jax.Array, "b k heads d"],
    visible: Bool[jax.Array, "#q k"] | None = None,
) -> Float[jax.Array, "b q heads d"]:
    """Attention of every query to the keys it may see.

    Args:
        queries: [batch, queries, heads, head_dim].
        keys: [batch, keys, heads, head_dim].
        values: as the keys.
        visible: True where a query may see a key, the same for the whole batch; None: everywhere.

    Returns:
        As the queries.
    """
    mask = None if visible is None else visible[None, None]
    fused = (
        mask is None
        and jax.default_backend() == "gpu"
        and queries.dtype in (jnp.bfloat16, jnp.float16)
        and queries.shape[-1] % 8 == 0
    )
    return jax.nn.dot_product_attention(
        queries, keys, values, mask=mask, implementation="cudnn" if fused else "xla"
    )
