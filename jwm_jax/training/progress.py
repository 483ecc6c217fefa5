"""Progress of a long run: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any


def duration(seconds: float) -> str:
    """Seconds as "1h02m", "3m20s" or "12s"."""
    whole = int(max(seconds, 0))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class Progress:
    """Shows the step, the rate, the time left and a few metrics.

    The time left is the shorter of what the steps and the minutes allow. A pause (evaluation,
    checkpoint, compilation of the first step) does not count towards the rate.
    """

    def __init__(
        self, start: int, total: int, max_minutes: float | None, enabled: bool = True
    ) -> None:
        """Show steps `start` to `total`, within `max_minutes`; silent unless `enabled`."""
        self._done, self._total = start, total
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._enabled = enabled
        self._rate = 0.0
        self._last: float | None = None
        self._bar: Any = None
        if enabled and sys.stdout.isatty():
            self._start_bar(start)

    def _start_bar(self, start: int) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = RichProgress(*columns)
        self._task = self._bar.add_task("train", total=self._total, completed=start, text="")
        self._bar.start()

    @property
    def rate(self) -> float:
        """Steps per second, smoothed; 0 before the second step."""
        return self._rate

    def step(self) -> None:
        """Count one step."""
        now = time.monotonic()
        self._done += 1
        if self._last is not None:
            current = 1 / max(now - self._last, 1e-9)
            self._rate = current if not self._rate else 1 / (0.9 / self._rate + 0.1 / current)
        self._last = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, text=self._text())

    def pause(self) -> None:
        """Forget the time of the last step: what happens until the next one is no step."""
        self._last = None

    def _text(self) -> str:
        if not self._rate:
            return "compiling"
        left = (self._total - self._done) / self._rate
        if self._deadline is not None:
            left = min(left, self._deadline - time.monotonic())
        return f"{self._rate:.2f} steps/s, {duration(left)} left"

    def report(self, metrics: dict[str, float]) -> None:
        """Print one line with the metrics."""
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.say(f"step {self._done}/{self._total}  {self._text()}  {numbers}")

    def say(self, message: str) -> None:
        """Print a line without breaking the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(message, highlight=False, markup=False)
        else:
            print(message, flush=True)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.stop()
