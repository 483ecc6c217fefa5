"""The ways the one network is run: on a whole clip, teacher-forced, beside a memory, for the next
chunk, and for memory.

Each returns a `Prediction`, whose x0 and velocity say the same, whatever the network predicts:

    prediction = "velocity"    velocity = head,         x0 = x_sigma - sigma velocity
    prediction = "x0"          x0 = base + head,        velocity = (x_sigma - x0) / sigma

where the base is already close: the previous clean latent, or the prior where it is valid. The
"previous" latent of a frame is the clean one before its chunk; that of the first frames is the
first frame itself where it is given, and zeros where it is generated.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.worldgen.cache import Cache, write_cache
from jwm_jax.worldgen.conditions import LatentConditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import spread, velocity_from_x0
from jwm_jax.worldgen.masks import Bidirectional, Cached, FromMemory, Sight, TeacherForced
from jwm_jax.worldgen.transformer import Outputs, Text, init_params, transformer

Latents = Float[jax.Array, "b v f h w c"]
Clean = Float[jax.Array, "b v g h w c"]
Frame = Float[jax.Array, "b v 1 h w c"]


class Prediction(NamedTuple):
    """What a network says of noisy latents, float32.

    Attributes:
        x0: the clean latents.
        velocity: noise - x0.
        middle: what its middle head says, if asked.
    """

    x0: jax.Array
    velocity: jax.Array
    middle: "Prediction | None" = None


def abstract_params(config: WorldGenConfig) -> Any:
    """Shapes and types of the parameters without boxes, as ShapeDtypeStructs."""
    return nn.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def sight_of(config: WorldGenConfig, given: int) -> Sight:
    """How far chunks see in a clip whose first ``given`` frames are known."""
    return Sight(config.chunk, given, config.window, config.sink, config.rebase)


def previous_latents(clean: Clean, frames: range, sight: Sight) -> Latents:
    """The clean latent before the chunk of each of some frames.

    Args:
        clean: frames 0, 1, ... of the clip.
        frames: indices of the frames.
        sight: says where chunks begin.
    """
    before = np.asarray([sight.bounds(frame)[0] - 1 for frame in frames])
    previous = clean[:, :, np.maximum(before, 0)]
    if sight.given or before.min() >= 0:
        return previous
    return previous * jnp.asarray(before >= 0, clean.dtype)[:, None, None, None]


def predict_clip(
    config: WorldGenConfig,
    params: Any,
    noisy: Latents,
    sigma: Float[jax.Array, "b f"],
    conditions: LatentConditions,
    text: Text | None = None,
    given: int = 1,
    middle: bool = False,
) -> Prediction:
    """Clean latents of a whole clip, every frame seeing every frame.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        noisy: latents at ``sigma``.
        sigma: of each latent frame; 0 for the given ones.
        conditions: of the same frames.
        text: from `transformer.text_keys`.
        given: clean frames at the start; if any, the first is every frame's "previous" one.
        middle: whether the middle head is asked too.
    """
    first = noisy[:, :, :1] if given else jnp.zeros_like(noisy[:, :, :1])
    previous = jnp.broadcast_to(first, noisy.shape)
    outputs = transformer(
        config,
        params,
        Bidirectional(config.attention),
        noisy[:, :, None],
        sigma[:, None],
        previous[:, :, None],
        conditions,
        text=text,
        middle=middle,
    )
    return _predictions(config, outputs, noisy, sigma, previous, conditions)


def predict_teacher_forced(
    config: WorldGenConfig,
    params: Any,
    clean: Latents,
    noisy: Latents,
    sigma: Float[jax.Array, "b n"],
    conditions: LatentConditions,
    clean_sigma: Float[jax.Array, "b n"] | None = None,
    text: Text | None = None,
    given: int = 1,
    middle: bool = False,
) -> Prediction:
    """Clean latents of frames given..given+N-1, each chunk from its noisy self and the clean frames
    before it.

    Args:
        config: shape of the network; its window and sink limit what is seen.
        params: parameters without boxes.
        clean: frames 0..N-1 of the clip; N is a multiple of the chunk.
        noisy: frames given..given+N-1 at ``sigma``.
        sigma: of the noisy frames.
        conditions: of frames 0..given+N-1.
        clean_sigma: sigma that the network is told of the clean frames, if they are noisy; 0 if not
            given.
        text: from `transformer.text_keys`.
        given: frames that are a chunk of their own and only clean; 0 if the first chunk is
            generated from nothing, as Wan's is.
        middle: whether the middle head is asked too.

    Raises:
        ValueError: a number of frames that is not a multiple of the chunk.
    """
    sight, count = sight_of(config, given), clean.shape[2]
    _check_chunks(config, count)
    previous = [
        previous_latents(clean, range(offset, offset + count), sight) for offset in (0, given)
    ]
    clean_sigma = jnp.zeros_like(sigma) if clean_sigma is None else clean_sigma
    outputs = transformer(
        config,
        params,
        TeacherForced(sight, config.attention),
        jnp.stack([clean, noisy], axis=2),
        jnp.stack([clean_sigma, sigma], axis=1),
        jnp.stack(previous, axis=2),
        conditions,
        text=text,
        middle=middle,
    )
    after = conditions.frames(slice(given, given + count))
    return _predictions(config, outputs, noisy, sigma, previous[1], after)


def predict_from_memory(
    config: WorldGenConfig,
    params: Any,
    clean: Clean,
    noisy: Latents,
    sigma: Float[jax.Array, "b n"],
    conditions: LatentConditions,
    cache: Cache,
    text: Text | None = None,
    given: int = 1,
    middle: bool = False,
) -> Prediction:
    """What `predict_teacher_forced` predicts, over keys and values that are already there.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        clean: frames 0..N-1, which the cache remembers; read for "previous" latents only.
        noisy: frames given..given+N-1 at ``sigma``, whole chunks.
        sigma: of the noisy frames.
        conditions: of the noisy frames.
        cache: holds the clean frames in the first slots, one each.
        text: from `transformer.text_keys`.
        given: frames at the start that are only clean.
        middle: whether the middle head is asked too.

    Raises:
        ValueError: a number of frames that is not a multiple of the chunk, or a cache with fewer
            slots than clean frames that are seen.
    """
    sight, count = sight_of(config, given), noisy.shape[2]
    _check_chunks(config, count)
    seen = given + count - config.chunk
    if cache.keys.shape[2] < seen:
        raise ValueError(
            f"the cache has {cache.keys.shape[2]} slots, but {seen} clean frames are seen; make it "
            f"with empty_cache(slots={seen})."
        )
    previous = previous_latents(clean, range(given, given + count), sight)
    outputs = transformer(
        config,
        params,
        FromMemory(sight, config.attention),
        noisy[:, :, None],
        sigma[:, None],
        previous[:, :, None],
        conditions,
        cache,
        text,
        middle=middle,
    )
    return _predictions(config, outputs, noisy, sigma, previous, conditions)


def predict_next(
    config: WorldGenConfig,
    params: Any,
    noisy: Latents,
    sigma: Float[jax.Array, ""],
    previous: Frame,
    conditions: LatentConditions,
    cache: Cache,
    text: Text | None = None,
    middle: bool = False,
) -> Prediction:
    """The clean latents of the chunk after the frames in the cache.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        noisy: the chunk at ``sigma``, any number of frames.
        sigma: scalar.
        previous: clean latent of the frame before the chunk, one latent frame.
        conditions: of the chunk's frames.
        cache: past frames.
        text: from `transformer.text_keys`.
        middle: whether the middle head is asked too.
    """
    sigma = jnp.full((noisy.shape[0], noisy.shape[2]), sigma, jnp.float32)
    previous = jnp.broadcast_to(previous, noisy.shape)
    outputs = _cached(config, params, noisy, sigma, previous, conditions, cache, text, True, middle)
    return _predictions(config, outputs, noisy, sigma, previous, conditions)


def remember(
    config: WorldGenConfig,
    params: Any,
    latents: Latents,
    previous: Frame,
    conditions: LatentConditions,
    cache: Cache,
    text: Text | None = None,
    sigma: Float[jax.Array, ""] | float = 0.0,
) -> Cache:
    """Runs a clean chunk and writes its keys and values into the cache.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        latents: the clean chunk, any number of frames.
        previous: clean latent of the frame before it, one latent frame.
        conditions: of the chunk's frames.
        cache: what came before.
        text: from `transformer.text_keys`.
        sigma: what the network is told of the chunk's noise, if some was added to it.
    """
    sigma = jnp.full((latents.shape[0], latents.shape[2]), sigma, jnp.float32)
    previous = jnp.broadcast_to(previous, latents.shape)
    outputs = _cached(
        config, params, latents, sigma, previous, conditions, cache, text, False, False
    )
    return write_cache(cache, outputs.keys, outputs.values, config)


def _cached(config, params, latents, sigma, previous, conditions, cache, text, head, middle):
    return transformer(
        config,
        params,
        Cached(config.window, config.sink, config.rebase, config.attention),
        latents[:, :, None],
        sigma[:, None],
        previous[:, :, None],
        conditions,
        cache,
        text,
        head=head,
        middle=middle,
    )


def _predictions(
    config: WorldGenConfig,
    outputs: Outputs,
    noisy: Latents,
    sigma: Float[jax.Array, "b f"],
    previous: Latents,
    conditions: LatentConditions,
) -> Prediction:
    """The heads' outputs as clean latents and velocities."""

    def one(output: jax.Array) -> Prediction:
        if config.prediction == "velocity":
            return Prediction(noisy - spread(sigma, noisy) * output, output)
        base = previous
        if config.takes("prior"):
            mask = conditions.prior_mask
            base = conditions.prior * mask + previous * (1.0 - mask)
        x0 = base + output
        return Prediction(x0, velocity_from_x0(noisy, x0, sigma))

    middle = None if outputs.middle is None else one(outputs.middle)
    return one(outputs.head)._replace(middle=middle)


def _check_chunks(config: WorldGenConfig, frames: int) -> None:
    if frames % config.chunk:
        raise ValueError(
            f"{frames} latent frames do not divide into chunks of {config.chunk}; give "
            f"{frames // config.chunk * config.chunk} of them."
        )
