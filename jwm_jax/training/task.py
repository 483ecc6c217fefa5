"""What a paradigm brings to the loop: parameters, a loss, batches, and a use for the result."""

import os
from collections.abc import Iterator
from typing import Any

from jwm_jax.checkpoint.model_dir import check_params, load_params
from jwm_jax.errors import UsageError


class Task:
    """Base class of every paradigm; `init`, `loss` and `batches` have to be written.

    A task holds configs and host data and never changes. Everything that training changes is in
    the `TrainState`.
    """

    def init(self, key: Any) -> Any:
        """Make the parameters.

        Args:
            key: Typed key.

        Returns:
            Nested dict of float32 parameters in flax boxes with logical axis names, as
            `module.init(...)["params"]` gives them. Traced under `jax.eval_shape` and `jax.jit`.
        """
        raise NotImplementedError

    def loss(self, params: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """Loss of one (micro-)batch.

        A task that overrides `constants` takes them as a fourth argument.

        Args:
            params: Unboxed parameters.
            batch: What `batches` yields, as arrays on the mesh.
            key: Key of this step; a function of seed and step.

        Returns:
            The loss, a float32 scalar that is a mean over the rows of the batch, and a dict of
            float32 scalars to report.
        """
        raise NotImplementedError

    def batches(self, start_step: int, rows: slice) -> Iterator[Any]:
        """Yield the batches of steps `start_step`, `start_step + 1`, ... without end.

        A batch has to be a pure function of (seed, step), whatever the start; `sampling` has
        `example_indices` and `step_rng` for that. Runs in a thread, ahead of its use.

        Args:
            start_step: First step.
            rows: Rows of the global batch that this process supplies (all of them in one process).

        Returns:
            Iterator of trees of numpy arrays whose first dimension holds those rows.
        """
        raise NotImplementedError

    def constants(self) -> Any:
        """Frozen arrays that the loss needs, such as a teacher; passed to `loss`, never trained.

        Returns:
            A tree of arrays, or None. Large frozen arrays belong here: what `loss` captures by
            closure becomes part of the compiled program.
        """
        return None

    def trains(self, name: str) -> bool:
        """Whether a parameter (dotted name) is trained; others keep their values, undecayed."""
        return True

    def next_commands(self, model: str) -> tuple[str, ...]:
        """Commands to suggest after training, given the folder of the exported model."""
        return ()

    def warm_start(self, params: Any) -> Any:
        """Replace freshly initialised parameters at step 0, for example by another run's weights.

        Args:
            params: Nested dict of ShapeDtypeStructs.

        Returns:
            Nested dict of numpy arrays in which a leaf may still be its ShapeDtypeStruct, which
            keeps the initialised value; or None to keep all of them.
        """
        return None

    def evaluate(self, params: Any) -> dict[str, float]:
        """Measure the averaged weights on held-out data; an empty dict where there is none."""
        return {}

    def save(self, params: Any, directory: str | os.PathLike[str]) -> None:
        """Export the averaged weights (numpy) as a model directory; called at the end of a run."""


def initial_weights(source: str | None, kind: str, params: Any) -> Any:
    """The weights that `init_from` names, every tensor of them, for `Task.warm_start`.

    Args:
        source: Model directory or shipped size; None starts from scratch.
        kind: Of the model, as its directory says.
        params: Nested dict of ShapeDtypeStructs.

    Returns:
        Nested dict of numpy arrays, or None.

    Raises:
        UsageError: There is no such model.
        DataError: It is of another size.
    """
    if source is None:
        return None
    try:
        given = load_params(source, kind)
    except UsageError as error:
        raise UsageError(
            f"init_from: {error} Train the stage before this one first, or set init_from."
        ) from None
    check_params(given, params, f"init_from {source}")
    return given
