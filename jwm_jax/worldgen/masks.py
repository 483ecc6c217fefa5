"""Which latent frames attend to which, as predicates and as the calls that carry them out.

Time is cut into latent frames, and these into chunks that are generated together: the first
``given`` frames are a chunk of their own (0: there is none), ``chunk`` frames each of the others. A
chunk sees itself, the ``window`` frames before it and the first ``sink`` frames. Teacher forcing
runs two copies of a clip through the network at once, which lie on an axis of their own: the clean
frames 0..N-1 and the noisy frames given..given+N-1:

    clean chunk i  sees  clean chunks j <= i        (in window or sink)
    noisy chunk i  sees  clean chunks j <  i        (in window or sink) and itself; no other noisy

so that noisy chunk i sees exactly what a session sees when it generates chunk i.
`teacher_forcing_mask` is that predicate as a dense matrix, for tests. `FromMemory` is the noisy
half over keys and values that are already there. Each pattern rotates queries and keys, says by a
matrix over frames who sees whom, and leaves the attention to `distributed.context`, which splits
tokens over a mesh and computes no masked logit.

Positions of the rotary embedding are frame indices or, with ``rebase``, count from the start of
what is visible: the sink sits right before the window even when the frames between them are
forgotten. All patterns are static and hashable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int

from jwm_jax.distributed.context import framed_attention
from jwm_jax.nn.masks import FrameBlocks, FrameLengths, Full, Mask, Padded
from jwm_jax.nn.rotary import rotate, rotation_angles

Heads = Float[jax.Array, "n copies f s heads d"]
Framed = Float[jax.Array, "n f s heads d"]
Stored = Float[jax.Array, "n slots t heads k"]
Past = tuple[Stored, Stored, Int[jax.Array, ""]]
"""Unrotated keys and values of one layer, and how many frames have been written."""


@dataclass(frozen=True)
class Sight:
    """How far chunks see, and how their positions are counted.

    Attributes:
        chunk: latent frames of a chunk.
        given: frames at the start that are a chunk of their own.
        window: past frames seen besides the sink.
        sink: first frames always seen.
        rebase: whether positions count within what is visible.
    """

    chunk: int = 1
    given: int = 1
    window: int = 1
    sink: int = 0
    rebase: bool = True

    def bounds(self, frame: int) -> tuple[int, int]:
        """First and one past the last frame of the chunk that holds ``frame``."""
        if frame < self.given:
            return 0, self.given
        start = frame - (frame - self.given) % self.chunk
        return start, start + self.chunk

    def chunks(self, frames: int) -> Iterator[tuple[int, int]]:
        """Bounds of the chunks that begin before frame ``frames``."""
        start = 0
        while start < frames:
            stop = self.bounds(start)[1]
            yield start, stop
            start = stop

    def sees(self, frame: int, past: int) -> bool:
        """Whether latent frame ``frame`` may see the clean latent frame ``past`` of another chunk
        before its own."""
        start = self.bounds(frame)[0]
        return past < start and (past < self.sink or start - past <= self.window)

    def moved_sink(self, start: int) -> int:
        """Position of the sink's first frame as a chunk that begins at frame ``start``, and is at
        position ``start``, sees it; 0 where the sink is at its own place."""
        oldest = start - self.window
        return oldest - self.sink if self.rebase and self.sink and oldest > self.sink else 0

    def moved_sinks(self, frames: int) -> tuple[int, ...]:
        """Positions other than its own at which chunks before frame ``frames`` see the sink."""
        found = {self.moved_sink(start) for start, _ in self.chunks(frames)}
        return tuple(sorted(found - {0}))


def teacher_forcing_mask(
    frames: int, tokens: int, sight: Sight
) -> Bool[np.ndarray, "queries keys"]:
    """The dense predicate over [clean 0..N-1 | noisy given..given+N-1].

    Args:
        frames: N.
        tokens: tokens of a latent frame.
        sight: chunks, window and sink.

    Returns:
        [2 N tokens, 2 N tokens], True where the query (row) may see the key (column).
    """
    noisy = np.repeat([False, True], frames)
    index = [*range(frames), *range(sight.given, sight.given + frames)]
    mask = np.zeros((2 * frames, 2 * frames), bool)
    for q in range(2 * frames):
        for k in range(2 * frames):
            past = not noisy[k] and sight.sees(index[q], index[k])
            own = noisy[q] == noisy[k] and sight.bounds(index[q]) == sight.bounds(index[k])
            mask[q, k] = past or own
    return np.repeat(np.repeat(mask, tokens, 0), tokens, 1)


@dataclass(frozen=True)
class Bidirectional:
    """Every frame sees every frame.

    Attributes:
        attention: implementation, see `nn.attention`.
    """

    attention: str = "auto"
    returns_keys: bool = False
    offsets: tuple[int, ...] = (0,)

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Any = None
    ) -> Heads:
        """Attention of [n, 1, frames, tokens, heads, d] over all frames and tokens of a clip."""
        angles = token_angles(jnp.arange(queries.shape[2]), grid, queries)
        turned = (rotate(a[:, 0], angles) for a in (queries, keys))
        return _attend(*turned, values[:, 0], Full(), grid, self.attention)[:, None]


@dataclass(frozen=True)
class TeacherForced:
    """The teacher-forcing predicate over two copies of a clip, clean and noisy.

    Attributes:
        sight: chunks, window and sink.
        attention: implementation, see `nn.attention`.
    """

    sight: Sight
    attention: str = "auto"
    returns_keys: bool = False

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first frame of each copy."""
        return 0, self.sight.given

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Any = None
    ) -> Heads:
        """Attention of [n, 2, N, tokens, heads, d] under the predicate.

        Clean frames of a last chunk that is not whole see themselves alone, and nothing sees them.
        """
        sight, frames = self.sight, queries.shape[2]
        index = jnp.concatenate([jnp.arange(frames) + offset for offset in self.offsets])
        angles = token_angles(index, grid, queries)
        queries, turned, side_by_side = (
            rearrange(a, "n copies f ... -> n (copies f) ...") for a in (queries, keys, values)
        )
        sinks = _moved_sinks(keys[:, 0], values[:, 0], sight, frames + sight.given, grid)
        out = _attend(
            rotate(queries, angles),
            jnp.concatenate([rotate(turned, angles), *sinks[0]], axis=1),
            jnp.concatenate([side_by_side, *sinks[1]], axis=1),
            _teacher_forcing_rows(frames, sight),
            grid,
            self.attention,
        )
        return rearrange(out, "n (copies f) ... -> n copies f ...", copies=2)


@dataclass(frozen=True)
class FromMemory:
    """Noisy chunks side by side, each over the memory's frames before it and itself.

    The memory holds frame f in slot f: it has a slot for every frame.

    Attributes:
        sight: chunks, window and sink.
        attention: implementation, see `nn.attention`.
    """

    sight: Sight
    attention: str = "auto"
    returns_keys: bool = False
    offsets: tuple[int, ...] = (0,)

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Past
    ) -> Heads:
        """Attention of the frames from ``given`` on, [n, 1, N, tokens, heads, d]."""
        sight, frames = self.sight, queries.shape[2]
        stored_keys, stored_values, _ = past
        slots = stored_keys.shape[1]
        own = token_angles(jnp.arange(frames) + sight.given, grid, queries)
        before = token_angles(jnp.arange(slots), grid, queries)
        sinks = _moved_sinks(stored_keys, stored_values, sight, frames + sight.given, grid)
        turned = [rotate(stored_keys, before), rotate(keys[:, 0], own), *sinks[0]]
        out = _attend(
            rotate(queries[:, 0], own),
            jnp.concatenate(turned, axis=1),
            jnp.concatenate([stored_values, values[:, 0], *sinks[1]], axis=1),
            _memory_rows(slots, frames, sight),
            grid,
            self.attention,
        )
        return out[:, None]


@dataclass(frozen=True)
class Cached:
    """A chunk over a session's ring and itself; its own keys and values are returned.

    Slots 0..sink-1 of the ring keep the first frames, frame f >= sink is in slot
    sink + (f - sink) mod (slots - sink). Written slots are the first ones, so a ring of no more
    than sink + window slots needs no mask but the number of its frames; of a longer one the frames
    that the window still shows are taken first.

    Attributes:
        window: past frames seen besides the sink.
        sink: first frames always seen.
        rebase: whether positions count within what is visible.
        attention: implementation, see `nn.attention`.
    """

    window: int
    sink: int
    rebase: bool = True
    attention: str = "auto"
    returns_keys: bool = True
    offsets: tuple[int, ...] = (0,)

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Past
    ) -> Heads:
        """Attention of [n, 1, chunk, tokens, heads, d] over ``past`` and the chunk itself.

        Args:
            queries: of the chunk, not yet rotated.
            keys: as the queries.
            values: as the queries.
            grid: rows and columns of tokens.
            past: of this layer, from `cache.Cache`.
        """
        past_keys, past_values, written = past
        frames, shown = queries.shape[2], self.sink + self.window
        frame = self.frames(past_keys.shape[1], written)
        if past_keys.shape[1] > shown:
            frame = jnp.arange(shown)
            newest = jnp.maximum(written - self.window, self.sink) + frame - self.sink
            frame = jnp.where(frame < self.sink, frame, newest)
            turn = self.sink + (frame - self.sink) % (past_keys.shape[1] - self.sink)
            slot = jnp.where(frame < self.sink, frame, turn)
            past_keys, past_values = (jnp.take(a, slot, axis=1) for a in (past_keys, past_values))
        position = jnp.minimum(written, shown) if self.rebase else written
        where = frame - (written - position)
        where = jnp.where(frame < self.sink, frame, where) if self.rebase else frame
        own = token_angles(position + jnp.arange(frames), grid, queries)
        before = token_angles(where, grid, queries)
        keys = jnp.concatenate([rotate(keys[:, 0], own), rotate(past_keys, before)], axis=1)
        values = jnp.concatenate([values[:, 0], past_values], axis=1)
        visible = frames + jnp.minimum(written, past_keys.shape[1])
        mask = FrameLengths(keys.shape[1], visible)
        out = _attend(rotate(queries[:, 0], own), keys, values, mask, grid, self.attention)
        return out[:, None]

    def frames(self, slots: int, written: Int[jax.Array, ""]) -> Int[jax.Array, " slots"]:
        """Which frame each slot of the ring holds once ``written`` frames have been written."""
        slot = jnp.arange(slots)
        rounds = jnp.maximum(written - 1 - slot, 0) // (slots - self.sink)
        return jnp.where(slot < self.sink, slot, slot + rounds * (slots - self.sink))


def token_angles(
    frames: Int[jax.Array, " f"], grid: tuple[int, int], like: Float[jax.Array, "*b s heads d"]
) -> Float[jax.Array, "f s pairs"]:
    """`rotation_angles` of the tokens of frames; tokens beyond the grid are padding and stay.

    Args:
        frames: positions.
        grid: rows and columns of tokens.
        like: queries or keys, for the number of tokens and channels.
    """
    angles = rotation_angles(frames, *grid, like.shape[-1])
    return jnp.pad(angles, ((0, 0), (0, like.shape[-3] - angles.shape[1]), (0, 0)))


def _attend(
    queries: Framed, keys: Stored, values: Stored, mask: Mask, grid: tuple[int, int], by: str
) -> Framed:
    """`framed_attention` that leaves out tokens beyond the grid."""
    stored, there = queries.shape[2], grid[0] * grid[1]
    mask = mask if stored == there else Padded(mask, stored, there)
    return framed_attention(queries, keys, values, mask, implementation=by)


Pattern = Bidirectional | TeacherForced | FromMemory | Cached


def _moved_sinks(
    keys: Stored, values: Stored, sight: Sight, frames: int, grid: tuple[int, int]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Keys and values of the sink at each position other than its own, to go behind all others."""
    moved = [
        token_angles(first + jnp.arange(sight.sink), grid, keys)
        for first in sight.moved_sinks(frames)
    ]
    sink = slice(0, sight.sink)
    return [rotate(keys[:, sink], angles) for angles in moved], [values[:, sink]] * len(moved)


def _rows_of_past(start: int, clean: int, frames: int, sight: Sight) -> tuple[list, list]:
    """What a chunk that begins at ``start`` sees of clean frames, and of the moved sinks."""
    sinks, mine = sight.moved_sinks(frames), sight.moved_sink(start)
    past = [
        sight.sees(start, frame) and not (mine and frame < sight.sink) for frame in range(clean)
    ]
    return past, [first == mine for first in sinks for _ in range(sight.sink)]


def _memory_rows(slots: int, frames: int, sight: Sight) -> FrameBlocks:
    """Rows of the noisy frames over [memory | noisy | moved sinks]."""
    rows = []
    for frame in range(sight.given, sight.given + frames):
        start, stop = sight.bounds(frame)
        past, sinks = _rows_of_past(start, slots, frames + sight.given, sight)
        own = [start <= f < stop for f in range(sight.given, sight.given + frames)]
        rows.append((*past, *own, *sinks))
    return FrameBlocks(tuple(rows))


def _teacher_forcing_rows(frames: int, sight: Sight) -> FrameBlocks:
    """Rows of [clean | noisy] over [clean | noisy | moved sinks]."""
    rows = []
    for frame in range(frames):
        start, stop = sight.bounds(frame)
        past, sinks = _rows_of_past(start, frames, frames + sight.given, sight)
        own = [past[f] or start <= f < stop for f in range(frames)]
        rows.append((*own, *[False] * frames, *sinks))
    return FrameBlocks((*rows, *_memory_rows(frames, frames, sight).rows))
