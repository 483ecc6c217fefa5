"""A generation session: everything that carries over from one chunk to the next, as a pytree.

`start_session` encodes the first frames and puts them into the cache; `step_session` encodes one
chunk's conditions, generates the chunk's latent frames and decodes them to video frames. Both are
pure, so a session may be copied (forked), kept and continued; the noise is a function of the
session's key and of the frame's index. Pictures of conditions go through the codec as streams whose
states live in the session: the prior's stream begins with the true first frame, the layout's with
the first layout frame it is given. A stream stands still while its condition is absent.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float

from jwm_jax.scene.pytree import pytree_dataclass, static_field
from jwm_jax.worldgen.cache import Cache
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.conditions import (
    ChunkConditions,
    LatentConditions,
    fill_holes,
    no_conditions,
    pool_mask,
    unconditional,
)
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.sampler import Branch, advance, begin
from jwm_jax.worldgen.transformer import Text, text_keys

Frames = Float[jax.Array, "b v f height width 3"]
TextRows = Float[jax.Array, "b length channels"]


@pytree_dataclass
class Session:
    """State of a generation.

    Attributes:
        cache: keys and values of past latent frames.
        latent: the newest clean latent [B, V, h, w, c].
        frame: the newest video frame [B, V, H, W, 3], RGB in [0, 1].
        rays: Plücker coordinates of the latent pixels [B, V, h, w, 6].
        key: typed PRNG key of the whole session.
        decode_state: the codec's state after the newest latent.
        prior_state: the codec's state after the newest prior.
        layout_state: the codec's state after the newest layout.
        layout_started: whether any layout has been seen.
        text: keys and values of the text, for a network with text.
        null_cache: past frames as guidance's null branch remembers them; None without guidance.
        null_text: its text.
        leading: axes before (H, W, 3) in the frames the user gave: 0, 1 (views) or 2 (batch,
            views).
    """

    cache: Cache
    latent: Float[jax.Array, "b v h w c"]
    frame: Float[jax.Array, "b v height width 3"]
    rays: Float[jax.Array, "b v h w 6"]
    key: JaxArray
    decode_state: Any
    prior_state: Any
    layout_state: Any
    layout_started: Bool[jax.Array, ""]
    text: Text | None = None
    null_cache: Cache | None = None
    null_text: Text | None = None
    leading: int = static_field(default=1)

    @property
    def num_frames(self) -> jax.Array:
        """Latent frames generated so far, not counting the first."""
        return self.cache.frames - 1

    @property
    def guided(self) -> bool:
        """Whether the session carries the null branch of guidance."""
        return self.null_cache is not None


def start_session(
    config: WorldGenConfig,
    params: Any,
    codec: VideoCodec,
    first: Float[jax.Array, "b v height width 3"],
    rays: Float[jax.Array, "b v h w 6"],
    key: JaxArray,
    conditions: ChunkConditions,
    text: TextRows | None = None,
    null_text: TextRows | None = None,
    leading: int = 1,
    guided: bool = False,
) -> Session:
    """Encodes the first frames and remembers them.

    Args:
        config: shape of the network.
        params: the network's parameters.
        codec: with its weights.
        first: RGB in [0, 1].
        rays: from `conditions.camera_rays`.
        key: typed PRNG key.
        conditions: what is known about the first frame: one layout frame, style.
        text: embeddings, for a network with text.
        null_text: embeddings that guidance leads away from.
        leading: see `Session`.
        guided: whether the session carries guidance's null branch.
    """
    lead, (height, width) = first.shape[:2], (n // 8 for n in first.shape[2:4])
    fresh = codec.initial_encode_state(lead, height, width)
    latent, prior_state = codec.encode_step(first[:, :, None], fresh)
    _, decode_state = codec.decode_step(latent, codec.initial_decode_state(lead, height, width))
    given = no_conditions(config, (*lead, 1, height, width), rays)
    given = replace(given, style=conditions.style)
    layout, layout_state = _if_given(
        conditions.has_layout,
        lambda: codec.encode_step(conditions.layout[:, :, :1], fresh),
        (jnp.zeros_like(latent), fresh),
    )
    given = _with_layout(given, layout[:, :, None], conditions.has_layout)

    def branch(given: LatentConditions, rows: TextRows | None) -> Branch:
        keys = None if rows is None else text_keys(config, params, rows)
        return begin(config, params, latent[:, :, None], given, keys)

    own = branch(given, text)
    null = branch(unconditional(given), null_text) if guided else Branch(None)
    return Session(
        cache=own.cache,
        latent=latent,
        frame=first,
        rays=rays,
        key=key,
        decode_state=decode_state,
        prior_state=prior_state,
        layout_state=layout_state,
        layout_started=conditions.has_layout,
        text=own.text,
        null_cache=null.cache,
        null_text=null.text,
        leading=leading,
    )


def step_session(
    config: WorldGenConfig,
    params: Any,
    codec: VideoCodec,
    session: Session,
    conditions: ChunkConditions,
    steps: int | None = None,
    cfg_scale: float | Float[jax.Array, ""] = 1.0,
) -> tuple[Frames, Session]:
    """Generates the next chunk.

    Args:
        config: shape of the network.
        params: the network's parameters.
        codec: with its weights.
        session: where to continue.
        conditions: of this chunk.
        steps: denoising steps; the configuration's if None.
        cfg_scale: guidance on style and text, for a session with guidance or a network that takes
            its strength as an input.

    Returns:
        The chunk's video frames [B, V, T, H, W, 3] in [0, 1], and the session after them.
    """
    given, session = encode_conditions(config, codec, session, conditions)
    given = replace(given, guidance=given.guidance * cfg_scale)
    latents, branch, null = advance(
        config,
        params,
        Branch(session.cache, session.text),
        session.latent[:, :, None],
        given,
        jax.random.fold_in(session.key, session.cache.frames),
        steps,
        Branch(session.null_cache, session.null_text) if session.guided else None,
        cfg_scale,
    )
    groups, decode_state = [], session.decode_state
    for i in range(config.chunk):
        frames, decode_state = codec.decode_step(latents[:, :, i], decode_state)
        groups.append(frames)
    frames = jnp.concatenate(groups, axis=2)
    session = replace(
        session,
        cache=branch.cache,
        null_cache=None if null is None else null.cache,
        latent=latents[:, :, -1],
        frame=frames[:, :, -1],
        decode_state=decode_state,
    )
    return frames, session


def encode_conditions(
    config: WorldGenConfig, codec: VideoCodec, session: Session, conditions: ChunkConditions
) -> tuple[LatentConditions, Session]:
    """One chunk's conditions as latents, and the session with the codec's streams moved on.

    Args:
        config: shape of the network.
        codec: with its weights.
        session: its rays, streams and newest frame are used.
        conditions: of the chunk.
    """
    batch, views, height, width = session.rays.shape[:4]
    count, group = config.chunk, config.frames_per_latent
    given = no_conditions(config, (batch, views, count, height, width), session.rays)
    blank = given.layout
    motion = rearrange(conditions.ego_motion, "b (f steps) four -> b f steps four", f=count)
    given = replace(
        given,
        ego_motion=motion,
        ego_valid=jnp.ones_like(given.ego_valid) * conditions.has_motion,
        style=conditions.style,
    )

    def stream(pictures: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        latents = []
        for i in range(count):
            part = pictures[:, :, i * group : (i + 1) * group]
            latent, state = codec.encode_step(part, state)
            latents.append(latent)
        return jnp.stack(latents, axis=2), state

    def layout_stream() -> tuple[jax.Array, Any]:
        state = jax.lax.cond(
            session.layout_started,
            lambda: session.layout_state,
            lambda: codec.encode_step(conditions.layout[:, :, :1], session.layout_state)[1],
        )
        return stream(conditions.layout, state)

    def prior_stream() -> tuple[jax.Array, Any]:
        filled = fill_holes(conditions.prior, conditions.prior_alpha, session.frame)
        return stream(filled, session.prior_state)

    layout, layout_state = _if_given(
        conditions.has_layout, layout_stream, (blank, session.layout_state)
    )
    prior, prior_state = _if_given(conditions.has_prior, prior_stream, (blank, session.prior_state))
    alpha = rearrange(conditions.prior_alpha, "b v (f t) y x -> b v f t y x", f=count)
    given = replace(given, prior=prior, prior_mask=pool_mask(alpha, height, width))
    session = replace(
        session,
        layout_state=layout_state,
        layout_started=session.layout_started | conditions.has_layout,
        prior_state=prior_state,
    )
    return _with_layout(given, layout, conditions.has_layout), session


def _if_given(given: jax.Array, encode: Any, otherwise: Any) -> Any:
    """Runs ``encode`` where a condition is present; both ways are one program."""
    return jax.lax.cond(given, encode, lambda: otherwise)


def _with_layout(
    given: LatentConditions, layout: jax.Array, has_layout: jax.Array
) -> LatentConditions:
    valid = jnp.ones_like(given.layout_valid) * has_layout
    return replace(given, layout=layout, layout_valid=valid)
