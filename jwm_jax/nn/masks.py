"""Which queries may see which keys: a small language, shared by every implementation of attention.

A sequence is a number of frames of equally many tokens, frame after frame. Whether a query sees a
key depends on their frames alone, so a mask is a small boolean matrix [query frames, key frames];
what differs within a frame is only how many of its tokens are there (`Padded`) and how many leading
keys are (`KeyLengths`, `FrameLengths`, which carry arrays).

Causal masks speak of latent frames that come in chunks. With a chunk that starts at frame s, each
of its frames sees the whole chunk and of the past

    p < s   with   p < sink   or   s - p <= window,

that is, what a session holds in memory when it generates the chunk. Masks without arrays are frozen
and hashable, so they may be static fields of a module.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

Matrix = Bool[np.ndarray, "query_frames key_frames"]


def sees_past(start: int, past: int, window: int | None, sink: int) -> bool:
    """Whether a chunk that starts at latent frame `start` sees the clean latent frame `past`.

    Args:
        start: first frame of the query's chunk.
        past: frame of the key.
        window: past frames seen besides the sink; None: all of them.
        sink: first frames, always seen.
    """
    return past < start and (past < sink or window is None or start - past <= window)


def chunk_starts(frames: int, chunk: int, first_chunk: int) -> Int[np.ndarray, "frames"]:
    """First latent frame of each latent frame's chunk.

    Args:
        frames: latent frames of a clip.
        chunk: latent frames of a chunk.
        first_chunk: latent frames of chunk 0, which may differ; 0: `chunk`.
    """
    frame = np.arange(frames)
    first = first_chunk or chunk
    return np.where(frame < first, 0, first + (frame - first) // chunk * chunk)


class FrameMask:
    """A mask that is a static matrix over frames."""

    @cached_property
    def matrix(self) -> Matrix:
        """True where the frame of a query (row) may see the frame of a key (column)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Full(FrameMask):
    """Every query sees every key."""

    @cached_property
    def matrix(self) -> Matrix:
        """One frame that sees itself, for sequences of any length."""
        return np.ones((1, 1), bool)


@dataclass(frozen=True)
class FrameBlocks(FrameMask):
    """Any matrix over frames, for instance one with extra copies of the sink among the keys.

    Attributes:
        rows: for each frame of queries, whether it sees each frame of keys.
    """

    rows: tuple[tuple[bool, ...], ...]

    @cached_property
    def matrix(self) -> Matrix:
        """The rows as an array."""
        return np.array(self.rows, bool)


@dataclass(frozen=True)
class ChunkCausal(FrameMask):
    """One copy of a clip: each chunk sees itself and its past.

    Attributes:
        frames: latent frames of the clip.
        chunk: latent frames of a chunk.
        window: past latent frames seen besides the sink; None: all.
        sink: first latent frames, always seen.
        first_chunk: latent frames of chunk 0 where it differs; 0: `chunk`.
    """

    frames: int
    chunk: int = 1
    window: int | None = None
    sink: int = 0
    first_chunk: int = 0

    @cached_property
    def matrix(self) -> Matrix:
        """[frames, frames]."""
        starts = chunk_starts(self.frames, self.chunk, self.first_chunk)
        past = [
            [sees_past(start, key, self.window, self.sink) for key in range(self.frames)]
            for start in starts.tolist()
        ]
        return np.array(past, bool) | (starts[:, None] == starts)


@dataclass(frozen=True)
class FromMemory(FrameMask):
    """Noisy chunks side by side, over keys [clean 0..clean-1 | noisy frames].

    Each sees the clean frames of its past and its own noisy frames, and no other noisy chunk: what
    a session sees when it generates that chunk.

    Attributes:
        clean: latent frames of the memory, the first ones of the clip.
        noisy: first and last + 1 latent frame of the queries; whole chunks.
        chunk: latent frames of a chunk.
        window: past latent frames seen besides the sink; None: all.
        sink: first latent frames, always seen.
        first_chunk: latent frames of chunk 0 where it differs; 0: `chunk`.
    """

    clean: int
    noisy: tuple[int, int]
    chunk: int = 1
    window: int | None = None
    sink: int = 0
    first_chunk: int = 0

    def __post_init__(self):
        first, end = self.noisy
        starts = chunk_starts(end + 1, self.chunk, self.first_chunk)
        if not 0 <= first < end or starts[first] != first or starts[end] != end:
            raise ValueError(
                f"noisy frames {first}..{end - 1} must be whole chunks of {self.chunk} latent "
                f"frames (the first one of {self.first_chunk or self.chunk})."
            )
        if self.clean < starts[end - 1]:
            raise ValueError(
                f"the last noisy chunk starts at latent frame {starts[end - 1]}, so at least that "
                f"many clean frames are needed, got {self.clean}."
            )

    @cached_property
    def matrix(self) -> Matrix:
        """[noisy frames, clean + noisy frames]."""
        first, end = self.noisy
        starts = chunk_starts(end, self.chunk, self.first_chunk)[first:]
        past = [
            [sees_past(start, key, self.window, self.sink) for key in range(self.clean)]
            for start in starts.tolist()
        ]
        past = np.array(past, bool).reshape(len(starts), self.clean)
        return np.concatenate([past, starts[:, None] == starts], axis=1)


@dataclass(frozen=True)
class TeacherForcing(FrameMask):
    """Two copies of a clip at once, [clean 0..clean-1 | noisy frames], queries and keys alike.

    Clean chunks are causal among themselves (`ChunkCausal`); noisy ones see what `FromMemory` says.

    Attributes:
        clean: clean latent frames; whole chunks.
        noisy: first and last + 1 noisy latent frame; whole chunks.
        chunk: latent frames of a chunk.
        window: past latent frames seen besides the sink; None: all.
        sink: first latent frames, always seen.
        first_chunk: latent frames of chunk 0 where it differs; 0: `chunk`.
    """

    clean: int
    noisy: tuple[int, int]
    chunk: int = 1
    window: int | None = None
    sink: int = 0
    first_chunk: int = 0

    @cached_property
    def matrix(self) -> Matrix:
        """[clean + noisy frames, clean + noisy frames]."""
        rules = (self.chunk, self.window, self.sink, self.first_chunk)
        clean = ChunkCausal(self.clean, *rules).matrix
        noisy = FromMemory(self.clean, self.noisy, *rules).matrix
        hidden = np.zeros((self.clean, len(noisy)), bool)
        return np.concatenate([np.concatenate([clean, hidden], axis=1), noisy])


@partial(jax.tree_util.register_dataclass, data_fields=["lengths"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class KeyLengths:
    """Every query sees the first `lengths` keys.

    Attributes:
        lengths: visible keys, at least 1; one number for all rows of the batch or one a row.
    """

    lengths: Int[jax.Array, "*#batch"] | Any


@partial(jax.tree_util.register_dataclass, data_fields=["lengths"], meta_fields=["frames"])
@dataclass(frozen=True, eq=False)
class FrameLengths:
    """Every query sees the first `lengths` of the keys' frames, all of their tokens.

    Attributes:
        frames: frames of the keys.
        lengths: visible frames, at least 1; one number for all rows of the batch or one a row.
    """

    frames: int = field()
    lengths: Int[jax.Array, "*#batch"] | Any


@partial(jax.tree_util.register_dataclass, data_fields=["mask"], meta_fields=["tokens", "valid"])
@dataclass(frozen=True)
class Padded:
    """Frames of `tokens` tokens of which only the first `valid` are there, in queries and keys.

    The mask inside speaks of frames without their padding. Outputs of padding are zero, and nothing
    flows into or out of it.

    Attributes:
        mask: any other mask.
        tokens: tokens of a frame as stored.
        valid: tokens of a frame that are there.
    """

    mask: "Full | FrameBlocks | ChunkCausal | FromMemory | TeacherForcing | KeyLengths | Any"
    tokens: int
    valid: int


for _mask in (Full, FrameBlocks, ChunkCausal, FromMemory, TeacherForcing):
    jax.tree_util.register_static(_mask)

Mask = FrameMask | KeyLengths | FrameLengths | Padded


def dense(mask: Mask, queries: int, keys: int) -> Bool[jax.Array, "#batch queries keys"]:
    """The mask as one boolean matrix, the definition that implementations are held to.

    Args:
        mask: any mask.
        queries: tokens of the queries.
        keys: tokens of the keys.

    Returns:
        True where a query sees a key.

    Raises:
        ValueError: when the sequences are not whole frames of the mask.
    """
    if isinstance(mask, Padded):
        frames = (count_frames(queries, mask.tokens), count_frames(keys, mask.tokens))
        inner = dense(mask.mask, frames[0] * mask.valid, frames[1] * mask.valid)
        inner = inner.reshape(-1, frames[0], mask.valid, frames[1], mask.valid)
        spare = (0, mask.tokens - mask.valid)
        inner = jnp.pad(inner, ((0, 0), (0, 0), spare, (0, 0), spare))
        return inner.reshape(-1, queries, keys)
    if isinstance(mask, FrameMask):
        sizes = frame_tokens(mask.matrix, queries, keys)
        return jnp.asarray(mask.matrix.repeat(sizes[0], 0).repeat(sizes[1], 1))[None]
    lengths = key_lengths(mask, keys)
    return jnp.broadcast_to(
        jnp.arange(keys) < lengths.reshape(-1, 1, 1), (lengths.size, queries, keys)
    )


def key_lengths(mask: KeyLengths | FrameLengths, keys: int) -> Int[jax.Array, "*#batch"]:
    """Visible leading keys, in tokens."""
    lengths = jnp.asarray(mask.lengths, jnp.int32)
    if isinstance(mask, KeyLengths):
        return lengths
    if keys % mask.frames:
        raise ValueError(f"{keys} keys are not {mask.frames} frames of equally many tokens.")
    return lengths * (keys // mask.frames)


def frame_tokens(matrix: Matrix, queries: int, keys: int) -> tuple[int, int]:
    """Tokens of a frame of queries and of a frame of keys.

    Raises:
        ValueError: when the sequences are not whole frames of the matrix.
    """
    if queries % matrix.shape[0] or keys % matrix.shape[1]:
        raise ValueError(
            f"{queries} queries and {keys} keys are not whole frames of a mask over "
            f"{matrix.shape[0]} x {matrix.shape[1]} frames."
        )
    return queries // matrix.shape[0], keys // matrix.shape[1]


def count_frames(length: int, tokens: int) -> int:
    """Frames of `tokens` tokens in a sequence.

    Raises:
        ValueError: when the sequence is not whole frames.
    """
    if length % tokens:
        raise ValueError(f"a sequence of {length} tokens is not whole frames of {tokens} tokens.")
    return length // tokens
