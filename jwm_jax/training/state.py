"""The training state: what a step reads and returns, and what a checkpoint keeps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jwm_jax.training.nets import Net
from jwm_jax.training.optimizer import init_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetState:
    """What changes of one network.

    Attributes:
        params: Parameters, float32.
        opt: Moments of the optimiser.
        ema: Average of the parameters, or None when it is switched off.
        updates: Updates that moved the network, int32 scalar: its clock for learning rate and
            average. A skipped update does not count.
        skipped: Updates skipped in a row, not finite or spikes, int32 scalar.
        norm: Running mean of the norms of its gradients, float32 scalar.
    """

    params: Any
    opt: Any
    ema: Any
    updates: Any
    skipped: Any
    norm: Any

    @property
    def averaged(self) -> Any:
        """The weights to evaluate and export: the average, or the parameters where it is off."""
        return self.params if self.ema is None else self.ema


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step.

    Attributes:
        step: Steps done, int32 scalar; counts steps with skipped updates too, so data moves on.
        nets: Name of each trained network -> its state.
        key: Base key made from the seed; the key of a step is `step_key()`.
    """

    step: Any
    nets: dict[str, NetState]
    key: Any

    def step_key(self) -> Any:
        """Key of the current step, a function of seed and step alone: resuming repeats it."""
        return jax.random.fold_in(self.key, self.step)


def init_params(nets: Mapping[str, Net], key: Any) -> dict[str, Any]:
    """Fresh boxed parameters of every network, each in its own dtype.

    Args:
        nets: The networks; the first takes `key` itself, the others keys folded from it.
        key: Typed base key of the run.
    """
    params = {}
    for place, (name, net) in enumerate(nets.items()):
        boxed = net.init(jax.random.fold_in(key, place) if place else key)
        params[name] = jax.tree.map(lambda x, net=net: x.astype(net.dtype), boxed)
    return params


def net_state(net: Net, how: Any, params: Any) -> NetState:
    """The state of a trained network at step 0; the average starts as a copy of the parameters.

    Args:
        net: The network.
        how: How each parameter is updated, from `treatments`.
        params: Its parameters, boxed or plain.
    """
    return NetState(
        params=params,
        opt=init_optimizer(net.optimizer, params, how),
        ema=jax.tree.map(jnp.copy, params) if net.optimizer.ema_decay else None,
        updates=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        norm=jnp.zeros((), jnp.float32),
    )
