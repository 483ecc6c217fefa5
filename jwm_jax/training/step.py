"""The jitted training step: gradients over micro-batches, guarded updates, weight averages.

A step runs the phases of a training in order. An update whose loss or gradient is not finite,
or whose gradient is a spike (`OptimizerConfig.spike`), changes neither weights nor moments nor the
average of its network; it is counted, and the step
counter moves on so that the next batch is another one. (optax's `apply_if_finite` applies the bad
update after enough of them; this never does.)

`Cycle` runs every phase's updates in one call: one executable, no branch, the batch carries a part
for each update. `Alternate` runs one update a call and chooses its phase by `lax.switch` on the
step, which every device decides alike. Both are pure and are jitted with the state donated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jwm_jax.distributed.sharding import constrain
from jwm_jax.training.nets import Net, Phase
from jwm_jax.training.optimizer import (
    NORM_DECAY,
    SPIKE_AFTER,
    apply_gradients,
    learning_rate,
    trained_gradients,
    update_ema,
)
from jwm_jax.training.state import NetState, TrainState


@dataclass(frozen=True)
class Plan:
    """What a step has to know besides its arrays.

    Attributes:
        nets: Every network by name.
        phases: In the order in which they run.
        how: Name of a trained network -> how each of its parameters is updated.
        steps: Steps of the whole run.
        accumulate: Micro-batches an update's batch is computed in.
    """

    nets: Mapping[str, Net]
    phases: tuple[Phase, ...]
    how: Mapping[str, Any]
    steps: int
    accumulate: int = 1


def _split(batch: Any, parts: int) -> Any:
    """Micro-batches along a new first axis; rows stay on the device that holds them."""

    def one(x: Any) -> Any:
        if x.ndim == 0:
            return jnp.broadcast_to(x, (parts,))
        rows = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, (None, "batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(one, batch)


def loss_and_gradients(
    phase: Phase, accumulate: int, params: Any, others: Mapping[str, Any], batch: Any, key: Any
) -> tuple[Any, dict[str, Any], Any]:
    """Loss, metrics and gradients of a batch, over `accumulate` micro-batches.

    Args:
        phase: Has the loss.
        accumulate: Number of micro-batches; with 1 the batch is taken whole.
        params: Parameters of the network that the phase moves.
        others: Parameters of the other networks by name.
        batch: The global batch of this update.
        key: Key of the update.

    Returns:
        Loss (total / weight), metrics, gradients; the same (up to rounding) for every
        `accumulate` when the loss uses no key.
    """
    if accumulate == 1:

        def mean(params: Any) -> Any:
            (total, weight), metrics = phase.loss(params, others, batch, key)
            return total / weight, metrics

        (value, metrics), grads = jax.value_and_grad(mean, has_aux=True)(params)
        return value, metrics, grads

    def sums(params: Any, batch: Any, key: Any) -> Any:
        (total, weight), metrics = phase.loss(params, others, batch, key)
        return total, (weight, metrics)

    gradients = jax.value_and_grad(sums, has_aux=True)

    def one(running: Any, part: Any) -> tuple[Any, None]:
        index, micro = part
        result = gradients(params, micro, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, running, result), None

    parts = (jnp.arange(accumulate), _split(batch, accumulate))
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda: gradients(params, first[1], key))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((total, (weight, metrics)), grads), _ = jax.lax.scan(one, zeros, parts)
    metrics = jax.tree.map(lambda x: x / accumulate, metrics)
    return total / weight, metrics, jax.tree.map(lambda g: g / weight, grads)


def update(
    plan: Plan,
    phase: Phase,
    updates: int,
    state: NetState,
    others: Mapping[str, Any],
    batch: Any,
    key: Any,
) -> tuple[NetState, dict[str, Any]]:
    """One update of one network.

    Args:
        plan: The training.
        phase: Says which network and by which loss.
        updates: Updates of this network in the whole run, for its schedule.
        state: Of the network.
        others: Parameters of the other networks by name.
        batch: Of this update.
        key: Of this update.

    Returns:
        The new state, and the phase's metrics with `loss`, `grad_norm`, `lr` and `skipped`
        (updates in a row that were skipped), float32 scalars.
    """
    config = plan.nets[phase.net].optimizer
    value, metrics, grads = loss_and_gradients(
        phase, plan.accumulate, state.params, others, batch, key
    )
    grads = trained_gradients(grads, plan.how[phase.net])
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    if config.spike:
        warm = state.updates >= SPIKE_AFTER
        good &= ~(warm & (norm > config.spike * state.norm))
    lr = learning_rate(config, state.updates, updates)
    params, opt = apply_gradients(config, grads, state.opt, state.params, plan.how[phase.net], lr)
    ema = update_ema(config, state.ema, params, state.updates)
    mean = jnp.where(state.updates > 0, state.norm, norm)
    mean = (NORM_DECAY * mean + (1 - NORM_DECAY) * norm).astype(jnp.float32)
    new, old = (params, opt, ema, mean), (state.params, state.opt, state.ema, state.norm)
    params, opt, ema, mean = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    skipped = jnp.where(good, 0, state.skipped + 1)
    state = NetState(params, opt, ema, state.updates + jnp.where(good, 1, 0), skipped, mean)
    report = {"loss": value, **metrics, "grad_norm": norm, "lr": lr, "skipped": skipped}
    return state, {name: jnp.asarray(x, jnp.float32) for name, x in report.items()}


def _others(state: TrainState, frozen: Mapping[str, Any], net: str) -> dict[str, Any]:
    trained = {name: s.params for name, s in state.nets.items() if name != net}
    return {**trained, **frozen}


def _named(plan: Plan, phase: Phase, metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics under the network's name where there are several phases."""
    if len(plan.phases) == 1:
        return metrics
    return {f"{phase.net}/{name}": value for name, value in metrics.items()}


@dataclass(frozen=True)
class Cycle:
    """All updates of all phases in one call; a batch has leaves [sum of counts, rows, ...]."""

    def batches(self, phases: tuple[Phase, ...]) -> int:
        """Batches that a step takes."""
        return sum(phase.count for phase in phases)

    def updates(self, phases: tuple[Phase, ...], net: str, steps: int) -> int:
        """Updates of a network in `steps` steps."""
        return steps * sum(phase.count for phase in phases if phase.net == net)

    def __call__(
        self, plan: Plan, state: TrainState, frozen: Mapping[str, Any], batch: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        """One step.

        Args:
            plan: The training.
            state: State before; donated.
            frozen: Parameters of the frozen networks by name.
            batch: Leaves [sum of counts, rows, ...], and [sum of counts] for scalars.

        Returns:
            State after, and the metrics, means over each phase's updates.
        """
        first, report = 0, {}
        for phase in plan.phases:
            net, metrics = self._run(plan, phase, first, state, frozen, batch)
            first += phase.count
            report |= _named(plan, phase, metrics)
            state = TrainState(state.step, {**state.nets, phase.net: net}, state.key)
        return TrainState(state.step + 1, state.nets, state.key), report

    def _run(
        self,
        plan: Plan,
        phase: Phase,
        first: int,
        state: TrainState,
        frozen: Mapping[str, Any],
        batch: Any,
    ) -> tuple[NetState, dict[str, Any]]:
        """The updates of one phase, whose batches begin at place `first`."""
        alone, base = self.batches(plan.phases) == 1, state.step_key()
        others = _others(state, frozen, phase.net)
        planned = self.updates(plan.phases, phase.net, plan.steps)

        def one(net: NetState, place_and_part: Any) -> Any:
            place, part = place_and_part
            key = base if alone else jax.random.fold_in(base, place)
            return update(plan, phase, planned, net, others, part, key)

        net = state.nets[phase.net]
        if phase.count == 1:
            return one(net, (first, jax.tree.map(lambda x: x[first], batch)))
        last = first + phase.count
        parts = jax.tree.map(lambda x: x[first:last], batch)
        net, rows = jax.lax.scan(one, net, (jnp.arange(first, last), parts))
        means = {name: jnp.mean(values) for name, values in rows.items()}
        return net, {**means, "skipped": rows["skipped"][-1]}


@dataclass(frozen=True)
class Alternate:
    """One update a call, its phase chosen by the step; a batch has leaves [1, rows, ...]."""

    def batches(self, phases: tuple[Phase, ...]) -> int:
        """Batches that a step takes."""
        return 1

    def updates(self, phases: tuple[Phase, ...], net: str, steps: int) -> int:
        """Updates of a network in `steps` steps."""
        turns = [phase.net for phase in phases for _ in range(phase.count)]
        whole, rest = divmod(steps, len(turns))
        return whole * turns.count(net) + turns[:rest].count(net)

    def __call__(
        self, plan: Plan, state: TrainState, frozen: Mapping[str, Any], batch: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        """One step; metrics of the phases whose turn it is not are NaN."""
        part = jax.tree.map(lambda x: x[0], batch)

        def run(phase: Phase) -> Any:
            planned = self.updates(plan.phases, phase.net, plan.steps)

            def branch(state: TrainState) -> Any:
                others = _others(state, frozen, phase.net)
                net = state.nets[phase.net]
                net, metrics = update(plan, phase, planned, net, others, part, state.step_key())
                return {**state.nets, phase.net: net}, _named(plan, phase, metrics)

            return branch

        branches = [run(phase) for phase in plan.phases]
        names = sorted({n for branch in branches for n in jax.eval_shape(branch, state)[1]})

        def filled(branch: Any) -> Any:
            def whole(state: TrainState) -> Any:
                nets, metrics = branch(state)
                return nets, {name: metrics.get(name, jnp.float32(jnp.nan)) for name in names}

            return whole

        turns = [i for i, phase in enumerate(plan.phases) for _ in range(phase.count)]
        turn = jnp.asarray(turns)[state.step % len(turns)]
        nets, report = jax.lax.switch(turn, [filled(branch) for branch in branches], state)
        return TrainState(state.step + 1, nets, state.key), report
