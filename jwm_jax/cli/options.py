"""Flags that verbs share. A verb's dataclass inherits from one of these."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jwm_jax.errors import UsageError

ClipSpec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
"""A drive named on the command line, FORMAT:WHERE."""


def check_steps(steps: int) -> None:
    """Refuse a number of denoising steps below 1, before any work.

    Raises:
        UsageError: It is below 1.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: expected 1 or more.")


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
