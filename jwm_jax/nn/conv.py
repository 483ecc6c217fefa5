"""Two-dimensional convolutions over NHWC maps, and the reshapes between space and channels.

Space-to-depth with block r moves every r x r block of pixels into channels,
``y[n, i, j, (a, b, c)] = x[n, r i + a, r j + b, c]``, and depth-to-space is its inverse. A network
that changes resolution this way and then mixes channels needs no strided and no transposed
convolution.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from jwm_jax.nn.layers import parameter


class Conv(nn.Module):
    """A convolution with named parameter axes, zero-padded by half its kernel on every side.

    Parameters are float32: ``kernel`` [k, k, conv_in, conv_out] and ``bias`` [conv_out].

    Attributes:
        features: output channels.
        size: side of the square kernel (odd).
        stride: distance between outputs, in inputs; 1 keeps the size.
        depthwise: whether each channel is filtered by itself (``features`` equals the input's).
        scale: factor on the He-normal initial kernel; small values start a branch near zero.
        dtype: type in which the convolution is computed.
    """

    features: int
    size: int = 3
    stride: int = 1
    depthwise: bool = False
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[jax.Array, "batch height width in"]
    ) -> Float[jax.Array, "batch height_out width_out out"]:
        """Returns the map of ceil(size / stride) rows and columns in ``dtype``."""
        groups = inputs.shape[-1] if self.depthwise else 1
        initial = nn.initializers.variance_scaling(2.0 * self.scale**2, "fan_in", "normal")
        shape = (self.size, self.size, inputs.shape[-1] // groups, self.features)
        axes, zeros = (None, None, "conv_in", "conv_out"), nn.initializers.zeros_init()
        kernel = parameter(self, "kernel", initial, axes, shape)
        bias = parameter(self, "bias", zeros, axes[3:], shape[3:])
        margin = self.size // 2
        outputs = jax.lax.conv_general_dilated(
            inputs.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=((margin, margin), (margin, margin)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return outputs + bias.astype(self.dtype)


def space_to_depth(
    inputs: Float[jax.Array, "batch height width channels"], block: int
) -> Float[jax.Array, "batch height_out width_out channels_out"]:
    """Moves blocks of pixels into channels: [n, H, W, C] -> [n, H/r, W/r, r r C].

    Args:
        inputs: NHWC map; height and width are multiples of ``block``.
        block: side r of the blocks, in pixels.

    Returns:
        The rearranged map; channels are ordered (row in block, column in block, channel).
    """
    return rearrange(inputs, "n (h a) (w b) c -> n h w (a b c)", a=block, b=block)


def depth_to_space(
    inputs: Float[jax.Array, "batch height width channels"], block: int
) -> Float[jax.Array, "batch height_out width_out channels_out"]:
    """Moves channels into blocks of pixels: [n, h, w, r r C] -> [n, r h, r w, C].

    Args:
        inputs: NHWC map; its channels are a multiple of ``block ** 2``.
        block: side r of the blocks, in pixels.

    Returns:
        The rearranged map; the inverse of `space_to_depth`.
    """
    return rearrange(inputs, "n h w (a b c) -> n (h a) (w b) c", a=block, b=block)


def leaky_relu(inputs: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """Returns max(x, x / 10): it keeps a gradient everywhere and costs nothing on a CPU."""
    return jnp.maximum(inputs, 0.1 * inputs)
