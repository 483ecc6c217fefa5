"""The four ways the one network is run: bidirectionally, teacher-forced, for a new frame, for
memory.

All predict clean latents x0; `flow.velocity_from_x0` turns them into velocities. The frame before
the first is taken to be the first itself.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.worldgen.cache import Cache, Memory, write_cache
from jwm_jax.worldgen.conditions import LatentConditions, no_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.masks import Bidirectional, Cached, TeacherForced
from jwm_jax.worldgen.transformer import Transformer

Latents = Float[jax.Array, "b v f h w c"]


def init_params(config: WorldGenConfig, key: jax.Array) -> Any:
    """Fresh parameters in their boxes with logical axis names; they do not depend on sizes of
    images.

    Args:
        config: shape of the network.
        key: typed PRNG key.
    """
    side = config.patch
    latents = jnp.zeros((1, 1, 1, side, side, config.latent_channels))
    conditions = no_conditions(config, (1, 1, 1, side, side))
    network = Transformer(config, Bidirectional())
    return network.init(key, latents, jnp.zeros((1, 1)), latents, conditions)["params"]


def abstract_params(config: WorldGenConfig) -> Any:
    """Shapes and types of the parameters without boxes, as ShapeDtypeStructs."""
    return nn.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def predict_clip(
    config: WorldGenConfig,
    params: Any,
    noisy: Latents,
    sigma: Float[jax.Array, "b f"],
    conditions: LatentConditions,
    dtype: Any = jnp.float32,
) -> Latents:
    """Clean latents of a whole clip, every frame seeing every frame.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        noisy: latents at ``sigma``; the first frame is clean (its sigma is 0) and is every frame's
            "previous" one.
        sigma: of each latent frame.
        conditions: of the same frames.
        dtype: compute type.
    """
    previous = jnp.broadcast_to(noisy[:, :, :1], noisy.shape)
    network = Transformer(config, Bidirectional(), dtype=dtype)
    return network.apply({"params": params}, noisy, sigma, previous, conditions)[0]


def predict_teacher_forced(
    config: WorldGenConfig,
    params: Any,
    clean: Latents,
    noisy: Latents,
    sigma: Float[jax.Array, "b k"],
    conditions: LatentConditions,
    dtype: Any = jnp.float32,
) -> Latents:
    """Clean latents of frames 1..K, each from its noisy self and the clean frames before it.

    Args:
        config: shape of the network; its window and sink limit what is seen.
        params: parameters without boxes.
        clean: frames 0..K-1 of the clip.
        noisy: frames 1..K at ``sigma``.
        sigma: of the noisy frames.
        conditions: of frames 0..K.
        dtype: compute type.
    """
    count = clean.shape[2]
    pattern = TeacherForced(count, config.window, config.sink)
    before = jnp.concatenate([clean[:, :, :1], clean[:, :, :-1]], axis=2)
    both = [*range(count), *range(1, count + 1)]
    network = Transformer(config, pattern, output_from=count, dtype=dtype)
    return network.apply(
        {"params": params},
        jnp.concatenate([clean, noisy], axis=2),
        jnp.concatenate([jnp.zeros_like(sigma), sigma], axis=1),
        jnp.concatenate([before, clean], axis=2),
        conditions.frames(both),
    )[0]


def predict_next(
    config: WorldGenConfig,
    params: Any,
    noisy: Latents,
    sigma: Float[jax.Array, ""],
    previous: Latents,
    conditions: LatentConditions,
    memory: Memory,
    dtype: Any = jnp.float32,
) -> Latents:
    """The clean latent of the frame after those in memory.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        noisy: the frame at ``sigma``, one latent frame.
        sigma: scalar.
        previous: clean latent of the frame before.
        conditions: of this one frame.
        memory: from `cache.read_cache`.
        dtype: compute type.
    """
    network = Transformer(config, Cached(), dtype=dtype)
    sigma = jnp.full((noisy.shape[0], 1), sigma, jnp.float32)
    return network.apply({"params": params}, noisy, sigma, previous, conditions, memory)[0]


def remember(
    config: WorldGenConfig,
    params: Any,
    latent: Latents,
    previous: Latents,
    conditions: LatentConditions,
    memory: Memory,
    cache: Cache,
    dtype: Any = jnp.float32,
) -> Cache:
    """Runs a clean frame at sigma 0 and writes its keys and values into the cache.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        latent: the clean frame, one latent frame.
        previous: clean latent of the frame before it.
        conditions: of this one frame.
        memory: what `cache` held before the frame, from `cache.read_cache`.
        cache: to be written.
        dtype: compute type.
    """
    network = Transformer(config, Cached(), output_from=1, dtype=dtype)
    sigma = jnp.zeros((latent.shape[0], 1))
    _, (keys, values) = network.apply(
        {"params": params}, latent, sigma, previous, conditions, memory
    )
    return write_cache(cache, keys, values, config)
