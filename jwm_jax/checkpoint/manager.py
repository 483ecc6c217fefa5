"""Training checkpoints that are known to be whole: orbax writes them, a manifest vouches for them.

Orbax writes a step into a temporary folder and renames it, but it neither notices a flipped bit nor
falls back to an older step. So after the rename a manifest with the SHA-256 of every file is
written last; only a step whose manifest matches is restored, and restoring walks back from the
newest step to the newest good one. Litter of the operating system does not count. Rejected steps
are renamed to `<step>.corrupt` and kept for inspection. The last good step is never deleted before
a newer one is good.

    checkpoints/00000200/{params,ema,opt,data}/...    checkpoints/00000200/manifest.json
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jwm_jax.errors import DataError, ResourceError
from jwm_jax.files import is_litter, make_folder, write_beside

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[str]:
    """Names, relative to a step's folder, of the files in it that are its own."""
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(name for name in files if name != MANIFEST and not is_litter(name))


def _not_told_by_orbax(record: logging.LogRecord) -> bool:
    """A log filter: of a failed save Orbax logs a traceback for every thread, and raises too."""
    return record.exc_info is None or "orbax" not in Path(record.pathname).parts


def write_manifest(folder: Path, step: int, config_hash: str) -> None:
    """Write the manifest of a finished step folder, flushed to disk.

    Args:
        folder: The step's folder.
        step: Steps done.
        config_hash: Identifies the config that the state belongs to.
    """
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": _digest(folder / name)}
        for name in _files(folder)
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "config_hash": config_hash,
        "files": files,
    }
    with write_beside(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_step(folder: Path) -> str | None:
    """Compare a step folder with its manifest.

    Args:
        folder: The step's folder.

    Returns:
        None when every file is there with its digest, else what is wrong, naming the file.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        expected = {name: (e["size"], e["sha256"]) for name, e in manifest["files"].items()}
    except FileNotFoundError:
        return f"{path} is missing: the save was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} cannot be read ({error})"
    expected = {name: entry for name, entry in expected.items() if not is_litter(name)}
    if not expected:
        return f"{path} lists no files"
    present = set(_files(folder))
    for name in sorted(expected.keys() | present):
        file = folder / name
        if name not in present:
            return f"{file} is missing"
        if name not in expected:
            return f"{file} is not in the manifest"
        size, digest = expected[name]
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes instead of {size}"
        if _digest(file) != digest:
            return f"{file} has other contents than were saved"
    return None


def list_steps(root: Path) -> list[int]:
    """Steps that have a folder under `root`, oldest first, verified or not."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.is_dir() and p.name.isdigit())


class CheckpointManager:
    """Saves, verifies, prunes and restores the steps of one run.

    `save` returns once the arrays are copied; writing and hashing go on in a thread, whose failure
    is raised by the next `save` or `wait`. All processes of a job call every method together.

    Attributes:
        root: Folder that holds one folder per step.
    """

    def __init__(self, root: Path, keep: int = 2, config_hash: str = "") -> None:
        """Use `root` (made absolute), keeping the `keep` newest verified steps."""
        self.root = Path(root).absolute()
        self._keep = max(keep, 1)
        self._hash = config_hash
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._primary = jax.process_index() == 0
        if self._primary:
            make_folder(self.root)
            self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        for leftover in self.root.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def folder(self, step: int) -> Path:
        """Folder of a step."""
        return self.root / f"{step:08d}"

    def check_space(self, num_bytes: int) -> None:
        """Raise ResourceError unless two checkpoints of `num_bytes` fit on the disk."""
        free = shutil.disk_usage(self.root).free if self.root.is_dir() else num_bytes * 3
        if free < 2.2 * num_bytes:
            raise ResourceError(
                f"{self.root} has {free / 1e9:.1f} GB free, but two checkpoints need "
                f"{2.2 * num_bytes / 1e9:.1f} GB; free some space or choose another --out."
            )

    def save(self, step: int, items: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Start saving a step; a step that is already there and good is left as it is.

        Args:
            step: Steps done.
            items: Name ("params", "ema", "opt") -> tree of arrays; a tree without arrays is left
                out.
            data: JSON-ready rest of the state.

        Raises:
            ResourceError: When an earlier save failed, for example on a full disk.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        folder = self.folder(step)
        if folder.exists():
            return
        logging.getLogger("absl").addFilter(_not_told_by_orbax)  # at most once
        trees = {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}
        try:
            response = ocp.save_checkpointables_async(
                folder, {**trees, "data": {"step": np.array(step), "json": json.dumps(data)}}
            )
        except OSError as error:
            raise self._failed(error) from error
        self._thread = threading.Thread(target=self._finish, args=(step, response))
        self._thread.start()

    def _finish(self, step: int, response: Any) -> None:
        try:
            response.result()
            if self._primary:
                write_manifest(self.folder(step), step, self._hash)
                self._prune()
        except BaseException as error:  # raised again by wait()
            self._error = error

    def _failed(self, error: BaseException) -> ResourceError:
        if self._primary:
            self._remove_unfinished()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ResourceError(
            f"saving a checkpoint to {self.root} failed ({reason}); the earlier checkpoints are "
            "intact, so free some space and run the same command again."
        )

    def join(self) -> None:
        """Wait for the last save without raising, for the way out of a failed run."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until the last save is on disk with its manifest.

        Raises:
            ResourceError: When it failed.
        """
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise self._failed(error) from error

    def _prune(self) -> None:
        finished = [s for s in list_steps(self.root) if (self.folder(s) / MANIFEST).is_file()]
        for step in finished[: -self._keep]:
            doomed = self.folder(step).with_suffix(".deleting")
            self.folder(step).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def newest_verified(self) -> tuple[int | None, list[str]]:
        """Find the newest good step and set bad ones aside as `<step>.corrupt`.

        Returns:
            The step, or None when there is no step folder at all; and why newer ones were rejected.

        Raises:
            DataError: When there are steps but none is good; training must not start over silently.
        """
        step, rejected = -1, []
        if self._primary:
            step, rejected = self._walk_back()
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == -2:
            raise DataError(
                f"no checkpoint in {self.root} is whole ({'; '.join(rejected)}); restore the "
                "folder from a copy, or start again with --overwrite."
            )
        return (None if step < 0 else step), rejected

    def _walk_back(self) -> tuple[int, list[str]]:
        rejected = []
        for step in reversed(list_steps(self.root)):
            reason = verify_step(self.folder(step))
            if reason is None:
                return step, rejected
            rejected.append(reason)
            self._set_aside(step)
        once_good = [p for p in sorted(self.root.glob("*.corrupt*")) if (p / MANIFEST).exists()]
        if not once_good:
            return -1, rejected
        return -2, rejected or [f"{once_good[-1]} was set aside earlier"]

    def _set_aside(self, step: int) -> None:
        target = self.folder(step).with_suffix(".corrupt")
        number = 1
        while target.exists():
            number += 1
            target = self.folder(step).with_suffix(f".corrupt{number}")
        self.folder(step).rename(target)

    def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Load items of a step onto the devices of their shardings.

        Args:
            step: A verified step.
            abstract: Name -> tree of ShapeDtypeStruct with shardings.

        Returns:
            Name -> tree of arrays.

        Raises:
            DataError: When names, shapes or dtypes differ from what is asked for.
        """
        from orbax.checkpoint import v1 as ocp

        wanted = {name: tree for name, tree in abstract.items() if jax.tree.leaves(tree)}
        folder = self.folder(step)
        missing = [name for name in wanted if not (folder / name).is_dir()]
        if missing:
            raise DataError(f"{folder} has no item {missing[0]!r}; it is of another kind of run.")
        self._check_dtypes(folder, wanted)
        try:
            loaded = ocp.load_checkpointables(folder, wanted)
        except (ValueError, KeyError) as error:
            raise DataError(f"{folder} does not fit this model: {error}") from error
        return {name: loaded.get(name, abstract[name]) for name in abstract}

    @staticmethod
    def _check_dtypes(folder: Path, wanted: Mapping[str, Any]) -> None:
        """Orbax casts silently; a state of another dtype is an error here."""
        from orbax.checkpoint import v1 as ocp

        saved = ocp.checkpointables_metadata(folder).metadata
        for name, tree in wanted.items():
            have = {
                jax.tree_util.keystr(path, simple=True, separator="."): leaf.dtype
                for path, leaf in jax.tree_util.tree_flatten_with_path(saved[name])[0]
                if hasattr(leaf, "dtype")
            }
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
                dotted = jax.tree_util.keystr(path, simple=True, separator=".")
                if dotted in have and have[dotted] != leaf.dtype:
                    raise DataError(
                        f"{folder}: {name}.{dotted} was saved as {have[dotted]}, but {leaf.dtype} "
                        "is asked for."
                    )

    def read_data(self, step: int) -> dict[str, Any]:
        """The JSON part of a step."""
        from orbax.checkpoint import v1 as ocp

        wanted = {"data": {"step": np.array(0), "json": ""}}
        loaded = ocp.load_checkpointables(self.folder(step), wanted)
        return json.loads(loaded["data"]["json"])
