"""The video codec's network: groups of four frames to latents and back, one step at a time.

A video of 1 + 4k frames becomes 1 + k latents of 1/8 height and width. Repeating the first frame
four times makes every latent stand for a *group* of four frames, so there is one code path;
decoding drops the three extra frames. The four frames of a group live in the channels of one map,
and the network is two-dimensional:

    latent = (base_encode(group) + encoder(group, past) - mean) / std
    frames =  base_decode(raw)   + decoder(raw, base picture, past),   raw = mean + std latent

``base_encode`` and ``base_decode`` are the whitened principal components (Karhunen-Loeve transform)
of the 4 x 8 x 8 x 3 patches, fitted once on training data and frozen; the convolutions learn what a
linear transform cannot do. ``past`` is the previous group's feature map, seen by one residual block
at each of two resolutions: the only memory, so the state of a stream is those maps, zeros at the
start. ``mean`` and ``std`` are measured after training and make the latents unit-variance per
channel.

Every function takes n >= 1 groups and the state before them, and returns the state after them:
streaming is n = 1, whole clips are n = k + 1, and the two agree.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from jwm_jax.nn.conv import Conv, depth_to_space, leaky_relu, space_to_depth

FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 8
PATCH_SIZE = FRAMES_PER_LATENT * PIXELS_PER_LATENT**2 * 3

State = dict[str, jax.Array]


@dataclass(frozen=True)
class CodecConfig:
    """Widths of the codec.

    Attributes:
        latent_channels: channels c of a latent.
        half_width: channels of the maps at half resolution.
        quarter_width: channels of the maps at quarter resolution.
        eighth_width: channels of the maps at the latents' resolution.
    """

    latent_channels: int = 32
    half_width: int = 64
    quarter_width: int = 80
    eighth_width: int = 80


SIZES = {
    "tiny": CodecConfig(),
    "small": CodecConfig(half_width=96, quarter_width=192, eighth_width=384),
}


class ResidualBlock(nn.Module):
    """y = leaky_relu(x + conv(leaky_relu(conv(x)))), the branch starting near zero."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[jax.Array, "n height width channels"]
    ) -> Float[jax.Array, "n height width channels"]:
        width = inputs.shape[-1]
        hidden = leaky_relu(Conv(width, dtype=self.dtype, name="first")(inputs))
        return leaky_relu(inputs + Conv(width, scale=0.1, dtype=self.dtype, name="second")(hidden))


class MemoryBlock(nn.Module):
    """A residual block that also sees the input it had one step earlier."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Float[jax.Array, "n height width channels"],
        previous: Float[jax.Array, "batch height width channels"],
    ) -> tuple[
        Float[jax.Array, "n height width channels"],
        Float[jax.Array, "batch height width channels"],
    ]:
        """Maps the steps of ``batch`` streams, given each stream's input at the step before.

        Args:
            inputs: n = batch * steps maps, the steps of a stream next to each other.
            previous: the inputs of the step before the first, zeros at the start of a stream.

        Returns:
            The new maps, and the inputs of the last step: ``previous`` of the next call.
        """
        width = inputs.shape[-1]
        steps = inputs.reshape(previous.shape[0], -1, *inputs.shape[1:])
        before = jnp.concatenate([previous[:, None].astype(inputs.dtype), steps[:, :-1]], axis=1)
        seen = jnp.concatenate([inputs, before.reshape(inputs.shape)], axis=-1)
        hidden = leaky_relu(Conv(width, dtype=self.dtype, name="first")(seen))
        outputs = inputs + Conv(width, scale=0.1, dtype=self.dtype, name="second")(hidden)
        return leaky_relu(outputs), steps[:, -1].astype(previous.dtype)


class Encoder(nn.Module):
    """What the latent holds beyond the linear base."""

    config: CodecConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, groups: Float[jax.Array, "n height width 12"], state: State
    ) -> tuple[Float[jax.Array, "n h w c"], State]:
        config, dtype = self.config, self.dtype
        hidden = space_to_depth(2.0 * groups - 1.0, 2)
        hidden = leaky_relu(Conv(config.half_width, dtype=dtype, name="half")(hidden))
        hidden = space_to_depth(hidden, 2)
        hidden = leaky_relu(Conv(config.quarter_width, 1, dtype=dtype, name="quarter_in")(hidden))
        hidden, quarter = MemoryBlock(dtype, name="quarter_memory")(hidden, state["quarter"])
        hidden = space_to_depth(hidden, 2)
        hidden = leaky_relu(Conv(config.eighth_width, 1, dtype=dtype, name="eighth_in")(hidden))
        hidden, eighth = MemoryBlock(dtype, name="eighth_memory")(hidden, state["eighth"])
        hidden = ResidualBlock(dtype, name="eighth_residual")(hidden)
        change = Conv(config.latent_channels, scale=0.01, dtype=dtype, name="out")(hidden)
        return change, {"quarter": quarter, "eighth": eighth}


class Decoder(nn.Module):
    """What the frames hold beyond the base picture, which the last stage sees (and deblocks)."""

    config: CodecConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        raw: Float[jax.Array, "n h w c"],
        picture: Float[jax.Array, "n height width 12"],
        state: State,
    ) -> tuple[Float[jax.Array, "n height width 12"], State]:
        config, dtype = self.config, self.dtype
        hidden = leaky_relu(Conv(config.eighth_width, dtype=dtype, name="eighth_in")(raw))
        hidden, eighth = MemoryBlock(dtype, name="eighth_memory")(hidden, state["eighth"])
        hidden = ResidualBlock(dtype, name="eighth_residual")(hidden)
        hidden = Conv(4 * config.quarter_width, 1, dtype=dtype, name="quarter_in")(hidden)
        hidden = leaky_relu(depth_to_space(hidden, 2))
        hidden, quarter = MemoryBlock(dtype, name="quarter_memory")(hidden, state["quarter"])
        hidden = Conv(4 * config.half_width, 1, dtype=dtype, name="half_in")(hidden)
        hidden = leaky_relu(depth_to_space(hidden, 2))
        half_picture = space_to_depth(2.0 * picture - 1.0, 2).astype(hidden.dtype)
        hidden = jnp.concatenate([hidden, half_picture], axis=-1)
        hidden = leaky_relu(Conv(config.half_width, dtype=dtype, name="half_mix")(hidden))
        hidden = ResidualBlock(dtype, name="half_residual_0")(hidden)
        hidden = ResidualBlock(dtype, name="half_residual_1")(hidden)
        change = Conv(4 * 12, scale=0.01, dtype=dtype, name="out")(hidden)
        return depth_to_space(change, 2), {"quarter": quarter, "eighth": eighth}


class CodecNetwork(nn.Module):
    """Linear base, encoder, decoder and latent statistics; the parameters of the whole codec."""

    config: CodecConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the parameters; base and statistics are frozen (no gradient reaches them)."""
        channels = self.config.latent_channels
        small = nn.initializers.normal(0.03)
        self.base_mean = self.param(
            "base_mean", _named(nn.initializers.constant(0.5), "conv_in"), (PATCH_SIZE,)
        )
        self.base_encode = self.param(
            "base_encode", _named(small, "conv_in", "out"), (PATCH_SIZE, channels)
        )
        self.base_decode = self.param(
            "base_decode", _named(small, "out", "conv_in"), (channels, PATCH_SIZE)
        )
        self.latent_mean = self.param(
            "latent_mean", _named(nn.initializers.zeros_init(), "out"), (channels,)
        )
        self.latent_std = self.param(
            "latent_std", _named(nn.initializers.ones_init(), "out"), (channels,)
        )
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(
        self, video: Float[jax.Array, "batch frames height width 3"], state: State
    ) -> tuple[Float[jax.Array, "batch steps h w c"], State]:
        """Encodes whole groups; see `encode_groups`."""
        batch = video.shape[0]
        groups = frames_to_groups(video)
        change, state = self.encoder(groups, state)
        patches = space_to_depth(groups, PIXELS_PER_LATENT)
        mean, matrix = jax.lax.stop_gradient((self.base_mean, self.base_encode))
        raw = (patches - mean) @ matrix + change.astype(jnp.float32)
        latent_mean, latent_std = jax.lax.stop_gradient((self.latent_mean, self.latent_std))
        latents = (raw - latent_mean) / latent_std
        return latents.reshape(batch, -1, *latents.shape[1:]), state

    def decode(
        self, latents: Float[jax.Array, "batch steps h w c"], state: State
    ) -> tuple[Float[jax.Array, "batch frames height width 3"], State]:
        """Decodes whole groups; see `decode_groups`."""
        batch = latents.shape[0]
        latent_mean, latent_std = jax.lax.stop_gradient((self.latent_mean, self.latent_std))
        raw = latents.reshape(-1, *latents.shape[2:]).astype(jnp.float32)
        raw = latent_mean + latent_std * raw
        mean, matrix = jax.lax.stop_gradient((self.base_mean, self.base_decode))
        picture = depth_to_space(raw @ matrix + mean, PIXELS_PER_LATENT)
        change, state = self.decoder(raw, picture, state)
        return groups_to_frames(picture + change.astype(jnp.float32), batch), state

    def __call__(
        self, video: Float[jax.Array, "batch frames height width 3"]
    ) -> Float[jax.Array, "batch frames height width 3"]:
        """Encodes and decodes whole groups from the zero state (used to create the parameters)."""
        batch, _, height, width, _ = video.shape
        h, w = height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT
        latents, _ = self.encode(video, initial_state(self.config, batch, h, w))
        return self.decode(latents, initial_state(self.config, batch, h, w))[0]


def frames_to_groups(
    video: Float[jax.Array, "batch frames height width 3"],
) -> Float[jax.Array, "n height width 12"]:
    """Puts the four frames of each group into channels: [B, 4 n, H, W, 3] -> [B n, H, W, 12]."""
    return rearrange(video, "b (n t) h w c -> (b n) h w (t c)", t=FRAMES_PER_LATENT)


def groups_to_frames(
    groups: Float[jax.Array, "n height width 12"], batch: int
) -> Float[jax.Array, "batch frames height width 3"]:
    """Inverse of `frames_to_groups` for ``batch`` streams."""
    return rearrange(groups, "(b n) h w (t c) -> b (n t) h w c", b=batch, t=FRAMES_PER_LATENT)


def repeat_first_frame(
    video: Float[jax.Array, "batch frames height width 3"],
) -> Float[jax.Array, "batch padded height width 3"]:
    """Fills the first frame's group: 1 + 4k frames -> 4 + 4k frames."""
    first = jnp.repeat(video[:, :1], FRAMES_PER_LATENT - 1, axis=1)
    return jnp.concatenate([first, video], axis=1)


def initial_state(config: CodecConfig, batch: int, h: int, w: int) -> State:
    """State of the encoder, or of the decoder, before the first frame: zeros.

    Args:
        config: the codec's widths.
        batch: number of streams.
        h: rows of a latent (image height / 8).
        w: columns of a latent (image width / 8).

    Returns:
        Previous feature maps, float32: ``quarter`` [batch, 2h, 2w, C] and ``eighth``
        [batch, h, w, C].
    """
    return {
        "quarter": jnp.zeros((batch, 2 * h, 2 * w, config.quarter_width)),
        "eighth": jnp.zeros((batch, h, w, config.eighth_width)),
    }


def encode_groups(
    config: CodecConfig,
    params: Any,
    video: Float[jax.Array, "batch frames height width 3"],
    state: State,
    dtype: Any = jnp.float32,
) -> tuple[Float[jax.Array, "batch steps h w c"], State]:
    """Encodes n groups of four frames of every stream, continuing from ``state``.

    Args:
        config: the codec's widths.
        params: parameters of `CodecNetwork` without boxes.
        video: RGB in [0, 1], frames = 4 n, height and width multiples of 8.
        state: from `initial_state` or the previous call.
        dtype: type of the convolutions; base and statistics stay float32.

    Returns:
        Latents float32 [batch, n, height / 8, width / 8, c], and the state after the last group.
    """
    network = CodecNetwork(config, dtype)
    return network.apply({"params": params}, video, state, method="encode")


def decode_groups(
    config: CodecConfig,
    params: Any,
    latents: Float[jax.Array, "batch steps h w c"],
    state: State,
    dtype: Any = jnp.float32,
) -> tuple[Float[jax.Array, "batch frames height width 3"], State]:
    """Decodes n latents of every stream to 4 n frames, continuing from ``state``.

    Args:
        config: the codec's widths.
        params: parameters of `CodecNetwork` without boxes.
        latents: from `encode_groups` or a generator.
        state: from `initial_state` or the previous call.
        dtype: type of the convolutions; base and statistics stay float32.

    Returns:
        RGB float32 [batch, 4 n, 8 h, 8 w, 3], not clipped, and the state after the last latent.
    """
    network = CodecNetwork(config, dtype)
    return network.apply({"params": params}, latents, state, method="decode")


def _named(initial: Any, *axes: str) -> Any:
    return nn.with_logical_partitioning(initial, axes)
