"""A small regression task whose parameters use the axes embed and mlp."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.checkpoint.model_dir import save_model
from jwm_jax.distributed.sharding import constrain
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.training.sampling import Rows, example_indices
from jwm_jax.training.task import Task

WIDTH, HIDDEN, EXAMPLES = 8, 16, 64


def named(init: Any, *names: str) -> Any:
    return nn.with_logical_partitioning(init, names)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = constrain(x, ("batch", "act_embed"))
        kernel = nn.initializers.lecun_normal()
        up = self.param("up", named(kernel, "embed", "mlp"), (WIDTH, HIDDEN))
        bias = self.param("bias", named(nn.initializers.zeros, "mlp"), (HIDDEN,))
        down = self.param("down", named(kernel, "mlp", "embed"), (HIDDEN, WIDTH))
        hidden = constrain(jnp.tanh(x @ up + bias), ("batch", None))
        return hidden @ down


@dataclass(frozen=True)
class ToyTask(Task):
    seed: int = 0
    batch_size: int = 8
    noise: float = 0.1
    bad_steps: tuple[int, ...] = ()
    spikes: tuple[int, ...] = ()

    def init(self, key):
        return Network().init(key, jnp.zeros((1, WIDTH)))["params"]

    def loss(self, params, batch, key):
        x = batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)
        error = Network().apply({"params": params}, x) - jnp.roll(batch["x"], 1, -1)
        return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}

    def batches(self, start: int, rows: Rows) -> Iterator[Any]:
        examples = np.random.default_rng(0).normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
        step = start
        while True:
            chosen = example_indices(self.seed, step, EXAMPLES, self.batch_size)[rows]
            x = examples[chosen]
            factor = np.nan if step in self.bad_steps else 1e3 if step in self.spikes else 1.0
            yield {"x": x * np.float32(factor)}
            step += 1

    def shapes(self):
        return {"x": jax.ShapeDtypeStruct((self.batch_size, WIDTH), jnp.float32)}

    def evaluate(self, params):
        return {"total": float(sum(jnp.sum(x**2) for x in jax.tree.leaves(params)))}

    def save(self, params, directory, *, half=False):
        save_model(directory, "codec", "toy", ModelConfig(), params, "# A toy", half=half)


@dataclass(frozen=True)
class ModelConfig:
    width: int = WIDTH


@dataclass(frozen=True, kw_only=True)
class ToyExperiment(ExperimentConfig):
    name: str = "toy"
    steps: int = 8
    log_every: int = 3
    checkpoint_minutes: float = 0.0
    noise: float = 0.1
    bad_steps: tuple[int, ...] = ()
    spikes: tuple[int, ...] = ()
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
    )

    def task(self) -> ToyTask:
        return ToyTask(self.seed, self.batch_size, self.noise, self.bad_steps, self.spikes)
