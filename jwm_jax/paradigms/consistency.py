"""Causal consistency distillation: a student that says in one step where its teacher's path ends.

Both are run teacher-forced: noisy chunks beside the true frames before them, so that a chunk's path
from noise to data depends on its own noise and on a history that is given, and neighbouring points
of it can be drawn without running it (Causal Forcing++; a bidirectional teacher's paths depend on
the noise of all frames, of which a causal student sees a part only). On a grid of sigmas, with x at
sigma_i on the straight path to the data,

    x'   = x + (sigma_{i+1} - sigma_i) velocity_teacher(x, sigma_i)           one Euler step
    loss = |f(x, sigma_i) - stop_gradient f(x', sigma_{i+1})|^2 / max(sigma_i, 0.2)^2

where f is the student's clean latent, and x' itself at sigma 0, which pins the end of the path. No
pairs are stored. The loss is a mean over frames 1..K. Conditions are hidden from samples as in
teacher forcing, from both alike, so that the student serves without them too. A student may also
be told the strength of guidance (``cfg_range``), which is drawn for each sample and guides the
teacher.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.errors import UsageError
from jwm_jax.paradigms.teacher_forcing import TeacherForcingExperiment, TeacherForcingTask
from jwm_jax.training.nets import Net, Phase
from jwm_jax.worldgen.conditions import LatentConditions, drop_conditions, unconditional
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import add_noise, guided, sigma_schedule, x0_weight
from jwm_jax.worldgen.forward import predict_teacher_forced
from jwm_jax.worldgen.transformer import empty_text, init_params

Rows = Float[jax.Array, "b"]

GUIDANCE = ("embeddings.guidance_to_time",)
"""Parameters through which a student is told the strength of guidance."""


def guided_teacher(
    config: WorldGenConfig,
    params: Any,
    clean: Float[jax.Array, "b v f h w c"],
    noisy: Float[jax.Array, "b v f h w c"],
    sigma: Float[jax.Array, "b f"],
    conditions: LatentConditions,
    cfg_scale: float | Float[jax.Array, "b"],
) -> Float[jax.Array, "b v f h w c"]:
    """The teacher's clean latents under guidance, teacher-forced and without gradient.

    Args:
        config: shape of the network.
        params: the teacher's.
        clean: frames 0..K-1.
        noisy: frames 1..K at ``sigma``.
        sigma: of the noisy frames.
        conditions: of frames 0..K.
        cfg_scale: uncond + s (cond - uncond), of all rows or of each; the number 1 asks the network
            once.
    """
    text = empty_text(config, params, len(clean))

    def ask(given: LatentConditions) -> jax.Array:
        return predict_teacher_forced(config, params, clean, noisy, sigma, given, text=text).x0

    x0 = ask(conditions)
    if not isinstance(cfg_scale, float) or cfg_scale != 1.0:
        x0 = guided(ask(unconditional(conditions)), x0, cfg_scale)
    return jax.lax.stop_gradient(x0)


def consistency_loss(
    config: WorldGenConfig,
    student: Any,
    teacher: Any,
    latents: Float[jax.Array, "b v f h w c"],
    conditions: LatentConditions,
    key: jax.Array,
    grid: int,
    cfg_scale: float | Float[jax.Array, "b"],
) -> Rows:
    """The consistency loss of clips, row by row.

    Args:
        config: shape of both networks; the strength of guidance is an input of the student alone.
        student: parameters that get gradient.
        teacher: frozen parameters of a causal model.
        latents: clean clips of K + 1 frames.
        conditions: of the same frames.
        key: typed PRNG key.
        grid: steps of the teacher's path.
        cfg_scale: guidance of the teacher, of all rows or of each.
    """
    key_step, key_noise = jax.random.split(key)
    batch, count = latents.shape[0], latents.shape[2] - 1
    clean, target = latents[:, :, :-1], latents[:, :, 1:]
    sigmas = jnp.asarray(sigma_schedule(grid, config.sampling_shift))
    step = jax.random.randint(key_step, (batch, count // config.chunk), 0, grid)
    step = jnp.repeat(step, config.chunk, axis=1)
    sigma, next_sigma = sigmas[step], sigmas[step + 1]
    noisy = add_noise(target, jax.random.normal(key_noise, target.shape), sigma)
    plain = replace(config, guidance_input=False)
    end = guided_teacher(plain, teacher, clean, noisy, sigma, conditions, cfg_scale)
    ratio = _frames(next_sigma / sigma)
    on_the_way = end + (noisy - end) * ratio
    text = empty_text(config, student, batch)

    def say(params: Any, x: jax.Array, at: jax.Array) -> jax.Array:
        return predict_teacher_forced(config, params, clean, x, at, conditions, text=text).x0

    goal = say(jax.lax.stop_gradient(student), on_the_way, next_sigma)
    goal = jnp.where(_frames(next_sigma) > 0.0, goal, on_the_way)
    error = jnp.square(say(student, noisy, sigma) - jax.lax.stop_gradient(goal))
    return jnp.mean(_frames(x0_weight(sigma)) * error, tuple(range(1, error.ndim)))


def _frames(values: Float[jax.Array, "b f"]) -> Float[jax.Array, "b 1 f 1 1 1"]:
    """One value a latent frame, against latents [b, v, f, h, w, c]."""
    return values[:, None, :, None, None, None]


def check_guidance(
    cfg_scale: float, cfg_range: tuple[float, float] | None, guidance_input: bool
) -> None:
    """Refuse strengths of guidance that make no sense.

    Raises:
        UsageError: A range for a student that is not told of it, or the other way round.
    """
    if (cfg_range is not None) != guidance_input:
        raise UsageError(
            "cfg_range draws the strength of guidance, of which the student is told by "
            "model.guidance_input=true; set both or neither."
        )
    if cfg_range is not None and not (0.0 <= cfg_range[0] < cfg_range[1] and cfg_scale == 1.0):
        raise UsageError(
            f"cfg_range {cfg_range} must rise from 0 or more, and cfg_scale must be left at 1, got "
            f"{cfg_scale}."
        )


def with_strength(
    key: jax.Array,
    conditions: LatentConditions,
    cfg_scale: float,
    cfg_range: tuple[float, float] | None,
) -> tuple[LatentConditions, float | Rows]:
    """Conditions that tell each row its strength of guidance, and the strength or strengths."""
    if cfg_range is None:
        return conditions, cfg_scale
    low, high = cfg_range
    strength = jax.random.uniform(key, conditions.guidance.shape, minval=low, maxval=high)
    return replace(conditions, guidance=strength), strength


def student_net(net: Net, config: WorldGenConfig) -> Net:
    """A network that may start from one which is not told the strength of guidance."""
    return replace(net, adds=GUIDANCE) if config.guidance_input else net


@dataclass(frozen=True, kw_only=True)
class ConsistencyExperiment(TeacherForcingExperiment):
    """Causal consistency distillation; with `rec`, of a student that is shown priors.

    Attributes:
        teacher: model directory or shipped size of the causal teacher; the student starts from
            `init_from`, or from the teacher where that is None.
        grid: steps of the teacher's path from noise to data.
        cfg_scale: guidance of the teacher.
        cfg_range: smallest and largest strength of guidance of a student that is told of it
            (``model.guidance_input``); each sample draws one, instead of `cfg_scale`.
    """

    teacher: str = "runs/worldgen_tiny/model"
    grid: int = 48
    cfg_scale: float = 1.0
    cfg_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_guidance(self.cfg_scale, self.cfg_range, self.model.guidance_input)
        if not 1 <= self.rollout_steps < self.grid:
            raise UsageError(
                f"rollout_steps {self.rollout_steps} of the student must be at least 1 and fewer "
                f"than the {self.grid} steps of the teacher's grid."
            )
        if self.middle_weight:
            raise UsageError(
                "middle_weight belongs to flow losses; a student's head is one: set 0."
            )

    def task(self) -> "ConsistencyTask":
        """Builds the task."""
        return ConsistencyTask(self)


class ConsistencyTask(TeacherForcingTask):
    """Consistency distillation as the loop sees it."""

    stage = "few_step"
    starts_from = ("causal", "few_step")

    @property
    def exported(self) -> WorldGenConfig:
        """The student's configuration: few steps, each with fresh noise."""
        return few_step(self.config.model, self.config.rollout_steps)

    def nets(self, config: ConsistencyExperiment) -> dict[str, Net]:
        """The student and its frozen teacher."""
        nets = super().nets(config)
        student = replace(nets["model"], source=config.init_from or config.teacher)
        student = student_net(student, config.model)
        teacher = frozen_net(student, config.model, config.teacher, "causal")
        return {"model": student, "teacher": teacher}

    def phases(self) -> tuple[Phase, ...]:
        """Updates of the student."""

        def loss(params: Any, others: Mapping[str, Any], batch: Any, key: Any) -> Any:
            latents, conditions = batch
            config = self.config
            key_drop, key_loss, key_strength = jax.random.split(key, 3)
            conditions = drop_conditions(key_drop, conditions, config.dropout)
            conditions, strength = with_strength(
                key_strength, conditions, config.cfg_scale, config.cfg_range
            )
            rows = consistency_loss(
                config.model,
                params,
                others["teacher"],
                latents,
                conditions,
                key_loss,
                config.grid,
                strength,
            )
            return (jnp.sum(rows), len(rows)), {}

        return (Phase("model", loss),)


def few_step(config: WorldGenConfig, steps: int) -> WorldGenConfig:
    """The configuration of a model distilled to a number of steps."""
    return replace(config, sampling_steps=steps, sampler="renoise")


def frozen_net(
    like: Net, config: WorldGenConfig, source: str, stage: str, dtype: Any = jnp.float32
) -> Net:
    """A frozen network of the student's shape that knows no strength of guidance.

    Args:
        like: the student.
        config: its shape.
        source: model directory or shipped size.
        stage: the only stage that is accepted of it.
        dtype: of its parameters.
    """
    init = partial(init_params, replace(config, guidance_input=False))
    fields = {"optimizer": None, "source": source, "stages": (stage,), "adds": ()}
    return replace(like, init=init, dtype=dtype, **fields)
