"""Teacher forcing: every chunk of a clip from its noisy self and the true frames before it, at
once.

Noisy chunk i sees what a session sees when it generates chunk i (`worldgen.masks`), so the trained
model runs causally with a cache. Each noisy chunk draws its own sigma; the loss is

    |x0_hat - x0|^2 / max(sigma, 0.2)^2

over frames 1..K, and the same of the middle head's guess where that has a weight. At inference the
history is the model's own output, not the truth; noise of a random strength on the clean frames
after the first (at sigma 0 all the same) prepares the model for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.distributed import gather_to_host
from jwm_jax.errors import UsageError
from jwm_jax.paradigms.worldgen_task import (
    NoiseConfig,
    WorldGenExperiment,
    WorldGenTask,
    x0_loss,
)
from jwm_jax.worldgen.conditions import LatentConditions, drop_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import add_noise, logit_normal_sigma, x0_weight
from jwm_jax.worldgen.forward import predict_teacher_forced
from jwm_jax.worldgen.sampler import rollout_latents
from jwm_jax.worldgen.transformer import empty_text


def teacher_forcing_loss(
    config: WorldGenConfig,
    noise: NoiseConfig,
    params: Any,
    latents: Float[jax.Array, "b v f h w c"],
    conditions: LatentConditions,
    key: jax.Array,
    dropout: Mapping[str, float],
    history: float,
    middle_weight: float = 0.0,
) -> tuple[Float[jax.Array, "b"], dict[str, Float[jax.Array, "b"]]]:
    """Flow loss of frames 1..K given the frames before each.

    Args:
        config: shape of the network.
        noise: distribution of sigma.
        params: parameters without boxes.
        latents: clean clips of K + 1 frames.
        conditions: of the same frames.
        key: typed PRNG key.
        dropout: probability of hiding each condition.
        history: largest standard deviation of the noise on the history.
        middle_weight: of the middle head's loss.

    Returns:
        The loss and the metrics of `x0_loss`, row by row.
    """
    key_sigma, key_noise, key_drop, key_level, key_history = jax.random.split(key, 5)
    batch, count = latents.shape[0], latents.shape[2] - 1
    conditions = drop_conditions(key_drop, conditions, dropout)
    level = history * jax.random.uniform(key_level, (batch, 1, 1, 1, 1, 1))
    clean = latents[:, :, :-1]
    disturbed = clean + level * jax.random.normal(key_history, clean.shape)
    clean = jnp.concatenate([clean[:, :, :1], disturbed[:, :, 1:]], axis=2)
    target = latents[:, :, 1:]
    chunks = (batch, count // config.chunk)
    sigma = logit_normal_sigma(key_sigma, chunks, noise.sigma_mean, noise.sigma_deviation)
    sigma = jnp.repeat(sigma, config.chunk, axis=1)
    noisy = add_noise(target, jax.random.normal(key_noise, target.shape), sigma)
    text = empty_text(config, params, batch)
    predicted = predict_teacher_forced(
        config, params, clean, noisy, sigma, conditions, text=text, middle=middle_weight > 0
    )
    return x0_loss(predicted, target, x0_weight(sigma), clean, middle_weight)


@dataclass(frozen=True, kw_only=True)
class TeacherForcingExperiment(WorldGenExperiment):
    """Teacher forcing.

    Attributes:
        rollout_steps: denoising steps of the rollouts that evaluation measures; those of the model
            where it is distilled to few.
    """

    rollout_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source.window - 1) % self.model.chunk:
            raise UsageError(
                f"source.window {self.source.window} must be 1 + a multiple of model.chunk "
                f"{self.model.chunk}: the first latent frame is given, the others come in chunks."
            )

    def task(self) -> "TeacherForcingTask":
        """Builds the task."""
        return TeacherForcingTask(self)


class TeacherForcingTask(WorldGenTask):
    """Teacher forcing as the loop sees it."""

    def flow_loss(
        self, params: Any, batch: Any, key: Any, dropout: Mapping[str, float], history: float
    ) -> tuple[Any, dict[str, Any]]:
        """Loss of a batch of windows."""
        latents, conditions = batch
        config = self.config
        return teacher_forcing_loss(
            config.model,
            config.noise,
            params,
            latents,
            conditions,
            key,
            dropout,
            history,
            config.middle_weight,
        )

    def evaluate(self, params: Any) -> dict[str, Any]:
        """Held-out loss, and how far rollouts drift from the truth beside copying the first frame.

        Rollouts run on the model's own output; errors are mean squares in latents of unit variance
        at the first, the middle and the last frame.
        """
        values = super().evaluate(params)
        given = self.held_out_batch()
        if given is None:
            return values
        (latents, conditions), weights = given
        rolled = self._rollout(params, latents[:, :, :1], conditions)
        rolled, latents = gather_to_host((rolled, latents))

        def mean(error: np.ndarray) -> float:
            return float(
                np.average(np.square(error).reshape(len(weights), -1).mean(1), weights=weights)
            )

        last = latents.shape[2] - 1
        for frame in sorted({1, (last + 1) // 2, last}):
            truth = latents[:, :, frame]
            values[f"rollout_mse_{frame}"] = mean(rolled[:, :, frame] - truth)
            values[f"copy_mse_{frame}"] = mean(latents[:, :, 0] - truth)
        return values | self.judge(rolled, latents)

    def judge(
        self,
        rolled: Float[np.ndarray, "b v f h w c"],
        truth: Float[np.ndarray, "b v f h w c"],
    ) -> dict[str, Any]:
        """What else evaluation says of rollouts beside the true clips, frame 0 given."""
        return {}

    @cached_property
    def _rollout(self) -> Any:
        steps = self.config.rollout_steps

        def run(params: Any, first: jax.Array, conditions: LatentConditions) -> jax.Array:
            key = jax.random.key(0)
            return rollout_latents(self.exported, params, first, conditions, key, steps)

        return jax.jit(run)
