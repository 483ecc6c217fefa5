"""AdamW with warm-up and cosine decay, clipping by the global norm, and an average of the weights.

    g   <- g min(1, clip / |g|)
    m   <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
    p   <- p - lr(step) (m^ / (sqrt(v^) + eps) + decay p)                      decay only on kernels
    ema <- ema + (1 - d(step)) (p - ema),    d(step) = min(ema_decay, (1 + step) / (10 + step))

The learning rate is a function of the network's own count of updates (`step`), so a skipped update
moves neither the schedule nor the moments. Without a first moment (b1 = 0) none is stored. AdamW:
Loshchilov and Hutter, arXiv 1711.05101.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jwm_jax.distributed.compiled import OPTIMIZER
from jwm_jax.distributed.sharding import is_box
from jwm_jax.errors import UsageError
from jwm_jax.training.muon import is_matrix, scale_by_muon_and_adam

SPIKE_AFTER = 100
"""Updates before which no gradient counts as a spike."""

NORM_DECAY = 0.99
"""Of the running mean of gradient norms."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser.

    Attributes:
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        final_fraction: Learning rate at the last step as a share of the peak; 1 keeps it constant.
        weight_decay: Decoupled decay of kernels; vectors, tables of embeddings and modulations are
            never decayed.
        b1: Decay of the first moment; with 0 none is kept.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
        clip: Largest global norm of the gradient; 0 switches clipping off.
        spike: A gradient whose norm is so many times the running mean of norms is skipped, like one
            that is not finite, once there were `SPIKE_AFTER` updates; 0 skips none. Not where
            terms of the loss come and go.
        ema_decay: Decay of the weight average; 0 switches the average off.
        ema_start: Updates before which the average is the parameters themselves.
        muon: Orthogonalise the updates of the kernels of convolutions and blocks, see `muon`.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 100
    final_fraction: float = 0.05
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    clip: float = 1.0
    spike: float = 0.0
    ema_decay: float = 0.999
    ema_start: int = 0
    muon: bool = False

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UsageError(f"optimizer.learning_rate must be positive, got {self.learning_rate}.")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"optimizer.ema_decay must be in [0, 1), got {self.ema_decay}.")
        if self.muon and not self.b1:
            raise UsageError("optimizer.muon needs a first moment: set optimizer.b1 above 0.")
        if self.spike and self.spike <= 1.0:
            raise UsageError(f"optimizer.spike must be 0 or above 1, got {self.spike}.")
        if self.warmup_steps < 0 or self.clip < 0:
            raise UsageError("optimizer.warmup_steps and optimizer.clip must not be negative.")


def learning_rate(config: OptimizerConfig, step: Any, total_steps: int) -> jax.Array:
    """Learning rate of a step.

    Args:
        config: Settings.
        step: Step index from 0, a scalar.
        total_steps: Steps of the whole run.

    Returns:
        float32 scalar.
    """
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    span = max(total_steps - config.warmup_steps, 1)
    progress = jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return (
        config.learning_rate * warm * (config.final_fraction + (1 - config.final_fraction) * cosine)
    )


@dataclass(frozen=True)
class Treatment:
    """What an update does to one parameter.

    Attributes:
        trained: False leaves it as it is.
        decayed: Whether weight decay applies.
        axes: Logical names of its axes.
    """

    trained: bool
    decayed: bool
    axes: tuple[str | None, ...] = ()


def treatments(boxed: Any, trains: Callable[[str], bool] = lambda name: True) -> Any:
    """How each parameter is updated; decayed are those with two named axes besides stacked layers.

    Args:
        boxed: Parameters in their boxes (arrays or shapes).
        trains: Dotted name -> whether that parameter is trained.

    Returns:
        Tree of `Treatment` with the structure of the unboxed parameters.
    """

    def one(path: Any, leaf: Any) -> Treatment:
        names = tuple(leaf.names) if is_box(leaf) else (None,) * leaf.ndim
        return Treatment(
            trained=trains(jax.tree_util.keystr(path, simple=True, separator=".")),
            decayed=sum(name not in (None, "layers") for name in names) >= 2,
            axes=names,
        )

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_box)


def _chain(config: OptimizerConfig, how: Any) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    if config.muon:
        leaves = jax.tree_util.tree_flatten_with_path(how)[0]
        kernels = {
            jax.tree_util.keystr(path, simple=True, separator="."): treatment.axes
            for path, treatment in leaves
            if is_matrix(treatment.axes) and treatment.trained
        }
        scale = scale_by_muon_and_adam(kernels, config.b1, config.b2, config.eps)
    elif config.b1:
        scale = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    else:
        scale = optax.scale_by_rms(
            decay=config.b2, eps=config.eps, eps_in_sqrt=False, bias_correction=True
        )
    return optax.chain(clip, scale)


def init_optimizer(config: OptimizerConfig, params: Any, how: Any) -> Any:
    """Moments for (boxed or plain) parameters; boxes carry over, so moments are sharded alike.

    Args:
        config: Settings.
        params: Parameters.
        how: Tree from `treatments`.
    """
    return _chain(config, how).init(params)


def trained_gradients(grads: Any, how: Any) -> Any:
    """Gradients with zeros for what is not trained, which then counts for no norm and no moment."""
    return jax.tree.map(lambda g, t: g if t.trained else jnp.zeros_like(g), grads, how)


def apply_gradients(
    config: OptimizerConfig, grads: Any, opt_state: Any, params: Any, how: Any, lr: Any
) -> tuple[Any, Any]:
    """One AdamW update.

    Args:
        config: Settings.
        grads: Gradients from `trained_gradients`, float32.
        opt_state: Moments.
        params: Parameters.
        how: Tree from `treatments`.
        lr: Learning rate, a scalar.

    Returns:
        New parameters and moments.
    """
    with jax.named_scope(OPTIMIZER):
        updates, opt_state = _chain(config, how).update(grads, opt_state, params)

    def one(p: Any, u: Any, treatment: Treatment) -> Any:
        if not treatment.trained:
            return p
        direction = u + config.weight_decay * p if treatment.decayed else u
        return (p - lr * direction).astype(p.dtype)

    return jax.tree.map(one, params, updates, how), opt_state


def update_ema(config: OptimizerConfig, ema: Any, params: Any, step: Any) -> Any:
    """Move the weight average; early steps average over fewer weights.

    Args:
        config: Settings.
        ema: Average so far, or None when it is off.
        params: New parameters.
        step: Updates before this one, a scalar.

    Returns:
        The new average, or None.
    """
    if ema is None:
        return None
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
    if config.ema_start:
        decay = jnp.where(step < config.ema_start, 0.0, decay)
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
