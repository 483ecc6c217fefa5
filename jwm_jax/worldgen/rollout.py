"""A student's own rollout inside a compiled step, and its gradient in one parallel pass.

A model distilled to few steps is trained on what it generates itself. `roll` generates a whole clip
without gradient: every chunk starts as noise, goes down the few-step schedule with fresh noise, and
stops at a random step, the exit, whose clean latents are the chunk's; a clean pass writes them into
the memory, which has a slot for every frame. One exit is shared by all chunks and rows (Self
Forcing), so it may be traced: the steps before it are a loop of that many trips.

`replay` runs the exits of all chunks again, side by side over the memory, with gradient. Each noisy
chunk sees the memory's frames before it and itself, which is what it saw in the rollout, so values
are the rollout's own; nothing is kept for the backward pass but one forward pass over the clip.
Two gradients are there:

    through the exits alone       the memory is a constant, as in Self Forcing
    through the memory as well    the clean pass runs again beside the exits, and its keys and
                                  values carry gradient to the weights that wrote them (Self
                                  Gradient Forcing, arXiv 2607.20368); the clean latents themselves
                                  stay constants

A rollout may be longer than what is judged of it: `piece` cuts some frames out of it, with those
that they see, and these alone are replayed (streaming long tuning).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jwm_jax.worldgen.cache import Cache, empty_cache
from jwm_jax.worldgen.conditions import LatentConditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import add_noise
from jwm_jax.worldgen.forward import (
    predict_from_memory,
    predict_next,
    predict_teacher_forced,
    remember,
)
from jwm_jax.worldgen.transformer import Text

Latents = Float[jax.Array, "b v f h w c"]
Frame = Float[jax.Array, "b v 1 h w c"]


class Rolled(NamedTuple):
    """A rollout of N latent frames after the first; constants, no gradient reaches them.

    Attributes:
        latents: frames 0..N, the first as given, the others the clean latents of the exit.
        noisy: what the exit was given, frames 1..N.
        sigma: of ``noisy``.
        cache: keys and values of frames 0..N, a slot each.
    """

    latents: Latents
    noisy: Latents
    sigma: Float[jax.Array, ""]
    cache: Cache


def roll(
    config: WorldGenConfig,
    params: Any,
    first: Frame,
    conditions: LatentConditions,
    key: jax.Array,
    sigmas: Float[jax.Array, " steps"],
    exit_step: Int[jax.Array, ""],
    text: Text | None = None,
) -> Rolled:
    """Generates frames 1..N on the model's own output, without gradient.

    Args:
        config: shape of the network; frames after the first come in chunks.
        params: parameters without boxes.
        first: clean latent of the first frame.
        conditions: of frames 0..N.
        key: typed PRNG key.
        sigmas: the few-step schedule, falling from 1, without the final 0.
        exit_step: index into ``sigmas`` of the step whose clean latents are kept; may be traced.
        text: from `transformer.text_keys`.
    """
    params, first = jax.lax.stop_gradient((params, first))
    count = conditions.layout.shape[2] - 1
    rows, columns = (size // config.patch for size in first.shape[3:5])
    sequences = first.shape[0] * first.shape[1]
    cache = empty_cache(config, sequences, rows * columns, max(1 + count, config.sink + 1))
    cache = remember(config, params, first, first, conditions.frames(slice(0, 1)), cache, text)
    shape = (*first.shape[:2], config.chunk, *first.shape[3:])

    def chunk(carry: tuple[Cache, jax.Array], start: jax.Array) -> Any:
        cache, previous = carry
        given = conditions.frames(start + jnp.arange(config.chunk))
        key_chunk = jax.random.fold_in(key, start)

        def clean(x: jax.Array, step: jax.Array) -> jax.Array:
            return predict_next(config, params, x, sigmas[step], previous, given, cache, text).x0

        def go_on(step: jax.Array, x: jax.Array) -> jax.Array:
            noise = jax.random.normal(jax.random.fold_in(key_chunk, step + 1), shape)
            return add_noise(clean(x, step), noise, sigmas[step + 1])

        noisy = jax.lax.fori_loop(0, exit_step, go_on, jax.random.normal(key_chunk, shape))
        latents = clean(noisy, exit_step)
        cache = remember(config, params, latents, previous, given, cache, text)
        return (cache, latents[:, :, -1:]), (noisy, latents)

    starts = 1 + config.chunk * jnp.arange(count // config.chunk)
    (cache, _), chunks = jax.lax.scan(chunk, (cache, first), starts)
    noisy, latents = (
        jnp.moveaxis(x, 0, 2).reshape(*first.shape[:2], count, *first.shape[3:]) for x in chunks
    )
    rolled = Rolled(jnp.concatenate([first, latents], axis=2), noisy, sigmas[exit_step], cache)
    return jax.lax.stop_gradient(rolled)


def first_piece(config: WorldGenConfig) -> int:
    """The first frame after which `piece` can cut: the end of the first chunk with a whole window
    and the sink before its successor."""
    frames = config.slots - 1
    return -(-frames // config.chunk) * config.chunk


def piece(
    config: WorldGenConfig, rolled: Rolled, start: Int[jax.Array, ""], count: int
) -> tuple[Rolled, Int[jax.Array, "n"]]:
    """Frames start + 1..start + count of a long rollout, and what they see.

    Args:
        config: shape of the network, with ``rebase`` or no sink.
        rolled: a rollout of more frames.
        start: the last frame of a chunk, from `first_piece` on; may be traced.
        count: frames, whole chunks.

    Returns:
        A rollout whose first ``config.slots`` frames are the sink and the window that ends with
        ``start``, all of them given, and the index of each of its frames in the whole one.
    """
    window = start + 1 - config.window + jnp.arange(config.window + count)
    index = jnp.concatenate([jnp.arange(config.sink), window])
    cache = rolled.cache
    keys, values = (jnp.take(a, index, axis=2) for a in (cache.keys, cache.values))
    noisy = jax.lax.dynamic_slice_in_dim(rolled.noisy, start, count, axis=2)
    latents = jnp.take(rolled.latents, index, axis=2)
    cache = Cache(keys, values, jnp.asarray(len(index), jnp.int32))
    return Rolled(latents, noisy, rolled.sigma, cache), index


def replay(
    config: WorldGenConfig,
    params: Any,
    rolled: Rolled,
    conditions: LatentConditions,
    through_memory: bool,
    text: Text | None = None,
    given: int = 1,
) -> Latents:
    """The clean latents of a rollout's exits again, frames given..N, with gradient to the
    parameters.

    Args:
        config: shape of the network.
        params: the parameters that made the rollout.
        rolled: from `roll`.
        conditions: of frames 0..N.
        through_memory: whether the writing of the memory has gradient too; of whole rollouts only.
        text: from `transformer.text_keys`.
        given: frames at the start that are not replayed: ``config.slots`` of a `piece`.
    """
    sigma = jnp.full((len(rolled.noisy), rolled.noisy.shape[2]), rolled.sigma)
    clean = rolled.latents[:, :, :-1]
    if through_memory:
        return predict_teacher_forced(
            config, params, clean, rolled.noisy, sigma, conditions, text=text
        ).x0
    after = conditions.frames(slice(given, None))
    return predict_from_memory(
        config, params, clean, rolled.noisy, sigma, after, rolled.cache, text, given
    ).x0
