"""The folder of a run: made, recognised, locked, and never overwritten silently.

<out>/config.json  metrics.jsonl  lock.json  checkpoints/<step>/  model/  best/  pictures/  profile/

The lock comes first: a folder that another trainer holds is neither cleared nor written to.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from jwm_jax.errors import ResourceError, UsageError
from jwm_jax.files import (
    check_writable,
    discard,
    entries,
    make_folder,
    numbered,
    numbered_kept_if_used,
    numbers,
    remove_empty,
    write_whole,
)
from jwm_jax.folder_lock import LOCK, FolderLock
from jwm_jax.training.config import ExperimentConfig, drift, to_json

CONTENTS = (
    "checkpoints",
    "model",
    "best",
    "pictures",
    "profile",
    "metrics.jsonl",
    "config.json",
)
"""In the order of deletion: while config.json is there, the folder is known as a run."""


@contextmanager
def new_dir(name: str, root: Path = Path("runs")) -> Iterator[Path]:
    """The next free folder `runs/<name>-0001`, `-0002`, ..., the same one for every process.

    It is removed again if the block leaves nothing in it.

    Raises:
        ResourceError: It cannot be made.
        UsageError: Process 0 could not make it.
    """
    import jax

    if jax.process_count() == 1:
        with numbered_kept_if_used(name, root) as folder:
            yield folder
        return
    from jax.experimental import multihost_utils

    def agreed(number: int) -> int:
        return int(multihost_utils.broadcast_one_to_all(np.int32(number)))

    if jax.process_index():
        number = agreed(0)
        if not number:
            raise UsageError("process 0 could not make a run folder; its message says why.")
        yield numbered(name, number, root)
        return
    number = 0
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(numbered_kept_if_used(name, root))
            number = int(folder.name.rpartition("-")[2])
        finally:
            agreed(number)
        yield folder


def newest_dir(name: str, root: Path = Path("runs")) -> Path:
    """The run folder of that name with the highest number.

    Raises:
        UsageError: When there is none.
    """
    found = numbers(name, root)
    if not found:
        raise UsageError(f"--resume found no run {root / name}-NNNN; give its folder with --out.")
    return numbered(name, found[-1], root)


class RunLock(FolderLock):
    """Keeps a second trainer out of a run folder; the lock of a dead process is taken over."""

    def __init__(self, out: Path) -> None:
        """Take the lock of a folder.

        Raises:
            UsageError: When a living process holds it.
        """
        super().__init__(out, "is being trained by")


class RunFolder:
    """A run folder that this process holds, from before anything is written to the end.

    Attributes:
        path: The folder.
        continued: Whether it held a run of this config, which training then continues.
    """

    def __init__(
        self, out: Path, config: ExperimentConfig, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        """Lock the folder, and make it one of this config.

        Args:
            out: The folder.
            config: Config of the run.
            resume: Insist on continuing an existing run.
            overwrite: Delete an existing run first.

        Raises:
            UsageError: When the folder holds something else, a run of another config, or one that
                a living trainer is at work on.
            ResourceError: When it cannot be made or written to.
        """
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other; choose one.")
        self.path, settings = out, (config, resume, overwrite)
        check_writable(out)
        _examine(out, *settings)  # refuse before anything is written, even the lock
        self._made = make_folder(out)
        try:
            self._lock = RunLock(out)
            try:
                self.continued = _examine(out, *settings)
                if not self.continued:
                    self.clear()
                write_whole(out / "config.json", to_json(config))
            except BaseException:
                self._lock.release()
                raise
        except BaseException:
            remove_empty(self._made)
            raise

    def check(self) -> None:
        """Make sure that no other trainer has taken over.

        Raises:
            UsageError: When one has.
        """
        self._lock.check()

    def clear(self) -> None:
        """Delete the run, but keep holding the folder; what another trainer took over stays.

        Raises:
            ResourceError: When something cannot be deleted.
        """
        if not self._lock.held:
            return
        for path in (self.path / name for name in CONTENTS):
            try:
                if os.path.lexists(path):
                    discard(path)
            except OSError as error:
                raise ResourceError(f"{path}: cannot be deleted ({error.strerror}).") from error

    def release(self) -> None:
        """Let others have the folder; it goes if it was made here and is empty."""
        self._lock.release()
        remove_empty(self._made)


def _examine(out: Path, config: ExperimentConfig, resume: bool, overwrite: bool) -> bool:
    """Whether the folder holds a run to continue; refuse what must not be touched."""
    saved = out / "config.json"
    occupied = any(path.name != LOCK for path in entries(out))
    if occupied and not saved.is_file():
        raise UsageError(
            f"--out {out} is not empty and holds no training run; choose another folder."
        )
    if occupied and not overwrite:
        _check_same(saved, config, out)
    elif resume:
        raise UsageError(f"--resume: {out} holds no training run; leave --resume out to start one.")
    return occupied and not overwrite


def _check_same(saved: Path, config: ExperimentConfig, out: Path) -> None:
    try:
        before = json.loads(saved.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{saved} is not valid JSON ({error}); choose another --out.") from error
    changes = drift(before, config)
    if changes:
        raise UsageError(
            f"--out {out} holds a run with other settings ({'; '.join(changes[:5])}"
            f"{', ...' if len(changes) > 5 else ''}); use those, choose another folder, or start "
            "again with --overwrite."
        )
