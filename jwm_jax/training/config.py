"""What an experiment is: a frozen dataclass that says everything a run depends on.

Each paradigm derives from `ExperimentConfig`, adds its model and data settings and builds its task.
A file in `configs/` holds one function `config()` that returns such a dataclass; its docstring is
the record of the experiment.
"""

import hashlib
import importlib
import importlib.util
import json
import pkgutil
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from jwm_jax.checkpoint.dataclass_json import from_dict, to_dict
from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.errors import UsageError
from jwm_jax.files import expand_user
from jwm_jax.training.optimizer import OptimizerConfig

# Fields that may differ when a run is resumed: how long, how often to report, and on which devices.
RESUMABLE = (
    "steps",
    "max_minutes",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "patience",
    "mesh",
)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Settings that every paradigm shares.

    Attributes:
        name: Name of the experiment; names the run folder.
        seed: Seed of initialisation, data order and noise.
        steps: Optimiser steps of the whole run.
        batch_size: Examples of a global batch.
        accumulate: Micro-batches a batch is computed in; must divide batch_size.
        mesh: Sizes of the mesh axes.
        optimizer: Settings of the optimiser.
        max_minutes: Stop cleanly after this many minutes of this invocation; None for no limit.
        log_every: Steps between rows of metrics.jsonl.
        eval_every: Steps between evaluations; 0 evaluates only at the end.
        checkpoint_every: Steps between checkpoints; 0 leaves it to the minutes.
        checkpoint_minutes: Minutes between checkpoints; 0 leaves it to the steps.
        keep_checkpoints: Newest verified checkpoints to keep.
        max_skipped: Give up after this many updates of a network in a row that were skipped, not
            finite or spikes.
        best: Value of the evaluation that is to fall: the weights at its lowest are kept in the
            folder "best" beside "model"; empty for none.
        patience: Evaluations in a row without a new lowest `best` after which the run ends; 0 goes
            on to the end.
    """

    name: str
    seed: int = 0
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    mesh: MeshConfig = field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_minutes: float | None = None
    log_every: int = 20
    eval_every: int = 0
    checkpoint_every: int = 0
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2
    max_skipped: int = 10
    best: str = ""
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.patience < 0 or (self.patience and not (self.best and self.eval_every)):
            raise UsageError(
                f"patience {self.patience} counts evaluations that do not lower a value: it needs "
                "best and eval_every."
            )
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"accumulate {self.accumulate} must divide batch_size {self.batch_size}."
            )

    def task(self) -> Any:
        """Build the task (`jwm_jax.training.loop.Task`) that this experiment trains."""
        raise NotImplementedError(f"{type(self).__name__} must define task().")


def to_json(config: ExperimentConfig) -> str:
    """The config as indented JSON with the name of its class."""
    return json.dumps({"experiment": type(config).__name__, **to_dict(config)}, indent=2) + "\n"


def config_hash(config: ExperimentConfig) -> str:
    """Twelve hex digits over the fields that must not change within a run."""
    fixed = {name: value for name, value in to_dict(config).items() if name not in RESUMABLE}
    text = json.dumps({"experiment": type(config).__name__, **fixed}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def override(config: ExperimentConfig, changes: dict[str, Any]) -> ExperimentConfig:
    """Change fields by dotted name.

    Args:
        config: Any experiment.
        changes: Dotted field name -> new value, such as {"optimizer.learning_rate": 1e-3}.

    Returns:
        A new config of the same class.

    Raises:
        UsageError: For an unknown field or a value of the wrong type.
    """
    data = to_dict(config)
    for dotted, value in changes.items():
        *parents, name = dotted.split(".")
        node: Any = data
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name not in node:
            raise UsageError(
                f"{dotted!r} is not a field of {type(config).__name__}; "
                f"here are {', '.join(node if isinstance(node, dict) else data)}."
            )
        node[name] = value
    return from_dict(type(config), data)


def drift(saved: dict[str, Any], config: ExperimentConfig) -> list[str]:
    """Fields in which a saved config differs from this one, apart from `RESUMABLE`.

    A field that the config was saved without, because it did not exist yet, counts as its default.

    Args:
        saved: Parsed config.json of a run.
        config: Config of the run that wants to resume.

    Returns:
        Lines "field: saved -> now"; empty when the run may be resumed.
    """
    before, after = _leaves(_completed(saved, type(config))), _leaves(json.loads(to_json(config)))
    return [
        f"{name}: {before.get(name, 'absent')!r} -> {after.get(name, 'absent')!r}"
        for name in sorted(before.keys() | after.keys())
        if name.split(".")[0] not in RESUMABLE
        and before.get(name, "absent") != after.get(name, "absent")
    ]


def _completed(saved: dict[str, Any], kind: type) -> dict[str, Any]:
    """A saved config with the fields it lacks, if it can be read as a config of this kind."""
    fields = {name: value for name, value in saved.items() if name != "experiment"}
    try:
        return saved | to_dict(from_dict(kind, fields))
    except UsageError:
        return saved


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _leaves(value, f"{prefix}{key}.").items()
    }


def list_configs() -> list[str]:
    """Names of the configs that come with the project."""
    import jwm_configs

    return sorted(
        module.name
        for module in pkgutil.iter_modules(jwm_configs.__path__)
        if not module.name.startswith("_")
    )


def find_config(name_or_file: str) -> tuple[ExperimentConfig, str]:
    """Find an experiment by name from any folder, or by the path of a Python file.

    Args:
        name_or_file: Name of a module in `configs/` (dashes allowed) or a path ending in .py.

    Returns:
        The config, and the docstring of its file.

    Raises:
        UsageError: When there is no such config or the file does not define `config()`.
    """
    name = name_or_file.replace("-", "_")
    path = expand_user(name_or_file)
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"config file {path} does not exist.")
        spec = importlib.util.spec_from_file_location(f"jwm_config_file_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their annotations up there
        spec.loader.exec_module(module)
    elif name in (names := list_configs()):
        module = importlib.import_module(f"jwm_configs.{name}")
    else:
        close = get_close_matches(name, names, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(
            f"no config {name_or_file!r}; there are {', '.join(names) or 'none'}, or give the "
            f"path of a .py file.{hint}"
        )
    build = getattr(module, "config", None)
    if build is None:
        raise UsageError(f"{module.__file__} must define config() -> ExperimentConfig.")
    result = build()
    if not isinstance(result, ExperimentConfig):
        raise UsageError(
            f"config() of {module.__file__} must return an ExperimentConfig, got "
            f"{type(result).__name__}."
        )
    return result, (module.__doc__ or "").strip()
