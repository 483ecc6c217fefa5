"""Image features at several scales: EfficientNetV2 blocks and a feature pyramid.

A fused block expands with a full 3x3 convolution and projects back with a 1x1; a plain block
expands with a 1x1, filters each channel with a depthwise 3x3, re-weighs channels by their means
(squeeze-and-excitation) and projects back. Both add their input where shapes allow (Tan and Le,
EfficientNetV2, 2021). Group norms stand in for batch norms: they need no state and do not couple
pictures. The pyramid adds each coarse level, enlarged, to the next finer one (Lin et al., 2017).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.nn.conv import Conv
from jwm_jax.nn.layers import Linear, parameter
from jwm_jax.worldrec.config import StageConfig, WorldRecConfig


class GroupNorm(nn.Module):
    """Zero mean and unit variance over space and groups of channels, then a scale and a shift.

    Attributes:
        group: Channels a group.
    """

    group: int

    @nn.compact
    def __call__(self, inputs: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n h w c"]:
        """Returns the normalised map, computed in float32."""
        n, height, width, channels = inputs.shape
        x = inputs.astype(jnp.float32)
        x = x.reshape(n, height * width, channels // self.group, self.group)
        x = x - x.mean((1, 3), keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean((1, 3), keepdims=True) + 1e-5)
        x = x.reshape(inputs.shape)
        axes, shape = ("conv_out",), (channels,)
        scale = parameter(self, "scale", nn.initializers.ones_init(), axes, shape)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), axes, shape)
        return (x * scale + bias).astype(inputs.dtype)


class Block(nn.Module):
    """One EfficientNetV2 block.

    Attributes:
        stage: Its stage.
        stride: 1 or 2.
        norm_group: Channels a norm group.
        dtype: Type of the computation.
    """

    stage: StageConfig
    stride: int
    norm_group: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[jax.Array, "n h w c"]
    ) -> Float[jax.Array, "n h_out w_out c_out"]:
        """Returns the block's map."""
        stage, channels = self.stage, inputs.shape[-1]
        hidden = channels * stage.expansion
        x = inputs
        if stage.fused:
            x = Conv(hidden, 3, self.stride, dtype=self.dtype, name="expand")(x)
            x = nn.silu(GroupNorm(self.norm_group, name="expand_norm")(x))
        else:
            x = Conv(hidden, 1, dtype=self.dtype, name="expand")(x)
            x = nn.silu(GroupNorm(self.norm_group, name="expand_norm")(x))
            x = Conv(hidden, 3, self.stride, depthwise=True, dtype=self.dtype, name="depthwise")(x)
            x = nn.silu(GroupNorm(self.norm_group, name="depthwise_norm")(x))
            means = x.mean((1, 2))
            gate = Linear(channels // 4, ("conv_in", "conv_out"), name="squeeze")(means)
            gate = Linear(hidden, ("conv_in", "conv_out"), name="excite")(nn.silu(gate))
            x = x * nn.sigmoid(gate)[:, None, None, :].astype(x.dtype)
        x = Conv(stage.features, 1, dtype=self.dtype, name="project")(x)
        x = GroupNorm(self.norm_group, name="project_norm")(x)
        return x + inputs if x.shape == inputs.shape else x


class Backbone(nn.Module):
    """Pictures to a feature pyramid at strides 2, 4, 8, ...

    Attributes:
        config: Shape of the model.
        dtype: Type of the computation.
    """

    config: WorldRecConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[jax.Array, "n h w c"]) -> tuple[jax.Array, ...]:
        """Compute the pyramid.

        Args:
            inputs: Pictures and what else is known of each pixel.

        Returns:
            One [n, h / 2^(i+1), w / 2^(i+1), pyramid] map a level i, finest first.
        """
        config = self.config
        x = Conv(config.stem, 3, 2, dtype=self.dtype, name="stem")(inputs)
        x = nn.silu(GroupNorm(config.norm_group, name="stem_norm")(x))
        maps = []
        for i, stage in enumerate(config.stages):
            for j in range(stage.blocks):
                stride = stage.stride if j == 0 else 1
                if stride == 2:
                    maps.append(x)
                name = f"stage{i}_block{j}"
                x = Block(stage, stride, config.norm_group, self.dtype, name=name)(x)
        maps.append(x)
        levels = []
        above = None
        for i, level in reversed(list(enumerate(maps))):
            x = Conv(config.pyramid, 1, dtype=self.dtype, name=f"lateral{i}")(level)
            if above is not None:
                x = x + enlarge(above, x.shape[1], x.shape[2])
            above = nn.silu(GroupNorm(config.norm_group, name=f"lateral{i}_norm")(x))
            levels.append(Conv(config.pyramid, 3, dtype=self.dtype, name=f"smooth{i}")(above))
        return tuple(reversed(levels))


def enlarge(
    inputs: Float[jax.Array, "n h w c"], height: int, width: int
) -> Float[jax.Array, "n height width c"]:
    """Repeat each cell of a map until it has `height` x `width` of them (at most twice as many)."""
    doubled = jnp.repeat(jnp.repeat(inputs, 2, axis=1), 2, axis=2)
    return doubled[:, :height, :width]
