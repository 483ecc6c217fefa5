"""The training state: what a step reads and returns, and what a checkpoint keeps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jwm_jax.training.optimizer import OptimizerConfig, init_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step.

    Attributes:
        step: Steps done so far, int32 scalar; counts skipped steps too, so data moves on.
        params: Parameters, float32.
        opt_state: Moments of the optimiser.
        ema: Average of the parameters, or None when it is switched off.
        skipped: Steps skipped in a row because they were not finite, int32 scalar.
        skipped_total: Steps skipped in the whole run, int32 scalar.
        key: Base key made from the seed; the key of a step is `step_key()`.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    skipped: Any
    skipped_total: Any
    key: Any

    def step_key(self) -> Any:
        """Key of the current step, a function of seed and step alone: resuming repeats it."""
        return jax.random.fold_in(self.key, self.step)

    @property
    def averaged(self) -> Any:
        """The weights to evaluate and export: the average, or the parameters where it is off."""
        return self.params if self.ema is None else self.ema


def create_state(params: Any, optimizer: OptimizerConfig, key: Any) -> TrainState:
    """State at step 0.

    Args:
        params: Boxed or plain parameters.
        optimizer: Settings of the optimiser.
        key: Typed base key of the run.

    Returns:
        The state; the average starts as a copy of the parameters.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=init_optimizer(optimizer, params),
        ema=jax.tree.map(jnp.copy, params) if optimizer.ema_decay else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_total=jnp.zeros((), jnp.int32),
        key=key,
    )
