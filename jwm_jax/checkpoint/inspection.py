"""Looking at the checkpoints of a run, which may be alive: nothing is renamed or written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jwm_jax.checkpoint.manager import MANIFEST, list_steps
from jwm_jax.errors import DataError, UsageError
from jwm_jax.files import expand_user


@dataclass(frozen=True)
class Step:
    """A step's folder as its manifest describes it; its files are not read.

    Attributes:
        folder: Where it is.
        number: Steps done.
        num_bytes: Of its files; 0 where there is no manifest that can be read.
        items: Names of its parts, such as "params" and "opt".
        saved: When the manifest was written, in seconds since 1970; None without one.
    """

    folder: Path
    number: int
    num_bytes: int = 0
    items: tuple[str, ...] = ()
    saved: float | None = None


@dataclass(frozen=True)
class Difference:
    """What is not alike in two checkpoints.

    Attributes:
        name: Dotted name of an array: item, network, tensor.
        what: In words: which side lacks it, or both shapes or dtypes, or how far the values are.
    """

    name: str
    what: str


def checkpoints_of(run: str | Path) -> Path:
    """The folder of a run's steps.

    Args:
        run: The run's folder, or the folder of its steps itself.

    Raises:
        UsageError: There is no such folder, or no checkpoint in it.
    """
    folder = expand_user(run).absolute()
    for root in (folder / "checkpoints", folder):
        steps = [root / f"{number:08d}" for number in list_steps(root)]
        if root.name == "checkpoints" and (steps or any(root.glob("*.corrupt*"))):
            return root
        if any((step / MANIFEST).is_file() for step in steps):
            return root
    missing = "has no checkpoints" if folder.is_dir() else "does not exist"
    raise UsageError(f"{folder} {missing}; give the folder that `jwm train` wrote to (--out).")


def steps_of(root: Path) -> list[Step]:
    """Every step under a folder, oldest first, whole or not."""
    return [_described(root / f"{number:08d}", number) for number in list_steps(root)]


def set_aside(root: Path) -> list[Path]:
    """Folders of steps that a resumed run found damaged."""
    return sorted(root.glob("*.corrupt*"))


def step_folder(where: str | Path) -> Path:
    """One step: its own folder, or the newest finished one of a run.

    Raises:
        UsageError: There is none.
    """
    folder = expand_user(where).absolute()
    if is_step(folder):
        return folder
    finished = [step for step in steps_of(checkpoints_of(folder)) if step.saved is not None]
    if not finished:
        raise UsageError(f"{folder} has no finished checkpoint.")
    return finished[-1].folder


def is_step(folder: Path) -> bool:
    """Whether a folder is one step's, and not that of a run whose name is a number."""
    named = folder.name.isdigit() and folder.is_dir()
    return named and (folder.parent.name == "checkpoints" or (folder / MANIFEST).is_file())


def differences(a: Path, b: Path) -> Iterator[Difference]:
    """The arrays in which two steps are not bitwise alike; one item is in memory at a time.

    Args:
        a: Folder of a step.
        b: Folder of another.

    Raises:
        DataError: One cannot be read.
    """
    for item in sorted({*_items(a), *_items(b)} - {"data"}):
        ours, theirs = _arrays(a, item), _arrays(b, item)
        for name in sorted(ours.keys() | theirs.keys()):
            dotted = f"{item}.{name}"
            if name not in ours or name not in theirs:
                yield Difference(dotted, f"only in {a if name in ours else b}")
                continue
            what = _compared(ours[name], theirs[name])
            if what is not None:
                yield Difference(dotted, what)


def read_item(folder: Path, item: str) -> dict[str, Any]:
    """One item of a step as it was saved, in this process's memory.

    Args:
        folder: Of the step.
        item: "params", "ema" or "opt".

    Returns:
        Network -> tree of numpy arrays.

    Raises:
        DataError: The step has no such item, or it cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    folder = folder.absolute()  # Orbax takes no other
    if not (folder / item).is_dir():
        raise DataError(f"{folder} has no item {item!r}; it has {', '.join(_items(folder))}.")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])

    def wanted(leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    try:
        saved = ocp.checkpointables_metadata(folder).metadata[item]
        tree = ocp.load_checkpointables(folder, {item: jax.tree.map(wanted, saved)})[item]
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder / item} cannot be read ({reason}).") from error
    return jax.tree.map(np.asarray, tree)


def _described(folder: Path, number: int) -> Step:
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        total = sum(entry["size"] for entry in files.values())
        return Step(folder, number, total, _items(folder), path.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Step(folder, number)


def _items(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))


def _arrays(folder: Path, item: str) -> dict[str, np.ndarray]:
    if not (folder / item).is_dir():
        return {}
    leaves = jax.tree_util.tree_flatten_with_path(read_item(folder, item))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _compared(a: np.ndarray, b: np.ndarray) -> str | None:
    if a.shape != b.shape:
        return f"shape {a.shape} and {b.shape}"
    if a.dtype != b.dtype:
        return f"{a.dtype} and {b.dtype}"
    if a.tobytes() == b.tobytes():
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    largest = np.max(np.abs(a), initial=0.0)
    return f"differs by up to {np.max(np.abs(a - b)):.3g}; its largest entry is {largest:.3g}"
