"""What a paradigm brings to the loop: networks, phases, batches, and a use for the result."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax

from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.nets import Net, Phase
from jwm_jax.training.sampling import Rows
from jwm_jax.training.step import Alternate, Cycle


class Task:
    """Base class of every paradigm.

    A paradigm that trains one network writes `init`, `loss` and `batches`; one with several
    overrides `nets` and `phases` instead of the first two. A task holds configs and host data and
    never changes. Everything that training changes is in the `TrainState`.

    Attributes:
        schedule: How a step runs the phases.
        product: Name of the network whose averaged weights are evaluated and exported.
    """

    schedule: ClassVar[Cycle | Alternate] = Cycle()
    product: ClassVar[str] = "model"

    def nets(self, config: ExperimentConfig) -> Mapping[str, Net]:
        """The networks by name, in a fixed order; by default one, "model", that `init` makes.

        Args:
            config: The experiment that is run.
        """
        return {"model": Net(self.init, config.optimizer)}

    def phases(self) -> tuple[Phase, ...]:
        """The phases in their order; by default one update of "model" by `loss`."""

        def weighted(params: Any, others: Any, batch: Any, key: Any) -> Any:
            mean, metrics = self.loss(params, batch, key)
            rows = next(x.shape[0] for x in jax.tree.leaves(batch) if x.ndim)
            return (mean * rows, rows), metrics

        return (Phase("model", weighted),)

    def init(self, key: Any) -> Any:
        """Make the parameters of the one network.

        Args:
            key: Typed key.

        Returns:
            Nested dict of float32 parameters in flax boxes with logical axis names, as
            `module.init(...)["params"]` gives them. Traced under `jax.eval_shape` and `jax.jit`.
        """
        raise NotImplementedError

    def loss(self, params: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """Loss of one (micro-)batch of the one network.

        Args:
            params: Unboxed parameters.
            batch: What `batches` yields, as arrays on the mesh.
            key: Key of this update; a function of seed and step.

        Returns:
            The loss, a float32 scalar that is a mean over the rows of the batch, and a dict of
            float32 scalars to report. (What is no plain mean, such as a mean over what a mask
            leaves, is a `nets.Phase` with its own weight.)
        """
        raise NotImplementedError

    def batches(self, start: int, rows: Rows) -> Iterator[Any]:
        """Yield the batches `start`, `start + 1`, ... without end, one for every update.

        A batch has to be a pure function of (seed, its number), whatever the start; `sampling` has
        `example_indices` and `step_rng` for that. Runs in a thread, ahead of its use. A step takes
        `schedule.batches(phases)` of them.

        Args:
            start: Number of the first batch.
            rows: Rows of the global batch that this process supplies (all of them in one process).

        Returns:
            Iterator of trees of numpy arrays whose first dimension holds those rows; scalars, such
            as weights of terms, are the same on every device.
        """
        raise NotImplementedError

    def shapes(self) -> Any:
        """One global batch as `batches` yields it, as ShapeDtypeStructs; reads no data."""
        raise NotImplementedError(f"{type(self).__name__} must define shapes().")

    def next_commands(self, model: str) -> tuple[str, ...]:
        """Commands to suggest after training, given the folder of the exported model."""
        return ()

    def evaluate(self, params: Any) -> dict[str, Any]:
        """Measure the averaged weights on held-out data; an empty dict where there is none.

        Returns:
            Numbers by name, and pictures [h, w, 3] in [0, 1], which are kept as PNG.
        """
        return {}

    def save(self, params: Any, directory: str | os.PathLike[str], *, half: bool = True) -> None:
        """Export the averaged weights (numpy) as a model directory; called at the end of a run.

        Args:
            params: Of the product.
            directory: Folder of the model.
            half: Store float16; else as they are.
        """
