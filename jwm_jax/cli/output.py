"""Where a verb writes: the folder of `--out`, or the next numbered one under runs/.

`claim` refuses, before any work is done, a folder with things in it or one that cannot be made;
`made` makes it when there is something to write, so that a failed run leaves nothing behind.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jwm_jax.errors import UsageError
from jwm_jax.files import (
    check_writable,
    entries,
    expand_user,
    folder_kept_if_used,
    numbered_kept_if_used,
)

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

    @contextmanager
    def made(self) -> Iterator[Path]:
        """The folder, made for a block; it goes again if the block leaves nothing in it.

        Raises:
            ResourceError: It cannot be made.
        """
        made = (
            numbered_kept_if_used(self.verb, RUNS)
            if self.path is None
            else folder_kept_if_used(self.path)
        )
        with made as folder:
            yield folder


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
        UsageError: The folder has things in it, or is or lies below a file.
        ResourceError: It cannot be made or written to.
    """
    if out is None:
        check_writable(RUNS)
        return OutputFolder(None, verb)
    path = expand_user(out)
    check_writable(path)
    if entries(path) and not (overwrite or resume):
        way_out = (
            "" if overwrite is None else ", or add --overwrite to replace an earlier run's files"
        )
        raise UsageError(f"--out {path} is not empty; name a new folder{way_out}.")
    return OutputFolder(path, verb)


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
