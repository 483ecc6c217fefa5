"""Which latent frames attend to which, as predicates and as the calls that carry them out.

Time is cut into latent frames, and these into chunks that are generated together: the first
``given`` frames are a chunk of their own (0: there is none), ``chunk`` frames each of the others. A
chunk sees itself, the ``window`` frames before it and the first ``sink`` frames. Teacher forcing
runs two copies of a clip through the network at once, which lie on an axis of their own: the clean
frames 0..N-1 and the noisy frames given..given+N-1:

    clean chunk i  sees  clean chunks j <= i        (in window or sink)
    noisy chunk i  sees  clean chunks j <  i        (in window or sink) and itself; no other noisy

so that noisy chunk i sees exactly what a session sees when it generates chunk i.
`teacher_forcing_mask` is that predicate as a dense matrix, for tests; `TeacherForced` computes it
as one small rectangular attention a chunk, which clean i and noisy i share because both see the
same past. `FromMemory` is its noisy half over keys and values that are already there.

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

from jwm_jax.nn.attention import attention
from jwm_jax.nn.rotary import rotate, rotation_angles

Heads = Float[jax.Array, "n copies f s heads d"]
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

    def past(self, start: int) -> list[tuple[slice, jax.Array]]:
        """What a chunk that begins at frame ``start`` sees of the past: runs of frames with their
        positions, where the chunk itself is at ``start``."""
        oldest = start - self.window if start - self.window > self.sink else 0
        runs = [(slice(oldest, start), jnp.arange(oldest, start))] if start else []
        if oldest and self.sink:
            first = oldest - self.sink if self.rebase else 0
            runs.insert(0, (slice(0, self.sink), jnp.arange(first, first + self.sink)))
        return runs


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
    """Every frame sees every frame."""

    returns_keys: bool = False
    offsets: tuple[int, ...] = (0,)

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Any = None
    ) -> Heads:
        """Attention of [n, 1, frames, tokens, heads, d] over all frames and tokens of a clip."""
        angles = rotation_angles(jnp.arange(queries.shape[2]), *grid, queries.shape[-1])
        out = attention(_flat(rotate(queries, angles)), _flat(rotate(keys, angles)), _flat(values))
        return out.reshape(queries.shape)


@dataclass(frozen=True)
class TeacherForced:
    """The teacher-forcing predicate over two copies of a clip, clean and noisy.

    Attributes:
        sight: chunks, window and sink.
    """

    sight: Sight
    returns_keys: bool = False

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first frame of each copy."""
        return 0, self.sight.given

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Any = None
    ) -> Heads:
        """Attention of [n, 2, N, tokens, heads, d] under the predicate.

        Clean frames of a last chunk that is not whole attend to nothing and nothing to them.
        """
        sight, frames = self.sight, queries.shape[2]
        index = jnp.concatenate([jnp.arange(frames) + offset for offset in self.offsets])
        angles = rotation_angles(index, *grid, queries.shape[-1])
        angles = angles.reshape(2, frames, *angles.shape[1:])
        queries, turned = rotate(queries, angles), rotate(keys, angles)
        outputs: list[list[jax.Array]] = [[], []]
        for start, stop in sight.chunks(frames + sight.given):
            own = []
            if stop <= frames:
                own.append((0, slice(start, stop)))
            if start >= sight.given:
                own.append((1, slice(start - sight.given, stop - sight.given)))
            past_keys = _past(turned[:, 0], keys[:, 0], start, sight, grid)
            past_values = [values[:, 0, run] for run, _ in sight.past(start)]
            out = attention(
                _flat(_gather(queries, own)),
                _flat(_after(past_keys, _gather(turned, own))),
                _flat(_after(past_values, _gather(values, own))),
            )
            out = out.reshape(-1, len(own), stop - start, *queries.shape[3:])
            for place, (copy, _) in enumerate(own):
                outputs[copy].append(out[:, place])
        rest = frames - sum(part.shape[1] for part in outputs[0])
        if rest:
            outputs[0].append(jnp.zeros_like(queries[:, 0, :rest]))
        return jnp.stack([jnp.concatenate(parts, axis=1) for parts in outputs], axis=1)


@dataclass(frozen=True)
class FromMemory:
    """Noisy chunks side by side, each over the memory's frames before it and itself.

    The memory holds frame f in slot f: it has a slot for every frame.

    Attributes:
        sight: chunks, window and sink.
    """

    sight: Sight
    returns_keys: bool = False
    offsets: tuple[int, ...] = (0,)

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Past
    ) -> Heads:
        """Attention of the frames from ``given`` on, [n, 1, N, tokens, heads, d]."""
        sight, frames = self.sight, queries.shape[2]
        memory_keys, memory_values, _ = past
        index = jnp.arange(frames) + sight.given
        angles = rotation_angles(index, *grid, queries.shape[-1])
        queries, keys = rotate(queries, angles), rotate(keys, angles)
        index = jnp.arange(memory_keys.shape[1])
        turned = rotate(memory_keys, rotation_angles(index, *grid, queries.shape[-1]))
        outputs = []
        for start, stop in sight.chunks(frames + sight.given):
            if start < sight.given:
                continue
            own = [(0, slice(start - sight.given, stop - sight.given))]
            past_keys = _past(turned, memory_keys, start, sight, grid)
            past_values = [memory_values[:, run] for run, _ in sight.past(start)]
            out = attention(
                _flat(_gather(queries, own)),
                _flat(_after(past_keys, _gather(keys, own))),
                _flat(_after(past_values, _gather(values, own))),
            )
            outputs.append(out.reshape(-1, 1, stop - start, *queries.shape[3:]))
        return jnp.concatenate(outputs, axis=2)


@dataclass(frozen=True)
class Cached:
    """A chunk over a session's ring and itself; its own keys and values are returned.

    Slots 0..sink-1 of the ring keep the first frames, frame f >= sink is in slot
    sink + (f - sink) mod (slots - sink). Written slots are the first ones, so a ring of no more
    than sink + window slots needs no mask but the number of keys; a longer one hides what the
    window has left behind.

    Attributes:
        window: past frames seen besides the sink.
        sink: first frames always seen.
        rebase: whether positions count within what is visible.
    """

    window: int
    sink: int
    rebase: bool = True
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
        slots, frames, tokens = past_keys.shape[1], queries.shape[2], queries.shape[3]
        slot = jnp.arange(slots)
        position, where, visible = self.placed(slot, slots, written)
        own = rotation_angles(position + jnp.arange(frames), *grid, queries.shape[-1])
        before = rotation_angles(where, *grid, queries.shape[-1])
        keys = jnp.concatenate([rotate(keys[:, 0], own), rotate(past_keys, before)], axis=1)
        values = jnp.concatenate([values[:, 0], past_values], axis=1)
        visible = jnp.concatenate([jnp.ones(frames, bool), visible])
        mask = jnp.repeat(visible, tokens)[None]
        out = attention(_flat(rotate(queries, own)), _flat(keys), _flat(values), mask)
        return out.reshape(queries.shape)

    def placed(
        self, slot: Int[jax.Array, " slots"], slots: int, written: Int[jax.Array, ""]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Position of the chunk to come, and position and visibility of each slot's frame."""
        rounds = jnp.maximum(written - 1 - slot, 0) // (slots - self.sink)
        frame = jnp.where(slot < self.sink, slot, slot + rounds * (slots - self.sink))
        near = (frame < self.sink) | (written - frame <= self.window)
        visible = (frame < written) & near
        if not self.rebase:
            return written, frame, visible
        position = jnp.minimum(written, self.sink + self.window)
        return position, jnp.where(slot < self.sink, slot, position - (written - frame)), visible


Pattern = Bidirectional | TeacherForced | FromMemory | Cached


def _past(
    turned: Stored, keys: Stored, start: int, sight: Sight, grid: tuple[int, int]
) -> list[jax.Array]:
    """Rotated keys of what a chunk sees of the past; ``turned`` are those at frame indices."""
    found = []
    for run, position in sight.past(start):
        moved = sight.rebase and run.stop < start
        angles = rotation_angles(position, *grid, keys.shape[-1]) if moved else None
        found.append(rotate(keys[:, run], angles) if moved else turned[:, run])
    return found


def _gather(heads: Heads, own: list[tuple[int, slice]]) -> jax.Array:
    """[n, copies, frames, ...] of one chunk from some of the copies."""
    return jnp.stack([heads[:, copy, frames] for copy, frames in own], axis=1)


def _after(past: list[jax.Array], own: jax.Array) -> jax.Array:
    """The past, the same for every copy, before each copy's own frames."""
    seen = [
        jnp.broadcast_to(run[:, None], (run.shape[0], own.shape[1], *run.shape[1:])) for run in past
    ]
    return jnp.concatenate([*seen, own], axis=2)


def _flat(heads: jax.Array) -> jax.Array:
    """[n, (copies,) frames, tokens, heads, d] as a batch of sequences."""
    if heads.ndim == 5:
        return rearrange(heads, "n f s heads d -> n (f s) heads d")
    return rearrange(heads, "n copies f s heads d -> (n copies) (f s) heads d")
