"""What the generator's trainings share: data as latents, batches of windows, warm start, export."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.checkpoint.model_dir import WEIGHTS
from jwm_jax.distributed import gather_to_host, put_rows
from jwm_jax.errors import UsageError
from jwm_jax.paradigms.latent_encoding import open_latents
from jwm_jax.paradigms.latents import LatentSet, LatentSource, stack_windows
from jwm_jax.paradigms.priors import DEPTHS, ScenePriors
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.nets import Net
from jwm_jax.training.sampling import Rows, example_indices, step_rng
from jwm_jax.training.task import Task
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.codec_network import PIXELS_PER_LATENT
from jwm_jax.worldgen.conditions import LatentConditions, no_conditions
from jwm_jax.worldgen.config import SIZES, WorldGenConfig
from jwm_jax.worldgen.forward import Prediction
from jwm_jax.worldgen.model import WorldGen
from jwm_jax.worldgen.transformer import init_params

HELD_OUT = 16
"""Rows of an evaluation, whatever the mesh, so that its noise is the same on every one."""

DROPOUT = {"layout": 0.1, "prior": 0.15, "ego_motion": 0.1, "style": 0.1, "rays": 0.05}
"""Probability with which training hides each condition from a sample."""


@dataclass(frozen=True)
class NoiseConfig:
    """How much noise training adds, and where.

    Attributes:
        sigma_mean: mean of the normal variable whose logistic function is sigma.
        sigma_deviation: its standard deviation.
        history: largest standard deviation of the noise on clean history frames, drawn uniformly
            from [0, history] for every sample; it teaches the model to distrust its own past.
    """

    sigma_mean: float = 0.6
    sigma_deviation: float = 1.2
    history: float = 0.3


@dataclass(frozen=True, kw_only=True)
class WorldGenExperiment(ExperimentConfig):
    """Settings that the generator's trainings share.

    Attributes:
        model: shape of the network; its ``codec`` names the codec that makes the latents.
        source: the clips.
        clips_share: share of the rows that are drawn from the real drives and films of the source;
            0 draws from all examples alike, as many as there are.
        latents: folder in which encoded data sets are kept between runs.
        noise: noise levels.
        dropout: probability of hiding each condition from a sample.
        middle_weight: weight of the middle head's own loss, for a model with ``middle_head``; the
            same target is asked of it (ReWorld, arXiv 2606.27504).
        rec: WorldRec whose scenes give priors: a shipped size or a model directory; None for no
            priors.
        depth: where its depth comes from: ``network``, ``measured`` (lidar, for clips that have
            it) or ``mixed``, which is measured for every second example, so that the generator
            learns the mistakes of both.
        init_from: model directory or shipped size to start from; None starts from scratch.
    """

    model: WorldGenConfig = SIZES["tiny"]
    source: LatentSource = field(default_factory=LatentSource)
    clips_share: float = 0.0
    latents: str = "runs/latents"
    noise: NoiseConfig = NoiseConfig()
    dropout: dict[str, float] = field(default_factory=lambda: dict(DROPOUT))
    middle_weight: float = 0.0
    rec: str | None = None
    depth: str = "mixed"
    init_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in DEPTHS:
            raise UsageError(f"depth must be one of {', '.join(DEPTHS)}, got {self.depth!r}.")
        if self.source.height != self.model.height:
            raise UsageError(
                f"source.height {self.source.height} and model.height {self.model.height} must be "
                "equal: the model is used at the picture height it was trained at."
            )
        if not 0.0 <= self.clips_share <= 1.0 or (self.clips_share and not self.source.clips):
            raise UsageError(
                f"clips_share {self.clips_share} must be from 0 to 1, and above 0 only with drives "
                "in source.clips."
            )
        if self.middle_weight < 0 or (self.middle_weight and not self.model.middle_head):
            raise UsageError(
                f"middle_weight {self.middle_weight} must be at least 0, and above 0 only with "
                "model.middle_head=true."
            )


class WorldGenTask(Task):
    """Base of the generator's tasks; `loss` has to be written.

    Attributes:
        config: the experiment.
        stage: what the trained weights are, see `model_dir.STAGES`.
        starts_from: stages that ``init_from`` may be of.
    """

    stage: ClassVar[str] = "causal"
    starts_from: ClassVar[tuple[str, ...]] = ("bidirectional", "causal")

    def __init__(self, config: WorldGenExperiment) -> None:
        self.config = config

    @cached_property
    def codec(self) -> VideoCodec:
        """The codec that makes the latents."""
        return VideoCodec.from_pretrained(self.config.model.codec)

    @cached_property
    def prior(self) -> ScenePriors | None:
        """Renders the priors of clips; None without a WorldRec."""
        rec = self.config.rec
        return None if rec is None else ScenePriors(rec, self.config.depth)

    @property
    def prior_name(self) -> str:
        """Names the priors for what is kept between runs."""
        return "none" if self.prior is None else self.prior.name

    @cached_property
    def data(self) -> LatentSet:
        """The encoded examples; the first access may encode them."""
        return open_latents(
            self.config.latents,
            self.config.source,
            self.config.model,
            self.codec,
            self.prior,
            self.prior_name,
        )

    @property
    def exported(self) -> WorldGenConfig:
        """Configuration of the model that the training gives."""
        return self.config.model

    def nets(self, config: WorldGenExperiment) -> dict[str, Net]:
        """The generator, from ``init_from`` if it names any."""
        source = {"source": config.init_from, "kind": "worldgen", "stages": self.starts_from}
        heads = {"heads": config.model.num_heads, "act_heads": config.model.num_heads}
        return {"model": Net(self.init, config.optimizer, units=heads, **source)}

    def init(self, key: Any) -> Any:
        """Boxed parameters of the network."""
        return init_params(self.config.model, key)

    def batches(self, start: int, rows: Rows) -> Iterator[Any]:
        """Windows of examples: a pure function of (seed, step)."""
        examples = np.flatnonzero(~np.asarray(self.data.held_out))
        if not len(examples):
            raise UsageError("source.held_out leaves no example to train on; make it smaller.")
        config, step = self.config, start
        real = np.asarray(self.data.real)[examples]
        kinds = [examples[~real], examples[real]]
        if config.clips_share and not all(len(kind) for kind in kinds):
            raise UsageError("clips_share needs both streets and real drives to draw from.")
        while True:
            chosen = examples[example_indices(config.seed, step, len(examples), config.batch_size)]
            windows = []
            for row in np.arange(config.batch_size)[rows].tolist():
                random, example = step_rng(config.seed, step, row), chosen[row]
                if config.clips_share:
                    kind = kinds[int(random.random() < config.clips_share)]
                    example = kind[random.integers(len(kind))]
                windows.append(self._window(int(example), random))
            yield stack_windows(windows)
            step += 1

    def _window(self, example: int, random: np.random.Generator) -> Any:
        frames = self.config.source.window
        starts = self.data.latents.shape[2] - frames + 1
        return self.data.window(example, int(random.integers(starts)), frames)

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, LatentConditions]:
        """A batch of windows."""
        config, source = self.config, self.config.source
        sides = (source.height // PIXELS_PER_LATENT, source.width // PIXELS_PER_LATENT)
        size = (config.batch_size, source.views, source.window, *sides)
        latents = jax.ShapeDtypeStruct((*size, config.model.latent_channels), jnp.float32)
        return latents, jax.eval_shape(lambda: no_conditions(config.model, size))

    def held_out_batch(self) -> tuple[tuple[Any, LatentConditions], np.ndarray] | None:
        """`HELD_OUT` windows that are never trained on, from their start, split over the mesh.

        Returns:
            The batch, and the weight of each row: 0 for the repetitions that fill it up; None
            without any held-out example.
        """
        examples = np.flatnonzero(np.asarray(self.data.held_out))
        if not len(examples):
            return None
        examples = examples[:: max(1, len(examples) // HELD_OUT)][:HELD_OUT]
        frames, weights = self.config.source.window, np.arange(HELD_OUT) < len(examples)
        filled = np.resize(examples, HELD_OUT)
        batch = stack_windows([self.data.window(int(i), 0, frames) for i in filled])
        return put_rows(batch, HELD_OUT), weights.astype(np.float32)

    def evaluate(self, params: Any) -> dict[str, float]:
        """The loss on held-out examples with fixed noise and no condition hidden."""
        given = self.held_out_batch()
        if given is None:
            return {}
        batch, weights = given
        rows = gather_to_host(self._evaluation_loss(params, batch))
        return {f"held_out_{n}": float(np.average(x, weights=weights)) for n, x in rows.items()}

    @cached_property
    def _evaluation_loss(self) -> Any:
        def run(params: Any, batch: Any) -> Any:
            loss, metrics = self.flow_loss(params, batch, jax.random.key(0), {}, 0.0)
            return {"loss": loss, **metrics}

        return jax.jit(run)

    def loss(self, params: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """The mean flow loss with this experiment's dropout and history noise."""
        config = self.config
        rows = self.flow_loss(params, batch, key, config.dropout, config.noise.history)
        return jax.tree.map(jnp.mean, rows)

    def flow_loss(
        self, params: Any, batch: Any, key: Any, dropout: Mapping[str, float], history: float
    ) -> tuple[Any, dict[str, Any]]:
        """The loss of this paradigm, row by row; subclasses write it."""
        raise NotImplementedError(f"{type(self).__name__} must define flow_loss().")

    def next_commands(self, model: str) -> tuple[str, ...]:
        """Look at what the model generates."""
        return (f"jwm evaluate worldgen --gen {model}",)

    def save(self, params: Any, directory: Any, *, half: bool = True) -> None:
        """Exports a model directory, with the codec in it unless it ships with the package."""
        config = self.config
        shipped = (WEIGHTS / f"codec-{config.model.codec}").is_dir()
        sources = [*config.source.datasets, *(Path(name).name for name in config.source.clips)]
        card = (
            f"# WorldGen, experiment {config.name}\n\n"
            f"Trained by `jwm train {config.name}` on {', '.join(sources)}: {config.steps} steps "
            f"of {config.batch_size} windows of {config.source.window} latent frames. "
            "metrics.jsonl beside this folder has the scores.\n"
        )
        model = WorldGen(self.exported, params, self.codec)
        how = {"stage": self.stage, "with_codec": not shipped, "half": half}
        model.save_pretrained(directory, card=card, **how)


def x0_loss(
    predicted: Prediction,
    target: Float[jax.Array, "b v f h w c"],
    weight: Float[jax.Array, "b f"],
    base: Float[jax.Array, "b v f h w c"],
    middle_weight: float = 0.0,
) -> tuple[Float[jax.Array, "b"], dict[str, Float[jax.Array, "b"]]]:
    """Weighted squared error of predicted clean latents, a mean over each row.

    Args:
        predicted: by the network, with what its middle head says where that has a weight.
        target: true latents.
        weight: per latent frame, `flow.x0_weight`.
        base: what the network starts from, for comparison.
        middle_weight: of the middle head's error, which is added.

    Returns:
        The loss, and ``x0_mse`` beside ``base_mse`` and ``middle_mse``, unweighted.
    """
    rest = tuple(range(1, target.ndim))

    def errors(x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = jnp.square(x0 - target)
        weighted = jnp.mean(weight[:, None, :, None, None, None] * error, rest)
        return weighted, jnp.mean(error, rest)

    loss, plain = errors(predicted.x0)
    metrics = {"x0_mse": plain, "base_mse": jnp.mean(jnp.square(base - target), rest)}
    if middle_weight:
        middle, metrics["middle_mse"] = errors(predicted.middle.x0)
        loss = loss + middle_weight * middle
    return loss, metrics
