"""The video codec as its users see it: videos to unit-variance latents and back.

`codec_network` has the mathematics. Leading axes fold into the batch, so several views are encoded
as several streams: video [B, T, H, W, 3] or [B, V, T, H, W, 3], latents [B, (V,) 1 + k, h, w, c].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jwm_jax.checkpoint.model_dir import check_params, load_config, load_params, save_model
from jwm_jax.scene.pytree import Array
from jwm_jax.worldgen.codec_network import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    SIZES,
    CodecConfig,
    CodecNetwork,
    State,
    decode_groups,
    encode_groups,
    initial_state,
)

_encode_groups = jax.jit(encode_groups, static_argnames=("config", "dtype"))


@partial(jax.jit, static_argnames=("config", "dtype"))
def _decode_clipped(config: CodecConfig, params: Any, latents: Any, state: State, dtype: Any):
    frames, state = decode_groups(config, params, latents, state, dtype)
    return jnp.clip(frames, 0.0, 1.0), state


@dataclass(frozen=True)
class VideoCodec:
    """A codec with its weights.

    Attributes:
        config: widths.
        params: parameters of `CodecNetwork`, a nested dict of float32 arrays.
        dtype: type in which the convolutions are computed.
    """

    config: CodecConfig
    params: Any
    dtype: Any = jnp.float32

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path = "tiny") -> "VideoCodec":
        """Loads shipped weights by size name, or a model directory.

        Raises:
            DataError: the directory is missing, broken, or of another kind of model.
        """
        config = load_config(name_or_dir, "codec", CodecConfig)
        params = load_params(name_or_dir, "codec")
        blank = jax.ShapeDtypeStruct((1, 4, 16, 16, 3), jnp.float32)
        expected = jax.eval_shape(CodecNetwork(config).init, jax.random.key(0), blank)["params"]
        check_params(params, nn.unbox(expected), f"codec {name_or_dir}")
        return cls(config, jax.tree.map(jnp.asarray, params))

    def save_pretrained(self, directory: str | Path, *, card: str, half: bool = True) -> None:
        """Writes config.json, params.safetensors and card.md.

        Args:
            directory: folder of the model, created if absent.
            card: text of card.md: data, command, time and scores.
            half: store float16.
        """
        size = next((name for name, config in SIZES.items() if config == self.config), "custom")
        save_model(directory, "codec", size, self.config, self.params, card, half=half)

    def encode(
        self, video: Shaped[Array, "*batch frames height width 3"]
    ) -> Float[jax.Array, "*batch steps h w c"]:
        """Encodes whole clips.

        Args:
            video: RGB in [0, 1], 1 + 4k frames, height and width multiples of 8.

        Returns:
            float32 latents, 1 + k steps of [height / 8, width / 8, c], unit variance per channel.

        Raises:
            ValueError: another number of frames or another size, naming both.
        """
        _check_float(video)
        frames = video.shape[-4]
        if frames % FRAMES_PER_LATENT != 1:
            usable = (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
            advice = f"keep the first {usable}" if usable > 0 else "give at least 1"
            raise ValueError(
                f"the codec needs 1 + 4k frames (1, 5, 9, ...), but the video has T = {frames}; "
                f"{advice}."
            )
        _check_size(video)
        video = jnp.concatenate([_repeat(video[..., :1, :, :, :], 3), jnp.asarray(video)], axis=-4)
        state = self.initial_encode_state(video.shape[:-4], *_latent_size(video))
        return self._run(_encode_groups, video, state, 4)[0]

    def decode(
        self, latents: Float[Array, "*batch steps h w c"]
    ) -> Float[jax.Array, "*batch frames height width 3"]:
        """Decodes whole clips.

        Args:
            latents: 1 + k steps from `encode` or a generator.

        Returns:
            float32 RGB in [0, 1], 1 + 4k frames of [8 h, 8 w, 3].

        Raises:
            ValueError: another number of latent channels than the codec's.
        """
        self._check_channels(latents)
        state = self.initial_decode_state(latents.shape[:-4], *latents.shape[-3:-1])
        video, _ = self._run(_decode_clipped, jnp.asarray(latents), state, 4)
        return video[..., FRAMES_PER_LATENT - 1 :, :, :, :]

    def initial_encode_state(self, batch: int | tuple[int, ...], h: int, w: int) -> State:
        """State of `encode_step` before the first frame.

        Args:
            batch: leading axes of the frames that will come.
            h: rows of a latent (image height / 8).
            w: columns of a latent (image width / 8).

        Returns:
            A pytree of zeros with leading axes ``batch``.
        """
        lead = (batch,) if isinstance(batch, int) else tuple(batch)
        state = initial_state(self.config, math.prod(lead), h, w)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), state)

    def initial_decode_state(self, batch: int | tuple[int, ...], h: int, w: int) -> State:
        """State of `decode_step` before the first latent; see `initial_encode_state`."""
        return self.initial_encode_state(batch, h, w)

    def encode_step(
        self, frames: Shaped[Array, "*batch frames height width 3"], state: State
    ) -> tuple[Float[jax.Array, "*batch h w c"], State]:
        """Encodes the next group of a stream.

        Args:
            frames: the next four frames, RGB in [0, 1]; or one frame at the start of a stream.
            state: from `initial_encode_state` or the previous call.

        Returns:
            The group's latent, equal to that of `encode`, and the new state.

        Raises:
            ValueError: neither 1 nor 4 frames, or a size that is not a multiple of 8.
        """
        _check_float(frames)
        _check_size(frames)
        if frames.shape[-4] not in (1, FRAMES_PER_LATENT):
            raise ValueError(
                "encode_step takes the 4 frames of one latent, or 1 frame at the start of a "
                f"stream, but got {frames.shape[-4]}; split the video."
            )
        if frames.shape[-4] == 1:
            frames = _repeat(frames, FRAMES_PER_LATENT)
        latents, state = self._run(_encode_groups, jnp.asarray(frames), state, 4)
        return latents[..., 0, :, :, :], state

    def decode_step(
        self, latent: Float[Array, "*batch h w c"], state: State
    ) -> tuple[Float[jax.Array, "*batch 4 height width 3"], State]:
        """Decodes the next latent of a stream.

        Args:
            latent: the next latent.
            state: from `initial_decode_state` or the previous call.

        Returns:
            Its four frames, RGB in [0, 1], and the new state. Of a stream's first latent all four
            show the first instant and only the last is part of the video.

        Raises:
            ValueError: another number of latent channels than the codec's.
        """
        self._check_channels(latent)
        return self._run(_decode_clipped, jnp.asarray(latent)[..., None, :, :, :], state, 4)

    def _run(
        self, function: Callable, inputs: jax.Array, state: State, event: int
    ) -> tuple[jax.Array, State]:
        """Applies ``function`` with all leading axes folded into one."""
        lead = inputs.shape[:-event]
        folded = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[-3:]), state)
        outputs, folded = function(
            self.config,
            self.params,
            inputs.reshape(-1, *inputs.shape[-event:]),
            folded,
            dtype=self.dtype,
        )
        state = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), folded)
        return outputs.reshape(*lead, *outputs.shape[1:]), state

    def _check_channels(self, latents: Array) -> None:
        if latents.shape[-1] != self.config.latent_channels:
            raise ValueError(
                f"this codec has {self.config.latent_channels} latent channels, but the latents "
                f"have {latents.shape[-1]} (shape {latents.shape}); use the codec they were made "
                "with."
            )


def _repeat(frame: Array, count: int) -> jax.Array:
    return jnp.repeat(jnp.asarray(frame), count, axis=-4)


def _latent_size(video: Array) -> tuple[int, int]:
    return video.shape[-3] // PIXELS_PER_LATENT, video.shape[-2] // PIXELS_PER_LATENT


def _check_float(video: Array) -> None:
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise ValueError(
            f"the codec takes RGB as floats in [0, 1], but the video is {video.dtype}; divide by "
            "255."
        )


def _check_size(video: Array) -> None:
    height, width = video.shape[-3:-1]
    if height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT or not height or not width:
        raise ValueError(
            f"the codec needs height and width that are multiples of {PIXELS_PER_LATENT}, but the "
            f"video has H = {height}, W = {width}; resize or crop it."
        )
