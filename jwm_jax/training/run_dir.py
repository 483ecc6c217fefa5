"""The folder of a run: made, recognised, locked, and never overwritten silently.

<out>/config.json  metrics.jsonl  lock.json  checkpoints/<step>/  model/
"""

import json
import os
import platform
import shutil
import time
from pathlib import Path

from jwm_jax.errors import UsageError
from jwm_jax.training.config import ExperimentConfig, drift, to_json

CONTENTS = ("config.json", "metrics.jsonl", "lock.json", "checkpoints", "model")


def numbered_dir(name: str, root: Path = Path("runs")) -> Path:
    """The next free folder `runs/<name>-0001`, `-0002`, ...; not made yet."""
    taken = [path.name.removeprefix(f"{name}-") for path in root.glob(f"{name}-*")]
    number = max((int(text) for text in taken if text.isdigit()), default=0) + 1
    return root / f"{name}-{number:04d}"


def newest_dir(name: str, root: Path = Path("runs")) -> Path:
    """The run folder of that name with the highest number.

    Raises:
        UsageError: When there is none.
    """
    number = int(numbered_dir(name, root).name.rpartition("-")[2]) - 1
    if number < 1:
        raise UsageError(f"--resume found no run {root / name}-NNNN; give its folder with --out.")
    return root / f"{name}-{number:04d}"


def prepare(out: Path, config: ExperimentConfig, *, resume: bool, overwrite: bool) -> bool:
    """Make the run folder, or check that it is a run of this config.

    Args:
        out: The folder.
        config: Config of the run.
        resume: Insist on continuing an existing run.
        overwrite: Delete an existing run first.

    Returns:
        True when the folder held a run of this config, which training then continues.

    Raises:
        UsageError: When the folder holds something else, or a run of another config.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; choose one.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    saved = out / "config.json"
    occupied = out.is_dir() and any(out.iterdir())
    if occupied and not saved.is_file():
        raise UsageError(
            f"--out {out} is not empty and holds no training run; choose another folder."
        )
    if occupied and overwrite:
        clear(out)
        occupied = False
    if occupied:
        _check_same(saved, config, out)
    elif resume:
        raise UsageError(f"--resume: {out} holds no training run; leave --resume out to start one.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / "config.json.tmp"
        temporary.write_text(to_json(config), encoding="utf-8")
        temporary.replace(saved)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error}).") from error
    return occupied


def clear(out: Path) -> None:
    """Delete a run, and its folder if nothing else is in it."""
    for name in CONTENTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


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


class RunLock:
    """Keeps a second trainer out of a run folder; the lock of a dead process is taken over."""

    def __init__(self, out: Path) -> None:
        """Take the lock.

        Raises:
            UsageError: When a living process on this machine, or any on another, holds it.
        """
        self._path = out / "lock.json"
        entry = {"pid": os.getpid(), "host": platform.node(), "started": time.time()}
        for _ in range(2):
            try:
                with self._path.open("x", encoding="utf-8") as file:
                    json.dump(entry, file)
                return
            except FileExistsError:
                self._refuse_if_alive(out)
                self._path.unlink(missing_ok=True)
        raise UsageError(f"{self._path} is being taken by another process; try again.")

    def _refuse_if_alive(self, out: Path) -> None:
        try:
            holder = json.loads(self._path.read_text(encoding="utf-8"))
            pid, host = int(holder["pid"]), str(holder["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if host == platform.node():
            if pid == os.getpid():
                return
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            except PermissionError:
                pass
        elif time.time() - self._path.stat().st_mtime > 600:
            return
        raise UsageError(
            f"{out} is being trained by process {pid} on {host}; stop it first, or delete "
            f"{self._path} when that process is gone."
        )

    def touch(self) -> None:
        """Show other machines that the holder lives."""
        self._path.touch()

    def release(self) -> None:
        """Give the lock back."""
        self._path.unlink(missing_ok=True)
