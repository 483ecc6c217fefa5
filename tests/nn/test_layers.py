"""Layers against their formulas, their axis names, and their types."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.nn.attention import attention
from jwm_jax.nn.layers import Einsum, LayerNorm, Linear, Mlp, RMSNorm, sinusoidal_embedding
from jwm_jax.nn.masks import KeyLengths


def test_linear_and_einsum_agree_with_numpy_and_name_their_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    layer = Linear(5, ("embed", "mlp"))
    boxed = layer.init(jax.random.key(1), x)["params"]
    assert boxed["kernel"].names == ("embed", "mlp") and boxed["bias"].names == ("mlp",)
    params = nn.unbox(boxed)
    expected = np.asarray(x) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)
    heads = Einsum("...d,dhk->...hk", (4, 2, 3), ("embed", "heads", "head_dim"))
    params = nn.unbox(heads.init(jax.random.key(2), x)["params"])
    expected = np.einsum("bsd,dhk->bshk", x, params["kernel"])
    np.testing.assert_allclose(heads.apply({"params": params}, x), expected, atol=1e-5)


def test_norms_are_float32_inside_and_keep_the_asked_type():
    x = (1000.0 + jax.random.normal(jax.random.key(0), (3, 64))).astype(jnp.bfloat16)
    for layer in (LayerNorm(dtype=jnp.bfloat16), RMSNorm(dtype=jnp.bfloat16)):
        params = layer.init(jax.random.key(1), x)
        assert layer.apply(params, x).dtype == jnp.bfloat16
    wide = jax.random.normal(jax.random.key(3), (3, 64))
    normalised = LayerNorm(affine=False).apply({}, wide)
    np.testing.assert_allclose(normalised.mean(-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(normalised.std(-1), 1.0, atol=1e-4)


def test_mlp_computes_in_its_type_and_keeps_float32_parameters():
    x = jnp.ones((2, 4))
    layer = Mlp(8, 4, dtype=jnp.bfloat16)
    params = nn.unbox(layer.init(jax.random.key(0), x))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert layer.apply(params, x).dtype == jnp.bfloat16


def test_sinusoid_has_cosines_first():
    embedding = sinusoidal_embedding(jnp.asarray([0.0, 2.0]), 8)
    np.testing.assert_array_equal(embedding[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(embedding[1, 0], np.cos(2.0), rtol=1e-5)
    np.testing.assert_allclose(embedding[1, 5], np.sin(0.2), rtol=1e-5)


def test_a_masked_key_has_no_influence():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 3, 2, 8)) for i in range(3))
    out = attention(q, k, v, KeyLengths(2))
    np.testing.assert_allclose(out, attention(q, k[:, :2], v[:, :2]), atol=1e-6)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k)[..., :2] / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(out, np.einsum("bhqk,bkhd->bqhd", weights, v[:, :2]), atol=1e-5)
