"""A progress bar with rate and time left; plain lines where the output is no terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_LINE_EVERY = 10.0  # seconds between plain lines


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with progress on stderr.

    Args:
        items: What is worked through.
        what: What is being done, such as "Rendering".
        total: How many there are; `len(items)` where that exists.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from _with_bar(items, what, total)
    else:
        yield from _with_lines(items, what, total)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of work that reports itself: yields a function of (done, in all).

    Args:
        what: What is being done, such as "Rendering".
    """
    if sys.stderr.isatty():
        with _bar() as progress:
            task, start = progress.add_task(what, total=None, rate=""), time.monotonic()

            def report(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total, rate=_rate(done, start))

            yield report
        return
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done and (now - last >= _LINE_EVERY or done == total):
            last = now
            _print_line(what, done, total, start, now)

    yield report


def _bar():
    """A rich progress bar on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _with_bar(items, what, total):
    start = time.monotonic()
    with _bar() as progress:
        task = progress.add_task(what, total=total, rate="")
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(task, advance=1, rate=_rate(done, start))


def _with_lines(items, what, total):
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_EVERY:
            last = now
            _print_line(what, done, total, start, now)


def _print_line(what, done, total, start, now):
    left = f", {(total - done) * (now - start) / done:.0f} s left" if total else ""
    count = f"{done}/{total}" if total else str(done)
    print(f"{what}: {count}, {_rate(done, start)}{left}", file=sys.stderr, flush=True)


def _rate(done: int, start: float) -> str:
    return f"{done / max(time.monotonic() - start, 1e-6):.1f}/s"
