"""The networks of a training and the phases in which they are updated.

A training names its networks (`Net`): those with an optimiser are trained and live in the
`TrainState`; those without are frozen, never donated, never copied and never saved. A `Phase` says
which network an update moves and by which loss; `step.Cycle` and `step.Alternate` put phases in
order. Distillation has five networks and two phases; most trainings have one of each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from jwm_jax.errors import UsageError
from jwm_jax.training.optimizer import OptimizerConfig


def _every(name: str) -> bool:
    return True


@dataclass(frozen=True)
class Net:
    """One network of a training.

    Attributes:
        init: Typed key -> nested dict of parameters in flax boxes with logical axis names, as
            `module.init(...)["params"]` gives them. Traced under `jax.eval_shape` and `jax.jit`.
        optimizer: How it is trained; None freezes it.
        dtype: Type in which its parameters are kept; float32 for what is trained.
        source: Model directory or shipped size to start from; None starts from `init`.
        kind: Kind of the model that `source` holds.
        stages: Stages of training that are accepted of `source`; empty accepts all.
        adds: Dotted names that begin so may be missing in `source`; they keep what `init` gives.
        fit: Nested dict of ShapeDtypeStructs -> nested dict of numpy arrays in which a leaf may
            still be its ShapeDtypeStruct, which keeps the initialised value: parameters that are
            computed from the data before the first step.
        trains: Dotted name -> whether that parameter is trained; others keep their values.
        units: Logical axis name -> number of pieces that a mesh must not cut, such as heads.
    """

    init: Callable[[Any], Any]
    optimizer: OptimizerConfig | None = None
    dtype: Any = jnp.float32
    source: str | None = None
    kind: str = ""
    stages: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()
    fit: Callable[[Any], Any] | None = None
    trains: Callable[[str], bool] = _every
    units: Mapping[str, int] = field(default_factory=dict)

    @property
    def frozen(self) -> bool:
        """Whether the network is never updated."""
        return self.optimizer is None


@dataclass(frozen=True)
class Phase:
    """Updates of one network in a row.

    Attributes:
        net: Name of the network that moves.
        loss: (params of that network, {name: params} of all the others, batch, key) -> (total,
            weight) and a dict of float32 scalars to report. total / weight, each summed over
            micro-batches, is what is minimised; for a mean over rows the weight is their number.
            The scalars are means over the (micro-)batch.
        count: Updates in a row.
    """

    net: str
    loss: Callable[[Any, Mapping[str, Any], Any, Any], tuple[tuple[Any, Any], dict[str, Any]]]
    count: int = 1


def check_phases(nets: Mapping[str, Net], phases: tuple[Phase, ...]) -> None:
    """Refuse phases that do not fit the networks.

    Raises:
        UsageError: A phase moves an unknown or frozen network or has no updates, or a trained
            network has no phase.
    """
    for phase in phases:
        if phase.net not in nets or nets[phase.net].frozen:
            trained = ", ".join(name for name, net in nets.items() if not net.frozen)
            raise UsageError(
                f"a phase updates {phase.net!r}, which is not a trained network (those are "
                f"{trained})."
            )
        if phase.count < 1:
            raise UsageError(f"the phase of {phase.net!r} has {phase.count} updates, needs 1.")
    moved = {phase.net for phase in phases}
    idle = [name for name, net in nets.items() if not net.frozen and name not in moved]
    if idle:
        raise UsageError(f"no phase updates {', '.join(idle)}; freeze what is not trained.")
