"""From the networks of a task to arrays on a mesh: fresh, from other weights, or from a checkpoint.

Shapes come first (`Layout`), then every array is made once where it belongs: nothing is initialised
that a source or a checkpoint replaces. Precedence: resume the own run, else each network's source,
else its init.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jwm_jax.checkpoint.model_dir import flatten, unflatten, weights_digest
from jwm_jax.checkpoint.sharded import check_model, load_sharded
from jwm_jax.distributed.sharding import local_rows, tree_shardings, unbox
from jwm_jax.errors import DataError, UsageError
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.nets import Net, check_phases
from jwm_jax.training.optimizer import treatments
from jwm_jax.training.state import NetState, TrainState, init_params, net_state
from jwm_jax.training.step import Plan
from jwm_jax.training.task import Task


@dataclass(frozen=True)
class Layout:
    """Shapes and places of everything a step reads, found without computing anything.

    Attributes:
        nets: The networks.
        plan: What the step has to know.
        boxed: Name -> parameters as boxed ShapeDtypeStructs.
        params: Name -> parameters as ShapeDtypeStructs with shardings.
        states: Name of a trained network -> its `NetState` of ShapeDtypeStructs with shardings.
        mesh: The mesh.
    """

    nets: Mapping[str, Net]
    plan: Plan
    boxed: Mapping[str, Any]
    params: Mapping[str, Any]
    states: Mapping[str, NetState]
    mesh: Mesh

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of scalars."""
        return NamedSharding(self.mesh, PartitionSpec())

    def state_shardings(self) -> TrainState:
        """Shardings of the whole train state."""
        nets = jax.tree.map(lambda x: x.sharding, dict(self.states))
        return TrainState(step=self.replicated, nets=nets, key=self.replicated)

    def frozen(self) -> dict[str, Any]:
        """Abstract parameters of the frozen networks."""
        return {name: self.params[name] for name, net in self.nets.items() if net.frozen}

    def abstract_state(self) -> TrainState:
        """The train state as ShapeDtypeStructs with shardings."""

        def scalar(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated)

        step, key = jax.eval_shape(lambda: (np.int32(0), jax.random.key(0)))
        return TrainState(step=scalar(step), nets=dict(self.states), key=scalar(key))


def layout(config: ExperimentConfig, task: Task, mesh: Mesh) -> Layout:
    """Shapes and shardings of a training on a mesh.

    Args:
        config: The experiment.
        task: Has the networks and phases.
        mesh: The mesh.

    Raises:
        UsageError: The phases do not fit the networks, the batch or its micro-batches do not
            divide over the mesh, or the mesh does not divide a parameter.
    """
    local_rows(mesh, config.batch_size)
    _check_micro_batches(config, mesh)
    nets, phases = dict(task.nets(config)), task.phases()
    check_phases(nets, phases)
    boxed = jax.eval_shape(partial(init_params, nets), jax.random.key(config.seed))
    trained = {name: net for name, net in nets.items() if not net.frozen}
    how = {name: treatments(boxed[name], net.trains) for name, net in trained.items()}
    states = {
        name: jax.eval_shape(partial(net_state, net, how[name]), boxed[name])
        for name, net in trained.items()
    }
    return Layout(
        nets=nets,
        plan=Plan(nets, phases, how, config.steps, config.accumulate),
        boxed=boxed,
        params={name: _placed(boxed[name], mesh, nets[name]) for name in nets},
        states={name: _placed(states[name], mesh, nets[name]) for name in states},
        mesh=mesh,
    )


def _check_micro_batches(config: ExperimentConfig, mesh: Mesh) -> None:
    rows, ways = config.batch_size // config.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise UsageError(
            f"accumulate {config.accumulate} cuts batch_size {config.batch_size} into "
            f"micro-batches of {rows}, which do not divide over the {ways} devices of "
            "data x fsdp; accumulate less or make the batch larger."
        )


def _placed(boxed: Any, mesh: Mesh, net: Net) -> Any:
    """Boxed shapes -> plain shapes that carry their shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        unbox(boxed),
        tree_shardings(boxed, mesh, net.units),
    )


def fresh_state(config: ExperimentConfig, place: Layout) -> TrainState:
    """The state at step 0: sources where networks name them, init for the others."""
    params = starting_params(config, place, [n for n, net in place.nets.items() if not net.frozen])
    states = {}
    for name, value in params.items():
        shardings = jax.tree.map(lambda x: x.sharding, place.states[name])
        make = partial(net_state, place.nets[name], place.plan.how[name])
        states[name] = jax.jit(make, out_shardings=shardings)(value)
    return TrainState(
        step=jax.device_put(np.int32(0), place.replicated), nets=states, key=_key(config, place)
    )


def frozen_params(config: ExperimentConfig, place: Layout) -> dict[str, Any]:
    """The frozen networks' parameters on the mesh, each in its own dtype."""
    return starting_params(config, place, list(place.frozen()))


def frozen_digests(nets: Mapping[str, Net]) -> dict[str, str]:
    """What identifies the frozen networks: a digest of their weights, kept in checkpoints."""
    return {
        name: weights_digest(net.source, net.kind) if net.source else "initialised"
        for name, net in nets.items()
        if net.frozen
    }


def starting_params(config: ExperimentConfig, place: Layout, names: list[str]) -> dict[str, Any]:
    """Parameters of some networks before the first step.

    Args:
        config: Has the seed.
        place: Shapes and shardings.
        names: The networks that are wanted.

    Returns:
        Name -> tree of arrays on the mesh.

    Raises:
        UsageError: There is no such source.
        DataError: A source is of another kind or size.
    """
    given = {
        n: load_source(n, place.nets[n], place.params[n]) for n in names if place.nets[n].source
    }
    whole = {n for n, tree in given.items() if len(flatten(tree)) == len(flatten(place.params[n]))}
    rest = [name for name in names if name not in whole]
    if not rest:
        return given
    shardings = {n: jax.tree.map(lambda x: x.sharding, place.params[n]) for n in rest}

    def init(key: Any) -> Any:
        boxed = init_params(place.nets, key)
        return {name: unbox(boxed[name]) for name in rest}

    made = jax.jit(init, out_shardings=shardings)(_key(config, place))
    for name in rest:
        fit = place.nets[name].fit
        if fit is not None:
            made[name] = _replaced(made[name], fit(place.params[name]))
        if name in given:  # a source that lacked something
            given[name] = unflatten({**flatten(made.pop(name)), **flatten(given[name])})
    return {**given, **made}


def check_sources(place: Layout, *, resumed: bool) -> None:
    """Refuse sources that do not fit, from their headers, before anything is compiled.

    Args:
        place: The networks and their shapes.
        resumed: Whether the trained networks come from a checkpoint, so that only frozen ones are
            read from their sources.

    Raises:
        UsageError: There is no such model.
        DataError: It is of another kind, stage or size.
    """
    for name, net in place.nets.items():
        if net.source and (net.frozen or not resumed):
            _of_source(check_model, name, net, place.params[name])


def load_source(name: str, net: Net, shapes: Any) -> Any:
    """The parameters of a network's source on the mesh.

    Raises:
        UsageError: There is no such model.
        DataError: It is of another kind, stage or size.
    """
    return _of_source(load_sharded, name, net, shapes)


def _of_source(function: Callable[..., Any], name: str, net: Net, shapes: Any) -> Any:
    try:
        return function(net.source, net.kind, shapes, net.stages, net.adds)
    except UsageError as error:
        raise UsageError(
            f"source of the network {name!r}: {error} Train the stage before this one first, or "
            "name another in the config."
        ) from None


def _replaced(params: Any, given: Any) -> Any:
    """Parameters in which the arrays of `given` stand; shapes in it leave what is there."""
    flat, new = flatten(params), flatten(given)
    for name, old in flat.items():
        value = new[name]
        if not isinstance(value, jax.ShapeDtypeStruct):
            flat[name] = jax.make_array_from_callback(
                old.shape, old.sharding, lambda i, v=value, d=old.dtype: np.asarray(v[i], d)
            )
    return unflatten(flat)


def items(state: TrainState) -> dict[str, Any]:
    """The trees of a state as a checkpoint keeps them."""
    return {
        "params": {name: net.params for name, net in state.nets.items()},
        "ema": {name: net.ema for name, net in state.nets.items()},
        "opt": {name: net.opt for name, net in state.nets.items()},
    }


def counters(state: TrainState) -> dict[str, dict[str, int | float]]:
    """The clocks of every network and its running mean of norms, for a checkpoint's data."""
    clocks = {name: (net.updates, net.skipped, net.norm) for name, net in state.nets.items()}
    return {
        name: {"updates": int(updates), "skipped": int(skipped), "norm": float(norm)}
        for name, (updates, skipped, norm) in jax.device_get(clocks).items()
    }


def restored_state(
    config: ExperimentConfig, place: Layout, trees: Mapping[str, Any], data: Mapping[str, Any]
) -> TrainState:
    """The state that a checkpoint holds.

    Args:
        config: Has the seed.
        place: Shapes and shardings.
        trees: What `items` named, restored onto the mesh.
        data: The checkpoint's data: `step`, `nets` (from `counters`), `frozen` digests.

    Raises:
        DataError: A frozen network has other weights than those the run was trained beside.
    """
    now = frozen_digests(place.nets)
    for name, digest in data["frozen"].items():
        if now.get(name) != digest:
            raise DataError(
                f"the frozen network {name!r} has other weights than those this run started with; "
                "give it the same ones, or start again in another folder."
            )

    def scalar(value: int | float, kind: type = np.int32) -> Any:
        return jax.device_put(kind(value), place.replicated)

    nets = {
        name: NetState(
            params=trees["params"][name],
            opt=trees["opt"][name],
            ema=trees["ema"].get(name),
            updates=scalar(data["nets"][name]["updates"]),
            skipped=scalar(data["nets"][name]["skipped"]),
            norm=scalar(data["nets"][name].get("norm", 0.0), np.float32),
        )
        for name in place.states
    }
    return TrainState(step=scalar(data["step"]), nets=nets, key=_key(config, place))


def _key(config: ExperimentConfig, place: Layout) -> Any:
    return jax.device_put(jax.random.key(config.seed), place.replicated)
