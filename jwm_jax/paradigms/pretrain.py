"""Bidirectional pretraining of the generator: a whole clip at once, every frame seeing every frame.

The first latent frame is given clean; the others share one sigma per clip, logit-normal. The loss
is

    |x0_hat - x0|^2 / max(sigma, 0.2)^2

over frames 1..F-1, and the same of the middle head's guess where that has a weight. The result is
a start for teacher forcing, which is the same network under another attention pattern, and the real
score of distillation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.paradigms.worldgen_task import (
    NoiseConfig,
    WorldGenExperiment,
    WorldGenTask,
    x0_loss,
)
from jwm_jax.worldgen.conditions import LatentConditions, drop_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import add_noise, logit_normal_sigma, x0_weight
from jwm_jax.worldgen.forward import predict_clip
from jwm_jax.worldgen.transformer import empty_text


def bidirectional_loss(
    config: WorldGenConfig,
    noise: NoiseConfig,
    params: Any,
    latents: Float[jax.Array, "b v f h w c"],
    conditions: LatentConditions,
    key: jax.Array,
    dropout: Mapping[str, float],
    middle_weight: float = 0.0,
) -> tuple[Float[jax.Array, "b"], dict[str, Float[jax.Array, "b"]]]:
    """Flow loss of whole clips.

    Args:
        config: shape of the network.
        noise: distribution of sigma.
        params: parameters without boxes.
        latents: clean clips.
        conditions: of the same frames.
        key: typed PRNG key.
        dropout: probability of hiding each condition.
        middle_weight: of the middle head's loss.

    Returns:
        The loss and the metrics of `x0_loss`, row by row.
    """
    key_sigma, key_noise, key_drop = jax.random.split(key, 3)
    batch, _, frames = latents.shape[:3]
    conditions = drop_conditions(key_drop, conditions, dropout)
    sigma = logit_normal_sigma(key_sigma, (batch, 1), noise.sigma_mean, noise.sigma_deviation)
    sigma = jnp.broadcast_to(sigma, (batch, frames)).at[:, 0].set(0.0)
    text = empty_text(config, params, batch)
    noisy = add_noise(latents, jax.random.normal(key_noise, latents.shape), sigma)
    middle = middle_weight > 0
    predicted = predict_clip(config, params, noisy, sigma, conditions, text, middle=middle)
    predicted = jax.tree.map(lambda leaf: leaf[:, :, 1:], predicted)
    target = latents[:, :, 1:]
    base = jnp.broadcast_to(latents[:, :, :1], target.shape)
    return x0_loss(predicted, target, x0_weight(sigma[:, 1:]), base, middle_weight)


@dataclass(frozen=True, kw_only=True)
class PretrainExperiment(WorldGenExperiment):
    """Bidirectional pretraining."""

    def task(self) -> "PretrainTask":
        """Builds the task."""
        return PretrainTask(self)


class PretrainTask(WorldGenTask):
    """Bidirectional pretraining as the loop sees it."""

    stage = "bidirectional"

    def flow_loss(
        self, params: Any, batch: Any, key: Any, dropout: Mapping[str, float], history: float
    ) -> tuple[Any, dict[str, Any]]:
        """Loss of a batch of windows."""
        latents, conditions = batch
        config = self.config
        return bidirectional_loss(
            config.model,
            config.noise,
            params,
            latents,
            conditions,
            key,
            dropout,
            config.middle_weight,
        )
