"""WorldGen as its users see it: a network, a codec, and sessions that generate chunk by chunk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from jwm_jax.checkpoint.model_dir import (
    check_params,
    load_config,
    load_params,
    resolve_model,
    save_model,
)
from jwm_jax.errors import UsageError
from jwm_jax.scene.cameras import Camera, Rig
from jwm_jax.scene.pytree import Array
from jwm_jax.worldgen import wan
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.conditions import (
    RAY_CHANNELS,
    Conditions,
    camera_rays,
    densify,
    style_codes,
)
from jwm_jax.worldgen.config import SIZES, WorldGenConfig, size_name
from jwm_jax.worldgen.forward import abstract_params
from jwm_jax.worldgen.session import Session, start_session, step_session
from jwm_jax.worldgen.transformer import init_params


@dataclass(frozen=True)
class WorldGen:
    """The generator with its weights and its codec.

    Attributes:
        config: shape of the network.
        params: parameters, a nested dict of float32 arrays.
        codec: the video codec whose latents it generates.
    """

    config: WorldGenConfig
    params: Any
    codec: VideoCodec

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path = "tiny", codec: VideoCodec | None = None
    ) -> "WorldGen":
        """Loads shipped weights by size name, a model directory, or a file of Wan 2.1's.

        Args:
            name_or_dir: a size, a folder, or a .safetensors file as `wan.load` reads it.
            codec: instead of the model's own, which is the folder ``codec`` in its directory if it
                has one, else the codec named in its config.

        Raises:
            UsageError: there is no such model.
            DataError: a file is a pickle, missing or broken, or belongs to another kind or size of
                model.
        """
        if Path(name_or_dir).suffix == ".safetensors":
            config, params = wan.load(name_or_dir)
            codec = codec or VideoCodec.from_pretrained(config.codec)
            return cls(config, jax.tree.map(jnp.asarray, params), codec)
        folder = resolve_model(name_or_dir, "worldgen")
        config = load_config(folder, "worldgen", WorldGenConfig)
        params = load_params(folder, "worldgen")
        check_params(params, abstract_params(config), str(folder))
        own = folder / "codec"
        codec = codec or VideoCodec.from_pretrained(own if own.is_dir() else config.codec)
        return cls(config, jax.tree.map(jnp.asarray, params), codec)

    @classmethod
    def from_scratch(
        cls, size: str | WorldGenConfig, codec: VideoCodec, seed: int = 0
    ) -> "WorldGen":
        """A model with random weights.

        Args:
            size: name of a size, or a configuration.
            codec: its latents must have the configuration's channels.
            seed: of the weights.

        Raises:
            UsageError: an unknown size, or a codec with other latent channels.
        """
        if isinstance(size, str) and size not in SIZES:
            raise UsageError(f"no WorldGen size {size!r}; there are {', '.join(SIZES)}.")
        config = SIZES[size] if isinstance(size, str) else size
        if codec.config.latent_channels != config.latent_channels:
            raise UsageError(
                f"this codec has {codec.config.latent_channels} latent channels, but the generator "
                f"wants {config.latent_channels}; use the codec it was made for."
            )
        init = jax.jit(lambda key: nn.unbox(init_params(config, key)))
        return cls(config, init(jax.random.key(seed)), codec)

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        card: str,
        stage: str | None = None,
        with_codec: bool = True,
        half: bool = True,
    ) -> Path:
        """Writes config.json, params.safetensors and card.md, and the codec in a folder ``codec``.

        Args:
            directory: folder of the model, made if absent.
            card: text of card.md: data, command, time and scores.
            stage: of training, one of `model_dir.STAGES`; None where it is not known.
            with_codec: False leaves the codec to the name in the config.
            half: store float16.
        """
        size, options = size_name(self.config), {"half": half, "stage": stage}
        folder = save_model(directory, "worldgen", size, self.config, self.params, card, **options)
        if with_codec:
            self.codec.save_pretrained(
                folder / "codec", card="The codec of this generator.", half=half
            )
        return folder

    def start(
        self,
        first_frames: Num[Array, "*b height width 3"],
        cameras: Rig | Sequence[Camera] | None = None,
        seed: int = 0,
        conditions: Conditions | None = None,
        text: Float[Array, "*b length channels"] | None = None,
        null_text: Float[Array, "*b length channels"] | None = None,
        guided: bool = False,
    ) -> Session:
        """Starts a session from the frames everything follows.

        Args:
            first_frames: [H, W, 3], [V, H, W, 3] or [B, V, H, W, 3]; uint8, or floats in [0, 1]; H
                and W multiples of 16.
            cameras: a rig, or one camera a view with its pose in the ego frame; None if not known.
            seed: of everything random in this session.
            conditions: of the first frame, if known: one layout frame [.., 1, H, W, 3], style.
            text: embeddings [(B), length, channels] of a prompt, for a network with text; zeros if
                not given.
            null_text: embeddings that guidance leads away from; zeros if not given.
            guided: whether steps of this session may be guided, which takes a second memory; not
                for a network that takes the strength of guidance as an input.

        Returns:
            The session; a copy of it is a fork.

        Raises:
            ValueError: a size that does not divide into patches, another number of cameras than
                views, text for a network without, or conditions of another size or kind.
        """
        if guided and self.config.guidance_input:
            raise ValueError(
                "this network takes the strength of guidance as an input and needs no second "
                "memory: start the session without guided=True and give step() a cfg_scale."
            )
        leading = first_frames.ndim - 3
        if leading not in (0, 1, 2):
            raise ValueError(
                "first_frames must be [H, W, 3], [V, H, W, 3] or [B, V, H, W, 3], but its shape is "
                f"{tuple(first_frames.shape)}."
            )
        unit = self.config.pixels_per_token
        height, width = first_frames.shape[-3:-1]
        if height % unit or width % unit:
            raise ValueError(
                f"first_frames are {height} x {width} pixels; height and width must be "
                f"multiples of {unit}: resize or crop them."
            )
        first = _with_axes(_unit_range(first_frames), 2 - leading)
        batch, views = first.shape[:2]
        grid = (height // 8, width // 8)
        if cameras is None:
            rays = np.zeros((views, *grid, RAY_CHANNELS), np.float32)
        else:
            rays = camera_rays(cameras, *grid)
        if rays.shape[0] != views:
            raise ValueError(f"there are {rays.shape[0]} cameras for {views} views.")
        rays = jnp.broadcast_to(jnp.asarray(rays), (batch, *rays.shape))
        given = self._prepare(conditions or Conditions(), leading, batch)
        if given.prior is not None or given.ego_motion is not None:
            raise ValueError(
                "conditions of the first frames are its layout and style: a prior or ego motion "
                "belongs to a step."
            )
        _check_shapes(given, (batch, views, 1, height, width), leading)
        return _start(
            self.config.for_params(self.params),
            self._codec_shape(),
            self.params,
            self.codec.params,
            first,
            rays,
            jax.random.key(seed),
            densify(self.config, given, (batch, views, 1, height, width)),
            self._text(text, batch),
            self._text(null_text, batch) if guided else None,
            leading=leading,
            guided=guided,
        )

    def step(
        self,
        session: Session,
        conditions: Conditions | None = None,
        steps: int | None = None,
        cfg_scale: float = 1.0,
    ) -> tuple[Float[jax.Array, "*b f height width 3"], Session]:
        """Generates the next chunk: T frames, four for each latent frame of the config's chunk.

        Args:
            session: from `start` or the previous step; it stays usable.
            conditions: of this chunk only, with the axes before (T, H, W, 3) that `start` was
                given.
            steps: denoising steps; the configuration's if None.
            cfg_scale: guidance uncond + s (cond - uncond) on style and text; 1 is none, others need
                a session that was started with ``guided=True``, or a network that takes the
                strength as an input.

        Returns:
            RGB in [0, 1], [.., T, H, W, 3] with the leading axes of the first frames, and the
            session after the chunk.

        Raises:
            ValueError: conditions of another size than the session's, naming the field, or guidance
                of a session that was started without.
        """
        if cfg_scale != 1.0 and not (session.guided or self.config.guidance_input):
            raise ValueError(
                f"cfg_scale = {cfg_scale} needs guidance's second memory: start the session with "
                "guided=True."
            )
        batch, views, height, width = session.frame.shape[:4]
        given = self._prepare(conditions or Conditions(), session.leading, batch)
        shape = (batch, views, self.config.frames_per_chunk, height, width)
        _check_shapes(given, shape, session.leading)
        frames, session = _step(
            self.config.for_params(self.params),
            self._codec_shape(),
            self.params,
            self.codec.params,
            session,
            densify(self.config, given, shape),
            jnp.float32(cfg_scale),
            steps=steps,
        )
        return frames.reshape(frames.shape[2 - session.leading :]), session

    def stream(
        self,
        first_frames: Num[Array, "*b height width 3"],
        cameras: Rig | Sequence[Camera] | None,
        conditions_per_chunk: Iterable[Conditions],
        steps: int | None = None,
        seed: int = 0,
        cfg_scale: float = 1.0,
    ) -> Iterator[Float[jax.Array, "*b f height width 3"]]:
        """Yields chunk after chunk of frames: a loop over `step`.

        Args:
            first_frames: as for `start`.
            cameras: as for `start`.
            conditions_per_chunk: one entry a chunk; it may be an endless iterator.
            steps: denoising steps; the configuration's if None.
            seed: of everything random.
            cfg_scale: as for `step`.
        """
        guided = cfg_scale != 1.0 and not self.config.guidance_input
        session = self.start(first_frames, cameras, seed, guided=guided)
        for conditions in conditions_per_chunk:
            frames, session = self.step(session, conditions, steps, cfg_scale)
            yield frames

    def _text(self, rows: Array | None, batch: int) -> jax.Array | None:
        """Text with a batch axis, cut short of nothing: `transformer.text_keys` pads it."""
        channels = self.config.text_dim
        if not channels:
            if rows is not None:
                raise ValueError("text was given to a network without text (text_dim = 0).")
            return None
        return jnp.zeros((batch, 1, channels)) if rows is None else _with_batch(rows, 2, batch)

    def _codec_shape(self) -> Any:
        return _CodecShape(type(self.codec), self.codec.config, self.codec.dtype)

    def _prepare(self, conditions: Conditions, leading: int, batch: int) -> Conditions:
        """Adds batch and view axes, and turns pictures into floats and names into codes."""
        style = conditions.style
        if isinstance(style, Mapping):
            style = style_codes(self.config, style)
        pictures = {
            name: None if value is None else _with_axes(_unit_range(value), 2 - leading)
            for name, value in (
                ("layout", conditions.layout),
                ("prior", conditions.prior),
                ("prior_alpha", conditions.prior_alpha),
            )
        }
        numbers = {
            name: None if value is None else _with_batch(value, ndim, batch)
            for name, value, ndim in (
                ("ego_motion", conditions.ego_motion, 2),
                ("style", style, 1),
            )
        }
        return Conditions(**pictures, **numbers)


@dataclass(frozen=True)
class _CodecShape:
    """What of a codec is static under jit; its weights are an argument."""

    cls: type
    config: Any
    dtype: Any

    def build(self, params: Any) -> Any:
        return self.cls(self.config, params, self.dtype)


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("leading", "guided"))
def _start(
    config,
    codec,
    params,
    codec_params,
    first,
    rays,
    key,
    conditions,
    text,
    null_text,
    *,
    leading,
    guided,
):
    return start_session(
        config,
        params,
        codec.build(codec_params),
        first,
        rays,
        key,
        conditions,
        text,
        null_text,
        leading=leading,
        guided=guided,
    )


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("steps",))
def _step(config, codec, params, codec_params, session, conditions, cfg_scale, *, steps):
    codec = codec.build(codec_params)
    return step_session(config, params, codec, session, conditions, steps, cfg_scale)


def _unit_range(values: Array) -> jax.Array:
    if jnp.issubdtype(values.dtype, jnp.integer):
        return jnp.asarray(values, jnp.float32) / 255.0
    return jnp.asarray(values, jnp.float32)


def _with_axes(values: jax.Array, count: int) -> jax.Array:
    return values.reshape(*(1,) * count, *values.shape)


def _with_batch(values: Array, ndim: int, batch: int) -> jax.Array:
    dtype = jnp.int32 if jnp.issubdtype(values.dtype, jnp.integer) else jnp.float32
    values = jnp.asarray(values, dtype)
    if values.ndim == ndim:
        values = jnp.broadcast_to(values, (batch, *values.shape))
    return values


def _check_shapes(
    conditions: Conditions, shape: tuple[int, int, int, int, int], leading: int
) -> None:
    """Compares what is given with frames of ``shape`` (B, V, T, H, W)."""
    expected = {
        "layout": (*shape, 3),
        "prior": (*shape, 3),
        "prior_alpha": shape,
        "ego_motion": (shape[0], shape[2], 4),
    }
    for name, size in expected.items():
        value = getattr(conditions, name)
        if value is not None and tuple(value.shape) != size:
            drop = 2 - leading if name != "ego_motion" else int(leading < 2)
            raise ValueError(
                f"conditions.{name} must have shape {size[drop:]} in this session, but it is "
                f"{tuple(value.shape)[drop:]}."
            )
    if conditions.prior_alpha is not None and conditions.prior is None:
        raise ValueError("conditions.prior_alpha was given without conditions.prior.")
