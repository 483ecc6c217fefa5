"""Data order as a pure function of (seed, step), and loading batches ahead of their use."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64

Rows = slice | Int64[np.ndarray, "rows"]
"""Rows of a global batch: a slice of it, or their numbers."""


def example_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Examples of a step's global batch: epochs of shuffled examples, cut into batches.

    Every example comes once per epoch; a batch may span two epochs. Nothing depends on how many
    processes load the batch or where the run was resumed.

    Args:
        seed: Seed of the run.
        step: Step index from 0.
        num_examples: Examples of the data set.
        batch_size: Examples of a global batch.

    Returns:
        Indices [batch_size], int64.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch))).permutation(num_examples)
        here = epochs == epoch
        indices[here] = order[offsets[here]]
    return indices


def step_rng(seed: int, step: int, row: int = 0) -> np.random.Generator:
    """Generator for host-side randomness (crops, noise) of one row of one step's batch."""
    return np.random.default_rng((seed, step, row, 0x5EED))


def stacked(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """Trees of `count` batches each, stacked along a new first axis, as a step takes them."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            yield jax.tree.map(lambda *leaves: _stack(leaves), *group)
            group = []


def _stack(leaves: tuple[Any, ...]) -> np.ndarray:
    return np.asarray(leaves[0])[None] if len(leaves) == 1 else np.stack(leaves)


class Prefetch:
    """Runs an iterator in a thread, a few items ahead; errors surface where the item is taken."""

    def __init__(self, iterator: Iterator[Any], ahead: int = 2) -> None:
        """Start loading up to `ahead` items before they are asked for."""
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(iterator,), daemon=True)
        self._thread.start()

    def _fill(self, iterator: Iterator[Any]) -> None:
        try:
            for item in iterator:
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:  # every failure has to reach the consumer
            self._put(("error", error))

    def _put(self, entry: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        kind, value = self._queue.get()
        if kind == "item":
            return value
        self._queue.put((kind, value))
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Stop loading."""
        self._stop.set()
        self._thread.join(timeout=5)
