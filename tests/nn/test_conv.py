"""Strides and depthwise filters agree with plain convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.nn.conv import Conv


def parameters(layer, inputs):
    boxed = layer.init(jax.random.key(1), inputs)["params"]
    assert boxed["kernel"].names == (None, None, "conv_in", "conv_out")
    bias = jnp.arange(layer.features, dtype=jnp.float32)
    return {**nn.unbox(boxed), "bias": bias}


@pytest.mark.parametrize("shape", [(8, 6), (7, 9)])
def test_a_stride_takes_every_other_output(shape):
    inputs = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    params = parameters(Conv(5), inputs)
    whole = Conv(5).apply({"params": params}, inputs)
    assert whole.shape == (2, *shape, 5)
    strided = Conv(5, stride=2).apply({"params": params}, inputs)
    np.testing.assert_allclose(strided, whole[:, ::2, ::2], atol=1e-6)


def test_depthwise_filters_each_channel_by_itself():
    inputs = jax.random.normal(jax.random.key(0), (1, 6, 6, 4))
    layer = Conv(4, depthwise=True)
    params = parameters(layer, inputs)
    assert params["kernel"].shape == (3, 3, 1, 4)
    full = {**params, "kernel": params["kernel"] * jnp.eye(4)}
    np.testing.assert_allclose(
        layer.apply({"params": params}, inputs), Conv(4).apply({"params": full}, inputs), atol=1e-6
    )
