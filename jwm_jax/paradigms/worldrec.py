"""Training WorldRec: reconstruct from a few pictures, render where and when others were taken.

The network reconstructs from an example's context (`worldrec_data`), the scene is rendered at the
targets' poses and times, and `worldrec_loss` compares, on any mesh.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.data.photometric import UNCHANGED
from jwm_jax.data.pipeline import batches_of
from jwm_jax.data.records import read_header
from jwm_jax.data.tfds_clips import open_records
from jwm_jax.errors import DataError, UsageError
from jwm_jax.nn.lpips import WEIGHTS
from jwm_jax.paradigms.judge import JUDGE, judge_net
from jwm_jax.paradigms.worldrec_data import (
    Batch,
    Sampling,
    blank_example,
    drive_records,
    make_example,
)
from jwm_jax.paradigms.worldrec_loss import local_loss, mean_loss
from jwm_jax.scene.clip import fitted_size
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.nets import Net, Phase
from jwm_jax.training.sampling import Rows, example_indices, step_rng
from jwm_jax.training.task import Task
from jwm_jax.worldrec import WorldRec, WorldRecConfig
from jwm_jax.worldrec.losses import LossWeights
from jwm_jax.worldrec.model import boxed_params

DRIVE_EXAMPLES = 12
"""Examples of a held-out drive in an evaluation."""


@dataclass(frozen=True, kw_only=True)
class WorldRecExperiment(ExperimentConfig):
    """Settings of a WorldRec training.

    Attributes:
        model: Shape of the model.
        size: Name of the size, stored with the weights.
        datasets: Folders made by `jwm data make`, mixed clip by clip.
        split: Of the datasets.
        clips: Real drives with poses, as `load_clip` takes them, with `$VAR` expanded.
        clips_share: Share of the examples that come from the real drives; longer ones give more.
        held_out_clips: Real drives that are evaluated on and never trained on.
        width: Columns of the pictures; 0 for the streets' aspect of 5 to 3.
        sampling: How a clip becomes an example.
        loss: Weights of the loss.
        lpips: File with the weights of LPIPS, read where the loss has it.
        held_out: Clips of each dataset that are kept for evaluation.
        init_from: Model directory or shipped size to start from; None starts from scratch.
    """

    model: WorldRecConfig = field(default_factory=WorldRecConfig)
    size: str = "tiny"
    datasets: tuple[str, ...] = ()
    split: str = "train"
    clips: tuple[str, ...] = ()
    clips_share: float = 0.35
    held_out_clips: tuple[str, ...] = ()
    width: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    loss: LossWeights = field(default_factory=LossWeights)
    lpips: str = WEIGHTS
    held_out: int = 4
    init_from: str | None = None

    @property
    def columns(self) -> int:
        """Columns of the pictures."""
        return self.width or fitted_size(3, 5, self.model.height, 16)[1]

    def task(self) -> "WorldRecTask":
        """Build the task."""
        return WorldRecTask(self)


class WorldRecTask(Task):
    """The WorldRec paradigm.

    Attributes:
        config: The experiment.
    """

    def __init__(self, config: WorldRecExperiment) -> None:
        """Open the data when it is first needed."""
        self.config = config

    def nets(self, config: WorldRecExperiment) -> dict[str, Net]:
        """WorldRec, from `config.init_from` if it names any, and LPIPS, frozen, where it counts."""
        source = {"source": config.init_from, "kind": "worldrec"}
        nets = {"model": Net(self.init, config.optimizer, **source)}
        return nets | judge_net(config.lpips) if config.loss.lpips else nets

    def init(self, key: jax.Array) -> Any:
        """Boxed parameters."""
        return boxed_params(self.config.model, key)

    def loss(
        self, params: Any, batch: Batch, key: jax.Array | None, judge: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Mean loss over the batch's scenes, see `worldrec_loss`."""
        config = self.config
        return mean_loss(config.model, config.loss, config.sampling.slots, params, batch, judge)

    def phases(self) -> tuple[Phase, ...]:
        """One update by `loss`."""

        def loss(params: Any, others: Any, batch: Batch, key: Any) -> Any:
            mean, parts = self.loss(params, batch, key, others.get(JUDGE))
            return (mean * len(batch.images), len(batch.images)), parts

        return (Phase("model", loss),)

    def batches(self, start: int, rows: Rows) -> Iterator[Batch]:
        """Examples drawn from (seed, step, row) alone."""
        config, streets, drives = self.config, self._streets[0], self._drives
        lengths = np.asarray([read_header(drive)["frames"] for drive in drives], float)

        def example(step: int, row: int) -> Batch:
            rng = step_rng(config.seed, step, row)
            if drives and rng.random() < config.clips_share:
                record = drives[int(rng.choice(len(drives), p=lengths / lengths.sum()))]
            else:
                index = example_indices(config.seed, step, len(streets), config.batch_size)
                source, place = streets[index[row]]
                record = source[place]
            return make_example(config.model, config.sampling, config.columns, record, rng)

        return batches_of(example, start, np.arange(config.batch_size)[rows].tolist())

    def shapes(self) -> Batch:
        """A batch."""
        config = self.config
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (config.batch_size, *np.shape(x)),
                jax.dtypes.canonicalize_dtype(np.asarray(x).dtype),
            ),
            blank_example(config.model, config.sampling, config.columns),
        )

    def evaluate(self, params: Any) -> dict[str, float]:
        """Loss, PSNR and SSIM on held-out clips, context and targets drawn as in training; of each
        real drive that is held out, `DRIVE_EXAMPLES` examples."""
        config = self.config
        sampling = replace(
            config.sampling,
            photometric=UNCHANGED,
            mirror=0.0,
            lidar=0.0,
            instant=0.0,
            untracked=0.0,
        )
        groups = {"": [(source[place], place) for source, place in self._streets[1]]}
        for drive in drive_records(config.held_out_clips, config.model.height, config.columns):
            name = f"_{read_header(drive)['name']}"
            groups[name] = [(drive, seed) for seed in range(DRIVE_EXAMPLES)]
        totals: dict[str, float] = {}
        for group, drawn in groups.items():
            for record, seed in drawn:
                rng = np.random.default_rng(seed)
                example = make_example(config.model, sampling, config.columns, record, rng)
                batch = jax.tree.map(lambda x: jnp.asarray(x)[None], example)
                for name, value in self._scores(params, batch).items():
                    key = f"{name}{group}"
                    totals[key] = totals.get(key, 0.0) + float(value) / len(drawn)
        return totals

    def save(self, params: Any, directory: Any, *, half: bool = True) -> None:
        """Export the averaged weights."""
        WorldRec(self.config.model, params, self.config.size).save_pretrained(
            directory, card_text(self.config), half=half
        )

    @cached_property
    def _scores(self) -> Any:
        config = self.config
        fixed = config.model, replace(config.loss, lpips=0.0), config.sampling.slots, None
        return jax.jit(lambda params, batch: local_loss(*fixed, params, batch)[1])

    @cached_property
    def _drives(self) -> list[Any]:
        """Records of the real drives."""
        config = self.config
        return drive_records(config.clips, config.model.height, config.columns)

    @cached_property
    def _streets(self) -> tuple[list[tuple[Any, int]], list[tuple[Any, int]]]:
        """Places of the streets to train on and of those held out, each with its data set."""
        if not self.config.datasets:
            raise UsageError(
                "datasets is empty: name folders made by `jwm data make`, for example "
                "--set 'datasets=[\"data/streets_easy\"]'."
            )
        train, held_out = [], []
        for folder in self.config.datasets:
            path = Path(folder).expanduser()
            if not path.is_dir():
                raise DataError(
                    f"dataset {path} does not exist; configs/README.md has the `jwm data make` "
                    "commands, and --set datasets=... names other folders."
                )
            source = open_records(path, self.config.split)
            first = len(source) - min(self.config.held_out, len(source) - 1)
            train += [(source, i) for i in range(first)]
            held_out += [(source, i) for i in range(first, len(source))]
        return train, held_out


def card_text(config: WorldRecExperiment) -> str:
    """The model card of a run."""
    data = ", ".join(Path(d.partition("?")[0]).name for d in (*config.datasets, *config.clips))
    return (
        f"# WorldRec {config.size}\n\n"
        f"Feed-forward Gaussian reconstruction of driving clips, {config.model.height} rows.\n\n"
        f"- Experiment: `{config.name}`, {config.steps} steps of {config.batch_size} scenes, seed "
        f"{config.seed}.\n"
        f"- Data: {data} (streets are procedural, made by `jwm data make`).\n"
        f"- Command: `jwm train {config.name}`.\n"
    )
