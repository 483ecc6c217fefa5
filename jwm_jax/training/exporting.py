"""The weights of a run, at any step that it has saved, as a model directory."""

import json
from pathlib import Path
from typing import Any, Literal

from jwm_jax.checkpoint.dataclass_json import from_dict
from jwm_jax.checkpoint.inspection import is_step, read_item, step_folder
from jwm_jax.checkpoint.manager import verify_step
from jwm_jax.errors import DataError, JwmError, UsageError
from jwm_jax.files import expand_user
from jwm_jax.training.config import ExperimentConfig, find_config

Weights = Literal["averaged", "raw"]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, or that of one of its steps."""
    try:
        saved = json.loads((_run_of(folder) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and "experiment" in saved


def saved_config(run: Path, config: str | None = None) -> ExperimentConfig:
    """The config of a run, read from its folder.

    Args:
        run: The run's folder.
        config: Name or file of the config that it was started from; by default that of its name.

    Raises:
        UsageError: There is no such config, or it has other fields by now.
    """
    path = run / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    kind = saved.pop("experiment")
    blank, _ = find_config(config or saved["name"])
    if type(blank).__name__ != kind:
        raise UsageError(
            f"{path} was made as {kind}, but the config {config or saved['name']} is a "
            f"{type(blank).__name__}; name the run's own with --config."
        )
    return from_dict(type(blank), saved, str(path))


def export_run(
    source: str | Path,
    directory: str | Path,
    weights: Weights = "averaged",
    half: bool = False,
    config: str | None = None,
) -> int:
    """Write the product of a run as a model directory.

    Args:
        source: A run's folder, of which the newest finished step is taken, or the folder of a step.
        directory: To write.
        weights: The averaged ones, as at the end of a run, or those that are trained.
        half: Store float16; else the bits of the checkpoint (but of a new codec the latents'
            statistics, which are measured on its training data).
        config: See `saved_config`.

    Returns:
        The step.

    Raises:
        UsageError: There is no finished checkpoint, or no config.
        DataError: The checkpoint is damaged, or a weight is too large for float16.
    """
    folder = step_folder(source)
    fault = verify_step(folder)
    if fault is not None:
        raise DataError(f"{fault}; nothing was written. Name another step's folder.")
    experiment = saved_config(_run_of(folder), config)
    task = experiment.task()
    params = _product(folder, task.product, weights)
    try:
        task.save(params, directory, half=half)
    except JwmError:
        raise
    except ValueError as error:
        raise DataError(f"{folder}: {error}") from error
    return int(folder.name)


def _product(folder: Path, name: str, weights: Weights) -> Any:
    if weights == "averaged" and (folder / "ema").is_dir():
        average = read_item(folder, "ema").get(name)
        if average is not None:
            return average
    return read_item(folder, "params")[name]


def _run_of(folder: str | Path) -> Path:
    """A run's folder, from itself or from a step's."""
    path = expand_user(folder).absolute()
    return path.parent.parent if is_step(path) else path
