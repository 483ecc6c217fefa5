"""Causal ODE distillation: regression to where the teacher's path ends, on stored pairs.

From pure noise, beside the true frames before each chunk, the causal teacher runs its path of
`grid` Euler steps for all chunks at once. Kept are the states x at the sigmas of the student's
steps and the end x0 of the path; the student's loss is

    |f(x, sigma) - x0|^2

at one of those sigmas, under the same history. What the pairs ask for is a function of the history
and a chunk's own noise, because the teacher is causal: regression finds it. From a bidirectional
teacher it finds the mean of all ends that the unseen noise may lead to, which is why only causal
teachers are taken (Causal Forcing). Pairs are made once and kept beside the latents.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.checkpoint.model_dir import load_params, weights_digest
from jwm_jax.errors import UsageError
from jwm_jax.paradigms.consistency import (
    ConsistencyExperiment,
    ConsistencyTask,
    guided_teacher,
)
from jwm_jax.paradigms.latent_encoding import GrowingArray, fill_once
from jwm_jax.paradigms.latents import stack_windows
from jwm_jax.training.nets import Net, Phase
from jwm_jax.training.sampling import Rows, example_indices, step_rng
from jwm_jax.worldgen.conditions import LatentConditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import sigma_schedule
from jwm_jax.worldgen.forward import predict_teacher_forced
from jwm_jax.worldgen.transformer import empty_text

Frames = Float[jax.Array, "b v k h w c"]


class Pair(NamedTuple):
    """A point of a teacher's path, and its end.

    Attributes:
        noisy: frames 1..K at ``sigma`` [b, v, k, h, w, c].
        sigma: [b].
        end: the clean latents that the path leads to, as ``noisy``.
    """

    noisy: Any
    sigma: Any
    end: Any


def teacher_path(
    config: WorldGenConfig,
    teacher: Any,
    latents: Float[jax.Array, "b v f h w c"],
    conditions: LatentConditions,
    key: jax.Array,
    grid: int,
    keep: int,
    cfg_scale: float,
) -> tuple[Float[jax.Array, "b s v k h w c"], Frames]:
    """A causal teacher's path from noise to data for all chunks of clips at once.

    Args:
        config: shape of the network.
        teacher: its parameters.
        latents: true clips of K + 1 frames, the history.
        conditions: of the same frames.
        key: typed PRNG key of the noise.
        grid: Euler steps.
        keep: states to keep, at equal distances on the grid, from pure noise on.
        cfg_scale: guidance.

    Returns:
        The states, and the end of the path.
    """
    clean = latents[:, :, :-1]
    sigmas = jnp.asarray(sigma_schedule(grid, config.sampling_shift))

    def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sigma = jnp.full((x.shape[0], x.shape[2]), pair[0])
        x0 = guided_teacher(config, teacher, clean, x, sigma, conditions, cfg_scale)
        return x0 + (x - x0) * (pair[1] / pair[0]), x

    noise = jax.random.normal(key, clean.shape)
    end, states = jax.lax.scan(step, noise, (sigmas[:-1], sigmas[1:]))
    return jnp.moveaxis(states[:: grid // keep], 0, 1), end


def ode_loss(
    config: WorldGenConfig,
    student: Any,
    latents: Float[jax.Array, "b v f h w c"],
    conditions: LatentConditions,
    pair: Pair,
) -> Float[jax.Array, "b"]:
    """The squared distance to the ends of the teacher's paths, row by row.

    Args:
        config: shape of the network.
        student: parameters that get gradient.
        latents: true clips of K + 1 frames, the history.
        conditions: of the same frames.
        pair: points of the paths.
    """
    clean = latents[:, :, :-1]
    sigma = jnp.broadcast_to(pair.sigma[:, None], (len(clean), clean.shape[2]))
    text = empty_text(config, student, len(clean))
    x0 = predict_teacher_forced(config, student, clean, pair.noisy, sigma, conditions, text=text).x0
    return jnp.mean(jnp.square(x0 - pair.end), tuple(range(1, x0.ndim)))


@dataclass(frozen=True, kw_only=True)
class OdeExperiment(ConsistencyExperiment):
    """Causal ODE distillation.

    Attributes:
        pairs: how many paths of the teacher are made.
    """

    pairs: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self.pairs, self.grid, self.rollout_steps)
        if self.cfg_range is not None:
            raise UsageError("stored pairs have one strength of guidance: set cfg_scale instead.")

    def task(self) -> "OdeTask":
        """Builds the task."""
        return OdeTask(self)


def check_pairs(pairs: int, grid: int, steps: int) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UsageError: There is no pair, or the student's steps are not on the teacher's grid.
    """
    if pairs < 1:
        raise UsageError(f"pairs {pairs} must be at least 1.")
    if grid % steps:
        raise UsageError(
            f"the teacher's grid of {grid} steps must be a multiple of the student's {steps} "
            "(rollout_steps), so that their sigmas are on it."
        )


class OdeTask(ConsistencyTask):
    """ODE distillation as the loop sees it."""

    def nets(self, config: OdeExperiment) -> dict[str, Net]:
        """The student; its teacher has done its work when the pairs are there."""
        return {"model": super().nets(config)["model"]}

    @cached_property
    def pairs(self) -> dict[str, np.ndarray]:
        """Pairs as `open_pairs` gives them; the first access may make them."""
        return open_pairs(self, self.config)

    def batches(self, start: int, rows: Rows) -> Iterator[Any]:
        """Windows with a pair each: a pure function of (seed, step)."""
        yield from pair_batches(self, self.pairs, self.config, start, rows)

    def shapes(self) -> Any:
        """A batch: windows, conditions, pairs."""
        latents, conditions = super().shapes()
        return latents, conditions, pair_shapes(latents)

    def phases(self) -> tuple[Phase, ...]:
        """Updates of the student."""

        def loss(params: Any, others: Mapping[str, Any], batch: Any, key: Any) -> Any:
            latents, conditions, pair = batch
            rows = ode_loss(self.config.model, params, latents, conditions, pair)
            return (jnp.sum(rows), len(rows)), {}

        return (Phase("model", loss),)


def pair_shapes(latents: jax.ShapeDtypeStruct) -> Pair:
    """A batch of pairs as shapes, for windows of a shape."""
    batch, views, frames, *rest = latents.shape
    state = jax.ShapeDtypeStruct((batch, views, frames - 1, *rest), jnp.float32)
    return Pair(state, jax.ShapeDtypeStruct((batch,), jnp.float32), state)


def open_pairs(task: Any, config: Any) -> dict[str, np.ndarray]:
    """A teacher's paths over windows of a latent set, made first if no run has made them.

    Args:
        task: a `WorldGenTask`, for its data.
        config: an experiment with teacher, pairs, grid, rollout_steps and cfg_scale.

    Returns:
        ``example`` and ``start`` [P] of the windows, ``states`` [P, S, V, K, h, w, c] and ``end``
        [P, V, K, h, w, c], float16 memory maps.
    """
    data, frames = task.data, config.source.window
    examples = np.flatnonzero(~np.asarray(data.held_out))
    identity = hashlib.sha256(
        repr(
            (
                weights_digest(config.teacher, "worldgen"),
                (str(getattr(data.latents, "filename", "")), task.prior_name),
                (config.pairs, config.grid, config.rollout_steps, config.cfg_scale, config.seed),
                config.source,
            )
        ).encode()
    ).hexdigest()[:12]

    def fill(folder: Path) -> None:
        params = load_params(config.teacher, "worldgen")
        run = jax.jit(
            partial(
                teacher_path,
                config.model,
                grid=config.grid,
                keep=config.rollout_steps,
                cfg_scale=config.cfg_scale,
            )
        )
        arrays = {
            n: GrowingArray(folder / f"{n}.npy") for n in ("example", "start", "states", "end")
        }
        for number in range(config.pairs):
            random = step_rng(config.seed, number)
            example = int(random.choice(examples))
            start = int(random.integers(data.latents.shape[2] - frames + 1))
            latents, conditions = data.window(example, start, frames)
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            states, end = run(params, latents, conditions, key)
            row = {"example": np.int64(example), "start": np.int64(start)}
            row |= {"states": np.float16(states[0]), "end": np.float16(end[0])}
            for name, value in row.items():
                arrays[name].append(np.asarray(value))
        for array in arrays.values():
            array.close()

    folder = Path(config.latents).expanduser() / f"pairs-{identity}"
    fill_once(folder, fill)
    names = ("example", "start", "states", "end")
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def pair_batches(
    task: Any, pairs: Mapping[str, np.ndarray], config: Any, start: int, rows: Rows
) -> Iterator[Any]:
    """Windows, conditions and a `Pair` at one of the student's sigmas each, without end."""
    sigmas = sigma_schedule(config.rollout_steps, config.model.sampling_shift)[:-1]
    count, number, frames = len(pairs["example"]), start, config.source.window
    while True:
        chosen = example_indices(config.seed, number, count, config.batch_size)
        windows, points = [], []
        for row in np.arange(config.batch_size)[rows].tolist():
            index = chosen[row]
            level = int(step_rng(config.seed, number, row).integers(len(sigmas)))
            windows.append(
                task.data.window(int(pairs["example"][index]), int(pairs["start"][index]), frames)
            )
            points.append(
                Pair(
                    np.float32(pairs["states"][index, level]),
                    sigmas[level],
                    np.float32(pairs["end"][index]),
                )
            )
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
        yield (*stack_windows(windows), stacked)
        number += 1
