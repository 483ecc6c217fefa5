"""Sampling chunk after chunk: denoising steps over the cache, then one clean pass.

A new chunk starts as noise, takes ``steps`` steps down the shifted schedule (a scan, so that 4 and
20 steps compile alike), and is then run once more at sigma 0 to leave its keys and values in the
cache; keys and values of noisy states never stay. From the clean latents x0 that it predicts at
sigma, a step goes on to sigma' by Euler's method, or with fresh noise for models distilled to few
steps, which have seen nothing else:

    euler    x' = x0 + (x - x0) sigma' / sigma
    renoise  x' = (1 - sigma') x0 + sigma' eps

With a teacher-forced model and 4 steps this is "4-step sampling of the teacher-forced model": no
distillation is involved.

What is remembered may carry a little noise (``context_noise``), as history does in training, so
that mistakes in it count for less.

Guidance runs a second, null branch beside the first, with a memory of its own: what it remembers is
the same clean latents under its own conditions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.worldgen.cache import Cache, empty_cache
from jwm_jax.worldgen.conditions import LatentConditions, unconditional
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import add_noise, euler_step, guided, sigma_schedule
from jwm_jax.worldgen.forward import predict_next, remember
from jwm_jax.worldgen.transformer import Text

Latents = Float[jax.Array, "b v f h w c"]
Frame = Float[jax.Array, "b v 1 h w c"]


class Branch(NamedTuple):
    """What one branch of guidance carries from chunk to chunk.

    Attributes:
        cache: its past frames.
        text: keys and values of its text, for a network with text.
    """

    cache: Cache
    text: Text | None = None


def step_sigmas(config: WorldGenConfig, steps: int | None = None) -> Float[np.ndarray, " sigmas"]:
    """The sigmas of a chunk's steps, from 1 down to 0.

    Args:
        config: has the shift and the number of steps.
        steps: another number of steps.
    """
    return sigma_schedule(config.sampling_steps if steps is None else steps, config.sampling_shift)


def begin(
    config: WorldGenConfig,
    params: Any,
    first: Frame,
    conditions: LatentConditions,
    text: Text | None = None,
) -> Branch:
    """A branch that remembers the first, given frame.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        first: clean latent of the first frame, one latent frame.
        conditions: of that frame.
        text: from `transformer.text_keys`.
    """
    rows, columns = (size // config.patch for size in first.shape[3:5])
    cache = empty_cache(config, first.shape[0] * first.shape[1], rows * columns)
    return Branch(remember(config, params, first, first, conditions, cache, text), text)


def advance(
    config: WorldGenConfig,
    params: Any,
    branch: Branch,
    previous: Frame,
    conditions: LatentConditions,
    key: jax.Array,
    steps: int | None = None,
    null: Branch | None = None,
    cfg_scale: float | Float[jax.Array, ""] = 1.0,
) -> tuple[Latents, Branch, Branch | None]:
    """Generates the next chunk and remembers it.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        branch: past frames.
        previous: the clean latent before this chunk, one latent frame.
        conditions: of this chunk's frames.
        key: typed PRNG key of the noise.
        steps: denoising steps; the configuration's if None.
        null: the unconditional branch; None runs without guidance.
        cfg_scale: guidance uncond + s (cond - uncond) on style and text, with ``null`` only.

    Returns:
        The clean latents and the branches with them.
    """
    sigmas = jnp.asarray(step_sigmas(config, steps))

    def predict(x: jax.Array, sigma: jax.Array, given: LatentConditions, by: Branch) -> jax.Array:
        return predict_next(config, params, x, sigma, previous, given, by.cache, by.text).x0

    def step(x: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        sigma, next_sigma, index = row
        x0 = predict(x, sigma, conditions, branch)
        if null is not None:
            x0 = guided(predict(x, sigma, unconditional(conditions), null), x0, cfg_scale)
        if config.sampler == "euler":
            return euler_step(x, x0, sigma, next_sigma), None
        noise = jax.random.normal(jax.random.fold_in(key, index), x.shape)
        return add_noise(x0, noise, next_sigma), None

    def with_memory(by: Branch, given: LatentConditions) -> Branch:
        kept = latents
        if config.context_noise:
            key_kept = jax.random.fold_in(key, len(sigmas))
            kept = kept + config.context_noise * jax.random.normal(key_kept, kept.shape)
        return by._replace(cache=remember(config, params, kept, previous, given, by.cache, by.text))

    frames = conditions.layout.shape[2]
    shape = (*previous.shape[:2], frames, *previous.shape[3:])
    noise = jax.random.normal(key, shape)
    rows = (sigmas[:-1], sigmas[1:], jnp.arange(1, len(sigmas)))
    latents, _ = jax.lax.scan(step, noise, rows)
    if null is not None:
        null = with_memory(null, unconditional(conditions))
    return latents, with_memory(branch, conditions), null


def rollout_latents(
    config: WorldGenConfig,
    params: Any,
    first: Frame,
    conditions: LatentConditions,
    key: jax.Array,
    steps: int | None = None,
    text: Text | None = None,
) -> Latents:
    """A whole future in latents, for evaluation: a scan of `advance`.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        first: clean latent of the first frame.
        conditions: of frames 0..K, K a multiple of the chunk.
        key: typed PRNG key.
        steps: denoising steps a chunk; the configuration's if None.
        text: from `transformer.text_keys`.

    Returns:
        Latents of frames 0..K, the first as given.
    """
    branch = begin(config, params, first, conditions.frames(slice(0, 1)), text)
    chunks = (conditions.layout.shape[2] - 1) // config.chunk

    def chunk(carry: tuple[Cache, jax.Array], start: jax.Array):
        cache, previous = carry
        given = conditions.frames(jnp.arange(config.chunk) + start)
        latents, after, _ = advance(
            config,
            params,
            Branch(cache, text),
            previous,
            given,
            jax.random.fold_in(key, start),
            steps,
        )
        return (after.cache, latents[:, :, -1:]), latents

    starts = 1 + config.chunk * jnp.arange(chunks)
    _, latents = jax.lax.scan(chunk, (branch.cache, first), starts)
    latents = jnp.moveaxis(latents, 0, 2)
    latents = latents.reshape(*first.shape[:2], -1, *first.shape[3:])
    return jnp.concatenate([first, latents], axis=2)
