"""Where a run's seconds go: what was spent on steps, and what on everything else (its goodput)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

STEP = "step"
"""What goodput counts as good."""


class Ledger:
    """Seconds by what they were spent on, over all invocations of a run.

    Attributes:
        spent: Name ("start", "compile", "data", "step", "evaluate", "save") -> seconds. "save" is
            what saving kept steps waiting; the writing itself goes on beside them.
    """

    def __init__(self, spent: Mapping[str, float] | None = None) -> None:
        """Go on from what earlier invocations spent."""
        self.spent = dict(spent or {})

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the seconds of a block, whatever ends it."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(what, time.monotonic() - began)

    def add(self, what: str, seconds: float) -> None:
        """Count some seconds."""
        self.spent[what] = self.spent.get(what, 0.0) + seconds

    @property
    def goodput(self) -> float:
        """Share of the seconds that went into steps; 0 before there were any."""
        return self.spent.get(STEP, 0.0) / max(sum(self.spent.values()), 1e-9)

    def rounded(self) -> dict[str, float]:
        """`spent` for a row of metrics."""
        return {name: round(seconds, 2) for name, seconds in self.spent.items()}
