"""Where a verb writes: the folder of `--out`, or the next numbered one under runs/.

`claim` refuses a folder with things in it before any work is done; `create` makes the folder when
there is something to write, so that a failed run leaves no empty folder behind.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jwm_jax.errors import ResourceError, UsageError

RUNS = Path("runs")
"""Where numbered folders go, below the current folder."""


@dataclass(frozen=True)
class OutputFolder:
    """A place to write that has been found free.

    Attributes:
        path: Of `--out`; None for the next numbered folder.
        verb: Names numbered folders, such as `demo` in runs/demo-0001.
    """

    path: Path | None
    verb: str

    def create(self) -> Path:
        """Make the folder.

        Raises:
            ResourceError: It cannot be made.
        """
        try:
            if self.path is not None:
                self.path.mkdir(parents=True, exist_ok=True)
                return self.path
            return _next_numbered(RUNS, self.verb)
        except OSError as error:
            where = self.path or RUNS
            raise ResourceError(
                f"{where}: cannot make this folder ({error.strerror}); name another with --out."
            ) from None


def claim(
    out: str | os.PathLike | None, verb: str, overwrite: bool | None = False, resume: bool = False
) -> OutputFolder:
    """Check that a verb may write to a folder; nothing is made yet.

    Args:
        out: The folder, or None for runs/VERB-0001 and so on.
        verb: Its name.
        overwrite: Files of the same names may be replaced; others are left alone. None for a verb
            that never replaces anything.
        resume: The folder holds an earlier part of the same run.

    Raises:
        UsageError: The folder has things in it, or is a file.
    """
    if out is None:
        return OutputFolder(None, verb)
    path = Path(out).expanduser()
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; name a folder.")
    occupied = path.is_dir() and next(path.iterdir(), None) is not None
    if occupied and not (overwrite or resume):
        way_out = (
            "" if overwrite is None else ", or add --overwrite to replace an earlier run's files"
        )
        raise UsageError(f"--out {path} is not empty; name a new folder{way_out}.")
    return OutputFolder(path, verb)


def _next_numbered(root: Path, verb: str) -> Path:
    from jwm_jax.training.run_dir import numbered_dir

    root.mkdir(parents=True, exist_ok=True)
    while True:
        path = numbered_dir(verb, root)
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue


def left_out(things: int, most_things: int, overflow: int) -> list[str]:
    """Sentences about what limits of size left out of a scene; none if nothing was.

    Args:
        things: Tracks of the drive.
        most_things: Tracks that the model follows.
        overflow: (splat, tile) pairs that did not fit into the rasterizer's capacity.
    """
    sentences = []
    if things > most_things:
        sentences.append(
            f"Of {things} boxes only the {most_things} nearest move; the others are part of the "
            "static scene."
        )
    if overflow:
        sentences.append(
            f"{overflow} pairs of Gaussian and tile did not fit; the farthest Gaussians are "
            "missing in some pictures."
        )
    return sentences


def say_next(*commands: str | Sequence[str | Path]) -> None:
    """Print the commands a user may want to try after this one.

    Args:
        commands: Lines as they are, or words that are quoted for the shell where they need it.
    """
    print("\nNext:")
    for command in commands:
        line = command if isinstance(command, str) else shlex.join(str(word) for word in command)
        print(f"  {line}")
