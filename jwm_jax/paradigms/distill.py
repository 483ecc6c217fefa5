"""Distribution matching on the student's own rollouts: teacher, student and critic in one step.

Four networks of one shape live in one compiled step:

    model    the student G: causal, few steps, trained; its average is what is exported
    critic   F: bidirectional, trained to denoise what the student generates now
    real     R: bidirectional, frozen: the score of real drives
    teacher  A: causal, frozen: the teacher of the consistency term; may be left out

A step updates the student once and the critic `critic_updates` times (`Cycle`), or one of them a
call (`alternate`). The student's loss is

    w_cd L_cd + w_ode L_ode + w_dmd L_dmd + w_x0 L_x0

with L_cd from `consistency`, L_ode from `ode`, L_x0 the teacher-forced error to the truth, and, for
clean latents x = G(rollout) and x_sigma on the straight path from x to noise,

    g     = (F(x_sigma) - R(x_sigma)) / mean |x - R(x_sigma)|       scores as clean latents
    L_dmd = |x - stop_gradient(x - g)|^2 / 2                        so that dL/dx = g

The weights come with every batch, so a schedule (`WeightSchedule`) leads from one term to another
without compiling anew, and a term of weight 0 is not computed. While all weights are 0 only the
critic learns: its warm-up. The critic's loss is that of bidirectional pretraining, on rollouts.
Conditions are hidden from samples as in the stages before, from all networks alike.

Scores, their difference and everything the optimisers keep are float32: in bfloat16 neither the
difference nor an update of 1e-6 survives.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.errors import UsageError
from jwm_jax.evaluation.images import border_ratio, energy
from jwm_jax.paradigms.consistency import (
    check_guidance,
    consistency_loss,
    few_step,
    frozen_net,
    student_net,
    with_strength,
)
from jwm_jax.paradigms.ode import check_pairs, ode_loss, open_pairs, pair_batches, pair_shapes
from jwm_jax.paradigms.teacher_forcing import (
    TeacherForcingExperiment,
    TeacherForcingTask,
    teacher_forcing_loss,
)
from jwm_jax.training.nets import Net, Phase
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.training.sampling import Rows
from jwm_jax.training.step import Alternate, Cycle
from jwm_jax.worldgen.conditions import LatentConditions, drop_conditions, unconditional
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import add_noise, guided, shift_sigma, x0_weight
from jwm_jax.worldgen.forward import predict_clip
from jwm_jax.worldgen.rollout import Rolled, first_piece, piece, replay, roll
from jwm_jax.worldgen.sampler import step_sigmas
from jwm_jax.worldgen.transformer import empty_text

SHOWN = 2
"""Held-out rollouts that an evaluation decodes."""

Clip = Float[jax.Array, "b v f h w c"]


@dataclass(frozen=True)
class WeightSchedule:
    """Weights of the student's terms over training: points (step, weight), straight lines between.

    A term without points is no part of the program.

    Attributes:
        cd: of consistency with the teacher.
        ode: of regression to the ends of the teacher's paths.
        dmd: of distribution matching.
        x0: of the teacher-forced error to the truth.
    """

    cd: tuple[tuple[int, float], ...] = ()
    ode: tuple[tuple[int, float], ...] = ()
    dmd: tuple[tuple[int, float], ...] = ((0, 1.0),)
    x0: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for term in fields(self):
            points = getattr(self, term.name)
            steps = [step for step, _ in points]
            if steps != sorted(set(steps)) or any(weight < 0 for _, weight in points):
                raise UsageError(
                    f"weights.{term.name} {points} should be (step, weight) with rising steps and "
                    "no negative weight."
                )

    def at(self, step: int) -> dict[str, np.float32]:
        """The weights of a step; 0 for terms without points."""

        def one(points: tuple[tuple[int, float], ...]) -> np.float32:
            steps, weights = zip(*points, strict=True) if points else ((0,), (0.0,))
            return np.float32(np.interp(step, steps, weights))

        return {term.name: one(getattr(self, term.name)) for term in fields(self)}


@dataclass(frozen=True)
class MatchingConfig:
    """How distributions are matched.

    Attributes:
        lowest: smallest sigma at which scores are compared, before the shift.
        highest: largest one.
        floor: smallest value of the mean |x - R| that divides the difference of scores.
        through_memory: whether the gradient also goes through the writing of the memory.
    """

    lowest: float = 0.02
    highest: float = 0.98
    floor: float = 1e-2
    through_memory: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.lowest < self.highest <= 1.0 or self.floor <= 0.0:
            raise UsageError(
                "matching needs 0 < lowest < highest <= 1 and a positive floor, got "
                f"{self.lowest}, {self.highest} and {self.floor}."
            )


def noised(
    config: WorldGenConfig, matching: MatchingConfig, clip: Clip, key: jax.Array
) -> tuple[Clip, Float[jax.Array, "b f"]]:
    """A clip on the way to noise at one sigma a row, its first frame given clean.

    Returns:
        The clip, and the sigma of each frame.
    """
    key_sigma, key_noise = jax.random.split(key)
    low, high = matching.lowest, matching.highest
    u = jax.random.uniform(key_sigma, (len(clip), 1), minval=low, maxval=high)
    sigma = jnp.repeat(shift_sigma(u, config.sampling_shift), clip.shape[2], axis=1)
    sigma = sigma.at[:, 0].set(0.0)
    return add_noise(clip, jax.random.normal(key_noise, clip.shape), sigma), sigma


def score_difference(
    config: WorldGenConfig,
    matching: MatchingConfig,
    critic: Any,
    real: Any,
    clip: Clip,
    conditions: LatentConditions,
    key: jax.Array,
    cfg_scale: float | Float[jax.Array, "b"] = 1.0,
) -> tuple[Clip, dict[str, jax.Array]]:
    """The direction g in which a student's clip leaves the real distribution; 0 for frame 0.

    Args:
        config: shape of the networks.
        matching: sigmas and floor.
        critic: parameters of F.
        real: parameters of R.
        clip: clean latents, frame 0 given.
        conditions: of the same frames.
        key: typed PRNG key.
        cfg_scale: guidance of the real score, uncond + s (cond - uncond), of all rows or of each;
            the number 1 asks the network once.

    Returns:
        g, float32, and what to log: its root mean square, and the difference of the scores over the
        distance of the real one.
    """
    noisy, sigma = noised(config, matching, clip, key)

    plain = replace(config, guidance_input=False)

    def score(shape: WorldGenConfig, params: Any, given: LatentConditions) -> jax.Array:
        text = empty_text(shape, params, len(clip))
        x0 = predict_clip(shape, params, noisy, sigma, given, text).x0
        return x0[:, :, 1:].astype(jnp.float32)

    fake, truth = score(config, critic, conditions), score(plain, real, conditions)
    if not isinstance(cfg_scale, float) or cfg_scale != 1.0:
        null = score(plain, real, unconditional(conditions))
        truth = guided(null, truth, cfg_scale)
    axes = tuple(range(1, clip.ndim))
    distance = jnp.mean(jnp.abs(clip[:, :, 1:] - truth), axes, keepdims=True)
    difference = (fake - truth) / jnp.maximum(distance, matching.floor)
    metrics = {
        "g_rms": jnp.sqrt(jnp.mean(jnp.square(difference))),
        "score_gap": jnp.mean(jnp.abs(fake - truth)) / jnp.mean(distance),
    }
    padded = jnp.pad(difference, [(0, 0), (0, 0), (1, 0)] + [(0, 0)] * 3)
    return jax.lax.stop_gradient(padded), jax.lax.stop_gradient(metrics)


def matching_loss(clip: Clip, difference: Clip) -> Float[jax.Array, "b"]:
    """|x - stop_gradient(x - g)|^2 / 2, row by row: a mean whose gradient is g over the size."""
    goal = jax.lax.stop_gradient(clip - difference)
    return 0.5 * jnp.mean(jnp.square(clip - goal), tuple(range(1, clip.ndim)))


def critic_loss(
    config: WorldGenConfig,
    matching: MatchingConfig,
    critic: Any,
    clip: Clip,
    conditions: LatentConditions,
    key: jax.Array,
) -> Float[jax.Array, "b"]:
    """The bidirectional flow loss of a student's clips, frame 0 given, row by row."""
    noisy, sigma = noised(config, matching, clip, key)
    text = empty_text(config, critic, len(clip))
    x0 = predict_clip(config, critic, noisy, sigma, conditions, text).x0
    error = jnp.square(x0 - clip)[:, :, 1:]
    weight = x0_weight(sigma[:, 1:])[:, None, :, None, None, None]
    return jnp.mean(weight * error, tuple(range(1, clip.ndim)))


def clip_statistics(clip: Clip, truth: Clip) -> dict[str, jax.Array]:
    """What tells early that a student drifts or blurs: its latents beside the truth's, frames 1..N.

    Returns:
        ``latent_mean`` and ``latent_std``: differences of the channels' means (root mean square)
        and ratio of the deviations; ``energy``: ratio of the squared differences between
        neighbouring latent pixels; ``motion``: the same between neighbouring frames.
    """
    ours, theirs = clip[:, :, 1:], truth[:, :, 1:]
    axes = tuple(range(ours.ndim - 1))

    def steps(x: jax.Array, axis: int) -> jax.Array:
        return jnp.mean(jnp.square(jnp.diff(x, axis=axis)))

    def energy(x: jax.Array) -> jax.Array:
        return steps(x, -2) + steps(x, -3)

    mean = jnp.mean(ours, axes) - jnp.mean(theirs, axes)
    return jax.lax.stop_gradient(
        {
            "latent_mean": jnp.sqrt(jnp.mean(jnp.square(mean))),
            "latent_std": jnp.mean(jnp.std(ours, axes)) / jnp.mean(jnp.std(theirs, axes)),
            "energy": energy(ours) / energy(theirs),
            "motion": steps(clip, 2) / steps(truth, 2),
        }
    )


def begun(conditions: LatentConditions) -> LatentConditions:
    """Conditions whose first frame is a clip's first: it has no motion before it and no prior."""
    return replace(
        conditions,
        prior=conditions.prior.at[:, :, 0].set(0.0),
        prior_mask=conditions.prior_mask.at[:, :, 0].set(0.0),
        ego_motion=conditions.ego_motion.at[:, 0].set(0.0),
        ego_valid=conditions.ego_valid.at[:, 0].set(0.0),
    )


@dataclass(frozen=True, kw_only=True)
class DistillExperiment(TeacherForcingExperiment):
    """Distribution matching distillation; `rollout_steps` are the student's steps, and with `rec`
    the student is shown priors.

    Attributes:
        real: model directory or shipped size of the bidirectional model: the real score, and what
            the critic starts from.
        teacher: of the causal teacher of the consistency and ODE terms; None does without them.
        pairs: paths of the teacher that are made for the ODE term; 0 does without it.
        critic_updates: updates of the critic for each of the student.
        alternate: one update a step in turn, instead of all in one step.
        critic_optimizer: of the critic.
        weights: of the student's terms.
        matching: scores, gradient.
        judged: generated latent frames of a rollout that the scores judge, after a random one of
            its chunks (streaming long tuning: windows longer than real score and critic know); 0
            judges whole rollouts.
        grid: steps of the teacher's path.
        cfg_scale: guidance of the teacher and of the real score, uncond + s (cond - uncond).
        cfg_range: as in `ConsistencyExperiment`.
        frozen_dtype: in which the frozen networks are kept: "float32" or "bfloat16".
    """

    init_from: str | None = "runs/worldgen_cd_tiny/model"
    real: str = "runs/worldgen_pretrain_tiny/model"
    teacher: str | None = None
    pairs: int = 0
    critic_updates: int = 5
    alternate: bool = False
    critic_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    weights: WeightSchedule = field(default_factory=WeightSchedule)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    judged: int = 0
    grid: int = 48
    cfg_scale: float = 1.0
    cfg_range: tuple[float, float] | None = None
    frozen_dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_updates < 1:
            raise UsageError(
                f"critic_updates {self.critic_updates} must be at least 1: a critic that does not "
                "follow the student says nothing about it."
            )
        if self.rollout_steps < 1:
            raise UsageError(f"rollout_steps {self.rollout_steps} must be at least 1.")
        if self.frozen_dtype not in ("float32", "bfloat16"):
            raise UsageError(
                f"frozen_dtype must be float32 or bfloat16, got {self.frozen_dtype!r}."
            )
        if self.teacher is None and (self.weights.cd or self.pairs):
            raise UsageError("weights.cd and pairs need a causal teacher: set teacher.")
        check_guidance(self.cfg_scale, self.cfg_range, self.model.guidance_input)
        if self.pairs and self.cfg_range is not None:
            raise UsageError(
                "stored pairs have one strength of guidance: set pairs=0 or no cfg_range."
            )
        if self.judged:
            self._check_judged()
        if self.pairs:
            check_pairs(self.pairs, self.grid, self.rollout_steps)
        elif self.weights.ode:
            raise UsageError("weights.ode needs paths of the teacher: set pairs.")

    def _check_judged(self) -> None:
        longest = self.source.window - 1 - first_piece(self.model)
        if self.judged % self.model.chunk or not 0 < self.judged <= longest:
            raise UsageError(
                f"judged {self.judged} must be whole chunks of {self.model.chunk} frames and, of "
                f"windows of {self.source.window}, at most {longest}."
            )
        if self.model.sink and not self.model.rebase:
            raise UsageError("judged moves a piece to the start: it needs model.rebase or no sink.")
        if self.matching.through_memory:
            raise UsageError(
                "judged replays a piece of the rollout: set matching.through_memory=false."
            )

    def task(self) -> "DistillTask":
        """Builds the task."""
        return DistillTask(self)


class DistillTask(TeacherForcingTask):
    """Distribution matching distillation as the loop sees it."""

    stage = "few_step"
    starts_from = ("causal", "few_step")

    @property
    def exported(self) -> WorldGenConfig:
        """The student's configuration: few steps, each with fresh noise."""
        return few_step(self.config.model, self.config.rollout_steps)

    @property
    def schedule(self) -> Cycle | Alternate:
        """All updates in one step, or one of them."""
        return Alternate() if self.config.alternate else Cycle()

    def nets(self, config: DistillExperiment) -> dict[str, Net]:
        """Student, critic, real score, and the teacher if there is one."""
        student = student_net(super().nets(config)["model"], config.model)
        real = frozen_net(
            student, config.model, config.real, "bidirectional", jnp.dtype(config.frozen_dtype)
        )
        critic = replace(
            student,
            optimizer=config.critic_optimizer,
            source=config.real,
            stages=("bidirectional",),
        )
        nets = {"model": student, "critic": critic, "real": real}
        if config.teacher is not None:
            nets["teacher"] = frozen_net(
                student, config.model, config.teacher, "causal", real.dtype
            )
        return nets

    def phases(self) -> tuple[Phase, ...]:
        """The student once, the critic several times."""
        return (
            Phase("model", self.student_loss),
            Phase("critic", self.critic_loss, self.config.critic_updates),
        )

    def batches(self, start: int, rows: Rows) -> Iterator[Any]:
        """Windows, conditions, pairs (None without any) and the weights of their step."""
        per_step = self.schedule.batches(self.phases())
        if self.config.pairs:
            parts = pair_batches(self, self.pairs, self.config, start, rows)
        else:
            parts = ((*window, None) for window in super().batches(start, rows))
        for number, part in enumerate(parts, start):
            yield *part, self.config.weights.at(number // per_step)

    @cached_property
    def pairs(self) -> dict[str, np.ndarray]:
        """The teacher's paths; the first access may make them."""
        return open_pairs(self, self.config)

    def shapes(self) -> Any:
        """A batch: windows, conditions, pairs, weights."""
        latents, conditions = super().shapes()
        pair = pair_shapes(latents) if self.config.pairs else None
        weight = jax.ShapeDtypeStruct((), jnp.float32)
        return latents, conditions, pair, {term.name: weight for term in fields(WeightSchedule)}

    def rolled(
        self, params: Any, latents: Clip, conditions: LatentConditions, key: jax.Array
    ) -> Rolled:
        """A rollout of the student over a batch's windows, which ends at a random step."""
        config, key_exit = self.config.model, jax.random.fold_in(key, 0)
        sigmas = jnp.asarray(step_sigmas(self.exported)[:-1])
        exit_step = jax.random.randint(key_exit, (), 0, len(sigmas))
        text = empty_text(config, params, len(latents))
        first = latents[:, :, :1]
        return roll(config, params, first, conditions, key, sigmas, exit_step, text)

    def part(self, rolled: Rolled, key: jax.Array) -> tuple[Rolled, jax.Array, int]:
        """What is judged of a rollout: itself, or a `piece` after a random chunk; the index of its
        frames in the whole, and how many of them are given."""
        config, model, frames = self.config, self.config.model, rolled.latents.shape[2]
        if not config.judged:
            return rolled, jnp.arange(frames), 1
        first = first_piece(model)
        choices = 1 + (frames - 1 - config.judged - first) // model.chunk
        chunk = jax.random.randint(jax.random.fold_in(key, 1), (), 0, choices)
        cut, index = piece(model, rolled, first + model.chunk * chunk, config.judged)
        return cut, index, model.slots

    def judge(
        self,
        rolled: Float[np.ndarray, "b v f h w c"],
        truth: Float[np.ndarray, "b v f h w c"],
    ) -> dict[str, Any]:
        """`clip_statistics` of held-out rollouts and `statistics_gap`, the mean absolute logarithm
        of its ratios, which falls as a student's clips come to look like true ones; and of the
        first `SHOWN` of them as pictures: ``picture_energy`` and ``border`` over the truth's
        through the codec, and a strip, truth above student.
        """
        values = {
            n: float(x) for n, x in clip_statistics(*map(jnp.asarray, (rolled, truth))).items()
        }
        logs = [abs(np.log(values[name])) for name in ("latent_std", "energy", "motion")]
        ours, theirs = (
            np.asarray(self.codec.decode(x[:SHOWN, 0]), np.float32) for x in (rolled, truth)
        )
        chunk = self.config.model.frames_per_chunk
        border = [np.mean([border_ratio(v[1:], chunk) for v in x]) for x in (ours, theirs)]
        pairs = zip(theirs, ours, strict=True)
        rows = [np.concatenate(video[1::chunk], axis=1) for pair in pairs for video in pair]
        return values | {
            "statistics_gap": float(np.mean(logs)),
            "picture_energy": float(energy(ours[:, 1:]).mean() / energy(theirs[:, 1:]).mean()),
            "border": float(border[0] / border[1]),
            "rollouts": np.concatenate(rows),
        }

    def student_loss(
        self, params: Any, others: Mapping[str, Any], batch: Any, key: jax.Array
    ) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """The weighted terms of the student; those of weight 0 are skipped."""
        config, (latents, whole, pair, weights) = self.config, batch
        names = ("drop", "strength", "cd", "dmd", "score", "x0")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        rows, conditions = len(latents), drop_conditions(keys["drop"], whole, config.dropout)
        conditions, strength = with_strength(
            keys["strength"], conditions, config.cfg_scale, config.cfg_range
        )

        def consistency() -> Any:
            return consistency_loss(
                config.model,
                params,
                others["teacher"],
                latents,
                conditions,
                keys["cd"],
                config.grid,
                strength,
            ), {}

        def regression() -> Any:
            return ode_loss(config.model, params, latents, whole, pair), {}

        def matching() -> Any:
            rolled = self.rolled(params, latents, conditions, keys["dmd"])
            text = empty_text(config.model, params, rows)
            through = config.matching.through_memory
            rolled, index, given = self.part(rolled, keys["dmd"])
            seen = conditions.frames(index)
            exits = replay(config.model, params, rolled, seen, through, text, given)
            clip = jnp.concatenate([rolled.latents[:, :, given - 1 : given], exits], axis=2)
            seen = begun(seen.frames(slice(given - 1, None)))
            truth = latents[:, :, index[given - 1 :]]
            difference, metrics = score_difference(
                config.model,
                config.matching,
                others["critic"],
                others["real"],
                jax.lax.stop_gradient(clip),
                seen,
                keys["score"],
                strength,
            )
            return matching_loss(clip, difference), metrics | clip_statistics(clip, truth)

        def truth() -> Any:
            return teacher_forcing_loss(
                config.model,
                config.noise,
                params,
                latents,
                whole,
                keys["x0"],
                config.dropout,
                config.noise.history,
                config.middle_weight,
            )[0], {}

        every = {"dmd": matching, "x0": truth, "cd": consistency, "ode": regression}
        terms = {name: term for name, term in every.items() if getattr(config.weights, name)}
        total, metrics = jnp.zeros(rows), {}
        for name, term in terms.items():
            value, more = _unless_zero(weights[name], term)
            total = total + weights[name] * value
            metrics |= {name: jnp.mean(value), **more}
        return (jnp.sum(total), rows), metrics

    def critic_loss(
        self, params: Any, others: Mapping[str, Any], batch: Any, key: jax.Array
    ) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """The critic's flow loss on a fresh rollout of the student."""
        key_drop, key_strength, key_roll, key_loss = jax.random.split(key, 4)
        config, (latents, conditions, _, _) = self.config, batch
        conditions = drop_conditions(key_drop, conditions, config.dropout)
        conditions, _ = with_strength(key_strength, conditions, config.cfg_scale, config.cfg_range)
        rolled = self.rolled(others["model"], latents, conditions, key_roll)
        rolled, index, given = self.part(rolled, key_roll)
        clip = rolled.latents[:, :, given - 1 :]
        conditions = begun(conditions.frames(index[given - 1 :]))
        rows = critic_loss(config.model, config.matching, params, clip, conditions, key_loss)
        return (jnp.sum(rows), len(rows)), {}


def _unless_zero(weight: Float[jax.Array, ""], term: Any) -> Any:
    """What a term gives, or zeros of the same shapes, uncomputed, where its weight is 0."""
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(term))
    return jax.lax.cond(weight > 0.0, term, lambda: blank)
