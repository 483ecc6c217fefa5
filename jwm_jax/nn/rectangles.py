"""A mask over frames as few rectangular attentions in which every query sees every key.

Frames of queries with the same row of the mask are computed together, over exactly the frames of
keys they see; rectangles of the same shape are stacked into one call. No masked logit is ever
computed, and kernels that know no masks can be used. Teacher forcing over K chunks takes K + 1
calls: clean chunk i and noisy chunk i both see i + 1 chunks.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

Frames = tuple[int, ...]
Queries = Float[jax.Array, "b q heads d"]
Keys = Float[jax.Array, "b k heads d"]


def rectangles(
    matrix: Bool[np.ndarray, "query_frames key_frames"],
) -> tuple[tuple[tuple[Frames, Frames], ...], ...]:
    """Groups of (frames of queries, frames of keys), all of the same shape within a group."""
    by_row: dict[bytes, list[int]] = {}
    for frame, row in enumerate(matrix):
        by_row.setdefault(row.tobytes(), []).append(frame)
    groups: dict[tuple[int, int], list[tuple[Frames, Frames]]] = {}
    for frames in by_row.values():
        seen = tuple(np.flatnonzero(matrix[frames[0]]).tolist())
        groups.setdefault((len(frames), len(seen)), []).append((tuple(frames), seen))
    return tuple(tuple(group) for group in groups.values())


def attend_rectangles(
    attend: Callable[[Queries, Keys, Keys], Queries],
    queries: Queries,
    keys: Keys,
    values: Keys,
    matrix: Bool[np.ndarray, "query_frames key_frames"],
) -> Queries:
    """Attention under a mask over frames by calls of an attention without a mask.

    Args:
        attend: attention of every query to every key.
        queries: [batch, query frames x tokens, heads, head_dim].
        keys: [batch, key frames x tokens, heads, head_dim].
        values: as the keys.
        matrix: the mask; every row sees something.

    Returns:
        As the queries.
    """
    if matrix.all():
        return attend(queries, keys, values)
    batch, length, *heads = queries.shape
    queries = queries.reshape(batch, len(matrix), -1, *heads)
    keys, values = (x.reshape(batch, matrix.shape[1], -1, *heads) for x in (keys, values))
    done: dict[int, jax.Array] = {}
    for group in rectangles(matrix):

        def stacked(x: jax.Array, which: int, group=group) -> jax.Array:
            taken = [_take(x, pair[which]).reshape(batch, 1, -1, *heads) for pair in group]
            taken = taken[0] if len(taken) == 1 else jnp.concatenate(taken, axis=1)
            return taken.reshape(-1, *taken.shape[2:])

        out = attend(stacked(queries, 0), stacked(keys, 1), stacked(values, 1))
        out = out.reshape(batch, len(group), len(group[0][0]), -1, *heads)
        for row, (frames, _) in enumerate(group):
            done |= {frame: out[:, row, i] for i, frame in enumerate(frames)}
    return jnp.stack([done[i] for i in range(len(matrix))], axis=1).reshape(batch, length, *heads)


def _take(x: Float[jax.Array, "b f s heads d"], frames: Frames) -> jax.Array:
    """The given frames; slices, because the gradient of a gather scatters."""
    breaks = [i for i, (a, b) in enumerate(pairwise(frames), 1) if b != a + 1]
    runs = [
        x[:, frames[a] : frames[b - 1] + 1]
        for a, b in zip([0, *breaks], [*breaks, len(frames)], strict=True)
    ]
    return runs[0] if len(runs) == 1 else jnp.concatenate(runs, axis=1)
