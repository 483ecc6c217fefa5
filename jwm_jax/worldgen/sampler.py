"""Sampling latent frames one after another: Euler steps over the cache, then one clean pass.

A new frame starts as noise, takes ``steps`` Euler steps along the shifted schedule (a scan, so that
4 and 20 steps compile alike), and is then run once more at sigma 0 to leave its keys and values in
the cache; keys and values of noisy states never stay. With the teacher-forced model and 4 steps
this is "4-step sampling of the teacher-forced model": no distillation is involved.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.worldgen.cache import Cache, empty_cache, read_cache
from jwm_jax.worldgen.conditions import LatentConditions, unconditional
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import euler_step, guided, sigma_schedule
from jwm_jax.worldgen.forward import predict_next, remember

Latent = Float[jax.Array, "b v 1 h w c"]


def token_grid(config: WorldGenConfig, latent: jax.Array) -> tuple[int, int]:
    """Rows and columns of tokens of latents [..., h, w, c]."""
    return latent.shape[-3] // config.patch, latent.shape[-2] // config.patch


def begin(
    config: WorldGenConfig,
    params: Any,
    first: Latent,
    conditions: LatentConditions,
    dtype: Any = jnp.float32,
) -> Cache:
    """A cache that holds the first, given frame.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        first: clean latent of the first frame.
        conditions: of that frame.
        dtype: compute type.
    """
    rows, columns = token_grid(config, first)
    cache = empty_cache(config, first.shape[0] * first.shape[1], rows * columns, dtype)
    memory = read_cache(cache, config, (rows, columns))
    return remember(config, params, first, first, conditions, memory, cache, dtype)


def advance(
    config: WorldGenConfig,
    params: Any,
    cache: Cache,
    previous: Latent,
    conditions: LatentConditions,
    key: jax.Array,
    steps: int = 4,
    cfg_scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> tuple[Latent, Cache]:
    """Generates the next latent frame and remembers it.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        cache: past frames.
        previous: the clean latent before this frame.
        conditions: of this one frame.
        key: typed PRNG key of the noise.
        steps: Euler steps.
        cfg_scale: guidance uncond + s (cond - uncond) on the style; 1 runs no second branch.
        dtype: compute type.

    Returns:
        The clean latent and the cache with it.
    """
    memory = read_cache(cache, config, token_grid(config, previous))
    sigmas = jnp.asarray(sigma_schedule(steps, config.sampling_shift))

    def predict(x: jax.Array, sigma: jax.Array, given: LatentConditions) -> jax.Array:
        return predict_next(config, params, x, sigma, previous, given, memory, dtype)

    def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sigma, next_sigma = pair
        x0 = predict(x, sigma, conditions)
        if cfg_scale != 1.0:
            x0 = guided(predict(x, sigma, unconditional(conditions)), x0, cfg_scale)
        return euler_step(x, x0, sigma, next_sigma), None

    noise = jax.random.normal(key, previous.shape)
    latent, _ = jax.lax.scan(step, noise, (sigmas[:-1], sigmas[1:]))
    return latent, remember(config, params, latent, previous, conditions, memory, cache, dtype)


def rollout_latents(
    config: WorldGenConfig,
    params: Any,
    first: Latent,
    conditions: LatentConditions,
    key: jax.Array,
    steps: int = 4,
    dtype: Any = jnp.float32,
) -> Float[jax.Array, "b v f h w c"]:
    """A whole future in latents, for evaluation: a scan of `advance`.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        first: clean latent of the first frame.
        conditions: of frames 0..K.
        key: typed PRNG key.
        steps: Euler steps a frame.
        dtype: compute type.

    Returns:
        Latents of frames 0..K, the first as given.
    """
    cache = begin(config, params, first, conditions.frames(slice(0, 1)), dtype)
    count = conditions.layout.shape[2] - 1

    def frame(carry: tuple[Cache, jax.Array], i: jax.Array):
        cache, previous = carry
        given = conditions.frames(jnp.arange(1) + i)
        latent, cache = advance(
            config, params, cache, previous, given, jax.random.fold_in(key, i), steps, dtype=dtype
        )
        return (cache, latent), latent[:, :, 0]

    _, latents = jax.lax.scan(frame, (cache, first), jnp.arange(1, count + 1))
    return jnp.concatenate([first, jnp.moveaxis(latents, 0, 2)], axis=2)
