"""`jwm checkpoint list | verify | diff`: the checkpoints of a run, which may be alive."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro

from jwm_jax.cli.options import Common
from jwm_jax.errors import DataError, UsageError

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True, kw_only=True)
class ListOptions(Common):
    """Print the steps a run has saved: number, time, size and parts. Reads no weights.

    Example: jwm checkpoint list runs/codec_tiny
    """

    run: RunFolder
    """Folder that `jwm train` wrote to."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Common):
    """Hash every file of a run's checkpoints against its manifest; leaves with 3 if one differs.

    A newest step without a manifest is being saved, or was cut off: it is named and does not count.

    Example: jwm checkpoint verify runs/codec_tiny
    """

    run: RunFolder
    """Folder that `jwm train` wrote to."""
    step: int | None = None
    """Only this one."""


@dataclass(frozen=True, kw_only=True)
class DiffOptions(Common):
    """Compare two checkpoints array by array; leaves with 1 if anything but the data differs.

    Example: jwm checkpoint diff runs/a runs/b/checkpoints/00000200
    """

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """A run, of which the newest finished step is taken, or the folder of a step."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Another."""
    most: int = 40
    """Differences to print."""


def list_steps(options: ListOptions) -> None:
    """Run `jwm checkpoint list`.

    Raises:
        UsageError: There are no checkpoints there.
    """
    from jwm_jax.checkpoint.inspection import checkpoints_of, set_aside, steps_of

    root = checkpoints_of(options.run)
    for step in steps_of(root):
        if step.saved is None:
            print(f"{step.number:>8}  not finished")
            continue
        when = datetime.fromtimestamp(step.saved).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{step.number:>8}  {when}  {step.num_bytes / 1e6:>9.1f} MB  {' '.join(step.items)}")
    for folder in set_aside(root):
        print(f"{folder.name}: found damaged when the run went on")


def verify(options: VerifyOptions) -> None:
    """Run `jwm checkpoint verify`.

    Raises:
        UsageError: There are no checkpoints there, or not this step.
        DataError: One is not as it was saved.
    """
    from jwm_jax.checkpoint.inspection import checkpoints_of, steps_of
    from jwm_jax.checkpoint.manager import verify_step

    root = checkpoints_of(options.run)
    steps = [s for s in steps_of(root) if options.step is None or s.number == options.step]
    if not steps:
        known = ", ".join(str(step.number) for step in steps_of(root))
        raise UsageError(f"{root} has no step {options.step}; it has {known or 'none'}.")
    bad = checked = 0
    for step in steps:
        if step.saved is None and step.number == steps_of(root)[-1].number:
            print(f"{step.number:>8}  not finished: being saved, or cut off; it does not count")
            continue
        try:
            fault = verify_step(step.folder)
        except FileNotFoundError:
            if not step.folder.exists():  # the run went on and let it go
                continue
            raise
        checked, bad = checked + 1, bad + (fault is not None)
        print(f"{step.number:>8}  {fault or 'as it was saved'}", flush=True)
    if bad:
        raise DataError(
            f"{bad} of {checked} checkpoints in {root} cannot be relied on; the same "
            "`jwm train` command goes on from the newest whole one."
        )


def diff(options: DiffOptions) -> int:
    """Run `jwm checkpoint diff`.

    Returns:
        0 if every array is bitwise the same, else 1.

    Raises:
        UsageError: One is not there.
        DataError: One cannot be read.
    """
    from jwm_jax.checkpoint.inspection import differences, step_folder

    first, second = step_folder(options.first), step_folder(options.second)
    count = 0
    for difference in differences(first, second):
        count += 1
        if count <= options.most:
            print(f"{difference.name}: {difference.what}")
    if count > options.most:
        print(f"... and {count - options.most} more (--most {count} prints them)")
    alike = f"{first} and {second}: bitwise the same arrays"
    print(f"{count} arrays differ between {first} and {second}" if count else alike)
    return int(count > 0)
