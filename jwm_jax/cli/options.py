"""Flags that verbs share. A verb's dataclass inherits from one of these."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jwm_jax.errors import UsageError

ClipSpec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
"""A drive named on the command line, FORMAT:WHERE."""


def check_numbers(least: int, **flags: int | float | None) -> None:
    """Refuse flags below a number, before any work.

    Args:
        least: The smallest number that is accepted.
        **flags: Values by name of the flag; None for one that was not given.

    Raises:
        UsageError: One is smaller, or no number at all.
    """
    for name, value in flags.items():
        if value is not None and not value >= least:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value}: expected {least} or more.")


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of every verb."""

    verbose: bool = False
    """Print the traceback of a failure."""


@dataclass(frozen=True, kw_only=True)
class Writing(Common):
    """Flags of every verb that writes."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder to write to; without it, the next numbered folder under runs/."""
    overwrite: bool = False
    """Replace files of an earlier run in --out."""
