"""The masks say what a session sees when it generates chunk after chunk."""

import itertools

import numpy as np
import pytest

from jwm_jax.nn.masks import (
    ChunkCausal,
    FromMemory,
    Full,
    Padded,
    TeacherForcing,
    chunk_starts,
    dense,
)
from jwm_jax.nn.rectangles import rectangles

SETTINGS = [
    {"chunk": 1},
    {"chunk": 1, "window": 2, "sink": 1},
    {"chunk": 3, "window": 3, "sink": 2},
    {"chunk": 3, "first_chunk": 1},
    {"chunk": 2, "window": 0, "sink": 1, "first_chunk": 3},
]
FRAMES = 10


def remembered(start: int, window: int | None, sink: int) -> set[int]:
    """A session's memory before the chunk at `start`: the sink, then a ring of the last frames."""
    frames = list(range(start))
    recent = frames if window is None else frames[len(frames) - min(window, len(frames)) :]
    return set(frames[:sink]) | set(recent)


def whole_chunks(setting: dict) -> list[list[int]]:
    """Frames of each chunk that fits the clip."""
    first, chunk = setting.get("first_chunk") or setting["chunk"], setting["chunk"]
    bounds = [0, *range(first, FRAMES + 1, chunk)]
    return [list(range(a, b)) for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_each_chunk_sees_its_session_and_itself(setting):
    window, sink = setting.get("window"), setting.get("sink", 0)
    chunks = whole_chunks(setting)
    frames = chunks[-1][-1] + 1
    noisy = (chunks[1][0], frames)
    causal = ChunkCausal(frames, **setting).matrix
    memory = FromMemory(frames, noisy, **setting).matrix
    forced = TeacherForcing(frames, noisy, **setting).matrix
    for chunk in chunks:
        past = remembered(chunk[0], window, sink)
        for frame in chunk:
            assert set(np.flatnonzero(causal[frame])) == past | set(chunk)
            if chunk is chunks[0]:
                continue
            own = {frames + f - noisy[0] for f in chunk}
            assert set(np.flatnonzero(memory[frame - noisy[0]])) == past | own
    np.testing.assert_array_equal(forced[:frames, :frames], causal)
    np.testing.assert_array_equal(forced[frames:], memory)
    assert not forced[:frames, frames:].any()
    np.testing.assert_array_equal(
        chunk_starts(frames, setting["chunk"], setting.get("first_chunk", 0)),
        [chunk[0] for chunk in chunks for _ in chunk],
    )


def test_clean_chunks_that_nobody_sees_may_be_left_out():
    whole = FromMemory(6, (3, 6), chunk=3).matrix
    np.testing.assert_array_equal(
        FromMemory(3, (3, 6), chunk=3).matrix, np.delete(whole, [3, 4, 5], 1)
    )
    with pytest.raises(ValueError, match="at least that many clean frames"):
        FromMemory(2, (3, 6), chunk=3)
    with pytest.raises(ValueError, match="whole chunks of 3"):
        FromMemory(3, (3, 5), chunk=3)


def test_padding_neither_sees_nor_is_seen():
    matrix = np.asarray(dense(Padded(Full(), 4, 3), 8, 12))[0]
    there = np.arange(12) % 4 < 3
    np.testing.assert_array_equal(matrix, there[:8, None] & there)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_rectangles_are_the_visible_pairs_once_each(setting):
    frames = whole_chunks(setting)[-1][-1] + 1
    matrix = TeacherForcing(frames, (0, frames), **setting).matrix
    count = np.zeros(matrix.shape, int)
    for group in rectangles(matrix):
        assert len({(len(rows), len(columns)) for rows, columns in group}) == 1
        for rows, columns in group:
            count[np.ix_(rows, columns)] += 1
    np.testing.assert_array_equal(count, matrix)


def test_masks_without_arrays_are_values():
    assert hash(TeacherForcing(2, (0, 2))) == hash(TeacherForcing(2, (0, 2)))
    assert Padded(ChunkCausal(2), 4, 3) == Padded(ChunkCausal(2), 4, 3)
    assert Padded(ChunkCausal(2), 4, 3) != Padded(ChunkCausal(3), 4, 3)
