"""Where a run's seconds go: what was spent on steps, and what on everything else (its goodput)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

OTHER = "other"
STEP = "step"
"""What goodput counts as good."""


class Ledger:
    """Seconds by what they were spent on, over all invocations of a run.

    What an invocation that was killed spent after its last save is not known.

    Attributes:
        spent: Name ("start", "compile", "data", "step", "evaluate", "save", "export") -> seconds.
            "save" is what saving kept steps waiting; the writing itself goes on beside them.
    """

    def __init__(self) -> None:
        """Begin to count."""
        self.spent: dict[str, float] = {}
        self._earlier, self._began = 0.0, time.monotonic()

    def resume(self, spent: Mapping[str, float]) -> None:
        """Go on from what earlier invocations spent, as `everything` gave it."""
        self.spent, self._earlier = dict(spent), sum(spent.values())

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
    def total(self) -> float:
        """Seconds of all invocations."""
        return self._earlier + time.monotonic() - self._began

    @property
    def goodput(self) -> float:
        """Share of all seconds that went into steps."""
        return self.spent.get(STEP, 0.0) / max(self.total, 1e-9)

    def everything(self) -> dict[str, float]:
        """`spent`, and "other" for the seconds that nothing claimed; together they are `total`."""
        claimed = {name: seconds for name, seconds in self.spent.items() if name != OTHER}
        return {**claimed, OTHER: max(self.total - sum(claimed.values()), 0.0)}
