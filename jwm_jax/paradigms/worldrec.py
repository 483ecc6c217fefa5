"""Training WorldRec: reconstruct from a few pictures, render where and when others were taken.

The network reconstructs from an example's context (`worldrec_data`), the scene is rendered at the
targets' poses and times, and `worldrec_loss` compares, on any mesh.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.data.pipeline import batches_of
from jwm_jax.data.tfds_clips import open_records
from jwm_jax.errors import DataError, UsageError
from jwm_jax.paradigms.worldrec_data import Batch, Sampling, blank_example, make_example
from jwm_jax.paradigms.worldrec_loss import local_loss, mean_loss
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.nets import Net
from jwm_jax.training.sampling import Rows, example_indices, step_rng
from jwm_jax.training.task import Task
from jwm_jax.worldrec import WorldRec, WorldRecConfig
from jwm_jax.worldrec.losses import LossWeights
from jwm_jax.worldrec.model import boxed_params


@dataclass(frozen=True, kw_only=True)
class WorldRecExperiment(ExperimentConfig):
    """Settings of a WorldRec training.

    Attributes:
        model: Shape of the model.
        size: Name of the size, stored with the weights.
        datasets: Folders made by `jwm data make`, mixed clip by clip.
        split: Of the datasets.
        sampling: How a clip becomes an example.
        loss: Weights of the loss.
        held_out: Clips of each dataset that are kept for evaluation.
        init_from: Model directory or shipped size to start from; None starts from scratch.
    """

    model: WorldRecConfig = field(default_factory=WorldRecConfig)
    size: str = "tiny"
    datasets: tuple[str, ...] = ()
    split: str = "train"
    sampling: Sampling = field(default_factory=Sampling)
    loss: LossWeights = field(default_factory=LossWeights)
    held_out: int = 4
    init_from: str | None = None

    def task(self) -> "WorldRecTask":
        """Build the task."""
        return WorldRecTask(self)


class WorldRecTask(Task):
    """The WorldRec paradigm.

    Attributes:
        config: The experiment.
    """

    def __init__(self, config: WorldRecExperiment) -> None:
        """Open the datasets when they are first needed."""
        self.config = config
        self._records: list[tuple[Any, int]] | None = None

    def nets(self, config: WorldRecExperiment) -> dict[str, Net]:
        """WorldRec, from `config.init_from` if it names any."""
        source = {"source": config.init_from, "kind": "worldrec"}
        return {"model": Net(self.init, config.optimizer, **source)}

    def init(self, key: jax.Array) -> Any:
        """Boxed parameters."""
        return boxed_params(self.config.model, key)

    def loss(self, params: Any, batch: Batch, key: jax.Array | None) -> tuple[Any, dict[str, Any]]:
        """Mean loss over the batch's scenes, see `worldrec_loss`."""
        config = self.config
        return mean_loss(config.model, config.loss, config.sampling.slots, params, batch)

    def batches(self, start: int, rows: Rows) -> Iterator[Batch]:
        """Examples drawn from (seed, step, row) alone."""
        config, records = self.config, self._open()

        def example(step: int, row: int) -> Batch:
            index = example_indices(config.seed, step, len(records), config.batch_size)
            source, place = records[index[row]]
            rng = step_rng(config.seed, step, row)
            return make_example(config.model, config.sampling, source[place], rng)

        return batches_of(example, start, np.arange(config.batch_size)[rows].tolist())

    def shapes(self) -> Batch:
        """A batch for pictures of the streets' aspect; other widths cost in proportion."""
        config = self.config
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (config.batch_size, *np.shape(x)),
                jax.dtypes.canonicalize_dtype(np.asarray(x).dtype),
            ),
            blank_example(config.model, config.sampling),
        )

    def evaluate(self, params: Any) -> dict[str, float]:
        """Loss, PSNR and SSIM on held-out clips, context and targets drawn as in training."""
        held_out = self._open(held_out=True)
        examples = []
        for source, place in held_out:
            rng = np.random.default_rng(place)
            sampling = replace(
                self.config.sampling, brighten=0.0, lidar=0.0, instant=0.0, untracked=0.0
            )
            examples.append(make_example(self.config.model, sampling, source[place], rng))
        totals: dict[str, float] = {}
        for example in examples:
            batch = jax.tree.map(lambda x: jnp.asarray(x)[None], example)
            for name, value in self._scores(params, batch).items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(examples)
        return totals

    def save(self, params: Any, directory: Any) -> None:
        """Export the averaged weights."""
        WorldRec(self.config.model, params, self.config.size).save_pretrained(
            directory, card_text(self.config)
        )

    @property
    def _scores(self):
        if not hasattr(self, "_jitted_scores"):
            config = self.config
            fixed = config.model, config.loss, config.sampling.slots, None
            self._jitted_scores = jax.jit(
                lambda params, batch: local_loss(*fixed, params, batch)[1]
            )
        return self._jitted_scores

    def _open(self, held_out: bool = False) -> list[tuple[Any, int]]:
        if self._records is None:
            if not self.config.datasets:
                raise UsageError(
                    "datasets is empty: name folders made by `jwm data make`, for example "
                    "--set 'datasets=[\"data/streets_easy\"]'."
                )
            self._records = []
            for folder in self.config.datasets:
                path = Path(folder).expanduser()
                if not path.is_dir():
                    raise DataError(
                        f"dataset {path} does not exist; configs/README.md has the `jwm data make` "
                        "commands, and --set datasets=... names other folders."
                    )
                source = open_records(path, self.config.split)
                keep = min(self.config.held_out, len(source) - 1)
                self._records += [(source, i) for i in range(len(source))]
                self._kept = getattr(self, "_kept", set()) | {
                    (id(source), i) for i in range(len(source) - keep, len(source))
                }
        return [r for r in self._records if ((id(r[0]), r[1]) in self._kept) == held_out]


def card_text(config: WorldRecExperiment) -> str:
    """The model card of a run."""
    data = ", ".join(Path(d).name for d in config.datasets)
    return (
        f"# WorldRec {config.size}\n\n"
        f"Feed-forward Gaussian reconstruction of driving clips, {config.model.height} rows.\n\n"
        f"- Experiment: `{config.name}`, {config.steps} steps of {config.batch_size} scenes, seed "
        f"{config.seed}.\n"
        f"- Data: {data} (procedural streets made by `jwm data make`; no real drive).\n"
        f"- Command: `jwm train {config.name}`.\n"
    )
