"""The jitted training step: gradients over micro-batches, a guarded update, the weight average.

A step whose loss or gradient is not finite changes neither weights nor moments nor the average; it
is counted, and the step counter moves on so that the next batch is another one. (optax's
`apply_if_finite` applies the bad update after enough of them; this never does.)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jwm_jax.distributed.sharding import constrain
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.optimizer import apply_gradients, learning_rate, update_ema
from jwm_jax.training.state import TrainState
from jwm_jax.training.task import Task


def _split(batch: Any, parts: int) -> Any:
    """Micro-batches along a new first axis; rows stay on the device that holds them."""

    def one(x: Any) -> Any:
        if x.ndim == 0:
            return jnp.broadcast_to(x, (parts,))
        rows = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, (None, "batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(one, batch)


def loss_and_gradients(
    task: Task, accumulate: int, params: Any, batch: Any, key: Any, constants: Any
) -> tuple[Any, dict[str, Any], Any]:
    """Mean loss, metrics and gradients of a batch, over `accumulate` micro-batches.

    Args:
        task: Has the loss.
        accumulate: Number of micro-batches; with 1 the batch is taken whole.
        params: Parameters.
        batch: The global batch.
        key: Key of the step.
        constants: What `task.constants()` gave.

    Returns:
        Loss, metrics, gradients; the same (up to rounding) for every `accumulate` when the loss
        uses no key.
    """

    def loss(params: Any, batch: Any, key: Any) -> Any:
        extra = () if constants is None else (constants,)
        return task.loss(params, batch, key, *extra)

    gradients = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, metrics), grads = gradients(params, batch, key)
        return value, metrics, grads

    def one(total: Any, part: Any) -> tuple[Any, None]:
        index, micro = part
        (value, metrics), grads = gradients(params, micro, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, (value, metrics, grads)), None

    parts = (jnp.arange(accumulate), _split(batch, accumulate))
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda: gradients(params, first[1], key))
    (value, metrics), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(one, (value, metrics, grads), parts)
    return jax.tree.map(lambda x: x / accumulate, total)


def train_step(
    config: ExperimentConfig, task: Task, how: Any, state: TrainState, batch: Any, constants: Any
) -> tuple[TrainState, dict[str, Any]]:
    """One step; pure, to be jitted with the state donated.

    Args:
        config: The experiment.
        task: The paradigm.
        how: How each parameter is updated, from `treatments`.
        state: State before.
        batch: The global batch.
        constants: What `task.constants()` gave.

    Returns:
        State after, and the task's metrics with `loss`, `grad_norm`, `lr` and `skipped` (steps in a
        row that were not finite), float32 scalars.
    """
    value, metrics, grads = loss_and_gradients(
        task, config.accumulate, state.params, batch, state.step_key(), constants
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    lr = learning_rate(config.optimizer, state.step, config.steps)
    params, opt_state = apply_gradients(
        config.optimizer, grads, state.opt_state, state.params, how, lr
    )
    ema = update_ema(config.optimizer, state.ema, params, state.step)
    new = (params, opt_state, ema)
    old = (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=ema,
        skipped=skipped,
        skipped_total=state.skipped_total + jnp.where(finite, 0, 1),
        key=state.key,
    )
    report = {"loss": value, **metrics, "grad_norm": norm, "lr": lr, "skipped": skipped}
    return state, {name: jnp.asarray(x, jnp.float32) for name, x in report.items()}
