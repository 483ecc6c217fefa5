"""Batches of examples, made ahead of their use by grain.

An example is a pure function of (step, row), so a batch is one of its step: a run that stops goes
on from its step alone, whatever the number of threads and however rows are shared by processes.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

READ_THREADS = 2
"""Examples that are made at once."""


def batches_of(
    example: Callable[[int, int], Any],
    start_step: int,
    rows: Sequence[int],
    threads: int = READ_THREADS,
) -> Iterator[Any]:
    """Batches of the steps start_step, start_step + 1, ... without end.

    Args:
      example: from (step, row of the global batch) to a tree of numpy arrays; reads a record of
        `open_records`, for example. It runs in several threads at once.
      start_step: first step; a run resumes by giving the step at which it stopped.
      rows: rows of the global batch to make.
      threads: examples to make at once, as many batches ahead; 0 makes each when it is asked for.

    Returns:
      Iterator of trees whose arrays have a leading axis of the rows.
    """
    import grain
    import jax

    def element(index: int) -> Any:
        step, place = divmod(index, len(rows))
        return example(step, rows[place])

    def stacked(elements: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *elements)

    indices = grain.MapDataset.range(start_step * len(rows), sys.maxsize)
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * len(rows))
    examples = indices.map(element).to_iter_dataset(ahead)
    return iter(examples.batch(len(rows), batch_fn=stacked))
