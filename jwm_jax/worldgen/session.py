"""A generation session: everything that carries over from one chunk to the next, as a pytree.

`start_session` encodes the first frames and puts them into the cache; `step_session` encodes one
chunk's conditions, generates one latent frame and decodes it to four video frames. Both are pure,
so a session may be copied (forked), kept and continued; the noise is a function of the session's
key and of the frame's index. Pictures of conditions go through the codec as streams whose states
live in the session: the prior's stream begins with the true first frame, the layout's with the
first layout frame it is given.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float

from jwm_jax.scene.pytree import pytree_dataclass, static_field
from jwm_jax.worldgen.cache import Cache
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.conditions import (
    Conditions,
    LatentConditions,
    fill_holes,
    no_conditions,
    pool_mask,
)
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.sampler import advance, begin

Frames = Float[jax.Array, "b v f height width 3"]


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
    leading: int = static_field(default=1)

    @property
    def num_frames(self) -> jax.Array:
        """Latent frames generated so far, not counting the first."""
        return self.cache.frames - 1


def start_session(
    config: WorldGenConfig,
    params: Any,
    codec: VideoCodec,
    first: Float[jax.Array, "b v height width 3"],
    rays: Float[jax.Array, "b v h w 6"],
    key: JaxArray,
    conditions: Conditions,
    leading: int = 1,
    dtype: Any = jnp.float32,
) -> Session:
    """Encodes the first frames and remembers them.

    Args:
        config: shape of the network.
        params: the network's parameters.
        codec: with its weights.
        first: RGB in [0, 1].
        rays: from `conditions.camera_rays`.
        key: typed PRNG key.
        conditions: what is known about the first frame: one layout frame, ego motion, style; with
            batch and view axes.
        leading: see `Session`.
        dtype: compute type.
    """
    lead, (height, width) = first.shape[:2], (n // 8 for n in first.shape[2:4])
    fresh = codec.initial_encode_state(lead, height, width)
    latent, prior_state = codec.encode_step(first[:, :, None], fresh)
    _, decode_state = codec.decode_step(latent, codec.initial_decode_state(lead, height, width))
    given = no_conditions(config, (*lead, 1, height, width), rays)
    given = _with_numbers(given, conditions)
    layout_state, started = fresh, conditions.layout is not None
    if conditions.layout is not None:
        layout, layout_state = codec.encode_step(conditions.layout[:, :, :1], fresh)
        given = _with_layout(given, layout)
    cache = begin(config, params, latent[:, :, None], given, dtype)
    return Session(
        cache=cache,
        latent=latent,
        frame=first,
        rays=rays,
        key=key,
        decode_state=decode_state,
        prior_state=prior_state,
        layout_state=layout_state,
        layout_started=jnp.asarray(started),
        leading=leading,
    )


def step_session(
    config: WorldGenConfig,
    params: Any,
    codec: VideoCodec,
    session: Session,
    conditions: Conditions,
    steps: int = 4,
    cfg_scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> tuple[Frames, Session]:
    """Generates the next chunk.

    Args:
        config: shape of the network.
        params: the network's parameters.
        codec: with its weights.
        session: where to continue.
        conditions: of this chunk, with batch and view axes.
        steps: denoising steps.
        cfg_scale: guidance on the style; 1 is none.
        dtype: compute type.

    Returns:
        Four video frames [B, V, 4, H, W, 3] in [0, 1], and the session after them.
    """
    given, session = encode_conditions(config, codec, session, conditions)
    key = jax.random.fold_in(session.key, session.cache.frames)
    latent, cache = advance(
        config,
        params,
        session.cache,
        session.latent[:, :, None],
        given,
        key,
        steps,
        cfg_scale,
        dtype,
    )
    latent = latent[:, :, 0]
    frames, decode_state = codec.decode_step(latent, session.decode_state)
    session = replace(
        session,
        cache=cache,
        latent=latent,
        frame=frames[:, :, -1],
        decode_state=decode_state,
    )
    return frames, session


def encode_conditions(
    config: WorldGenConfig, codec: VideoCodec, session: Session, conditions: Conditions
) -> tuple[LatentConditions, Session]:
    """One chunk's conditions as latents, and the session with the codec's streams moved on.

    Args:
        config: shape of the network.
        codec: with its weights.
        session: its rays, streams and newest frame are used.
        conditions: with batch and view axes.
    """
    batch, views, height, width = session.rays.shape[:4]
    given = no_conditions(config, (batch, views, 1, height, width), session.rays)
    given = _with_numbers(given, conditions)
    if conditions.layout is not None:
        layout = conditions.layout
        state = jax.lax.cond(
            session.layout_started,
            lambda: session.layout_state,
            lambda: codec.encode_step(layout[:, :, :1], session.layout_state)[1],
        )
        latent, state = codec.encode_step(layout, state)
        given = _with_layout(given, latent)
        session = replace(session, layout_state=state, layout_started=jnp.asarray(True))
    if conditions.prior is not None:
        alpha = conditions.prior_alpha
        if alpha is None:
            alpha = jnp.ones(conditions.prior.shape[:-1])
        filled = fill_holes(conditions.prior, alpha, session.frame)
        latent, state = codec.encode_step(filled, session.prior_state)
        mask = pool_mask(alpha, height, width)[:, :, None]
        given = replace(given, prior=latent[:, :, None], prior_mask=mask)
        session = replace(session, prior_state=state)
    return given, session


def _with_numbers(given: LatentConditions, conditions: Conditions) -> LatentConditions:
    if conditions.ego_motion is not None:
        given = replace(
            given,
            ego_motion=conditions.ego_motion[:, None],
            ego_valid=jnp.ones_like(given.ego_valid),
        )
    if conditions.style is not None:
        given = replace(given, style=conditions.style)
    return given


def _with_layout(given: LatentConditions, latent: jax.Array) -> LatentConditions:
    return replace(given, layout=latent[:, :, None], layout_valid=jnp.ones_like(given.layout_valid))
