"""Which latent frames attend to which, as predicates and as the calls that carry them out.

Time is cut into latent frames. A frame sees itself, the ``window`` frames before it and the first
``sink`` frames. Teacher forcing runs two copies of a clip through the network at once, the clean
frames 0..K-1 and the noisy frames 1..K:

    clean i  sees  clean j <= i        (in window or sink)
    noisy i  sees  clean j <  i        (in window or sink) and itself; no other noisy frame

so that noisy frame i sees exactly what a session sees when it generates frame i.
`teacher_forcing_mask` is that predicate as a dense matrix, for tests; `TeacherForced` computes it
as one small rectangular attention a frame, in which clean i and noisy i share a call because both
see i + 1 frames.

Positions of the rotary embedding count from the start of what is visible: the sink sits right
before the window even when the frames between them are forgotten. All patterns are static and
hashable.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jwm_jax.nn.attention import attention
from jwm_jax.nn.masks import FrameLengths
from jwm_jax.nn.rotary import rotate, rotation_angles

Heads = Float[jax.Array, "n f s heads d"]


def is_visible(frame: int, past: int, window: int, sink: int) -> bool:
    """Whether latent frame ``frame`` may see the clean latent frame ``past`` < ``frame``."""
    return past < frame and (past < sink or frame - past <= window)


def teacher_forcing_mask(
    frames: int, tokens: int, window: int, sink: int
) -> Bool[np.ndarray, "queries keys"]:
    """The dense predicate over [clean 0..K-1 | noisy 1..K].

    Args:
        frames: K.
        tokens: tokens of a latent frame.
        window: past frames seen besides the sink.
        sink: first frames always seen.

    Returns:
        [2 K tokens, 2 K tokens], True where the query (row) may see the key (column).
    """
    noisy = np.repeat([False, True], frames)
    index = [*range(frames), *range(1, frames + 1)]
    mask = np.zeros((2 * frames, 2 * frames), bool)
    for q in range(2 * frames):
        for k in range(2 * frames):
            past = not noisy[k] and is_visible(index[q], index[k], window, sink)
            mask[q, k] = past or q == k
    return np.repeat(np.repeat(mask, tokens, 0), tokens, 1)


@dataclass(frozen=True)
class Bidirectional:
    """Every frame sees every frame."""

    returns_keys: bool = False

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Any = None
    ) -> Heads:
        """Attention of [n, frames, tokens, heads, d] over all frames and tokens of a clip."""
        angles = rotation_angles(jnp.arange(queries.shape[1]), *grid, queries.shape[-1])
        out = attention(_flat(rotate(queries, angles)), _flat(rotate(keys, angles)), _flat(values))
        return out.reshape(queries.shape)


@dataclass(frozen=True)
class TeacherForced:
    """The teacher-forcing predicate over frames [clean 0..K-1 | noisy 1..K].

    Attributes:
        frames: K.
        window: past frames seen besides the sink.
        sink: first frames always seen.
    """

    frames: int
    window: int
    sink: int
    returns_keys: bool = False

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Any = None
    ) -> Heads:
        """Attention of [n, 2 K, tokens, heads, d] under the predicate."""
        count, head_dim = self.frames, queries.shape[-1]
        index = jnp.concatenate([jnp.arange(count), jnp.arange(1, count + 1)])
        angles = rotation_angles(index, *grid, head_dim)
        queries, turned = rotate(queries, angles), rotate(keys, angles)
        clean, noisy = [], []
        for i in range(count + 1):
            oldest = i - self.window if i - self.window > self.sink else 0
            seen_keys, seen_values = [turned[:, oldest:i]], [values[:, oldest:i]]
            kept = self.sink if oldest else 0
            if kept:
                position = jnp.arange(oldest - kept, oldest)
                sink_keys = rotate(keys[:, :kept], rotation_angles(position, *grid, head_dim))
                seen_keys.insert(0, sink_keys)
                seen_values.insert(0, values[:, :kept])
            own = ([i] if i < count else []) + ([count + i - 1] if i > 0 else [])
            out = attention(
                jnp.concatenate([queries[:, j] for j in own]),
                jnp.concatenate([_flat(_append(seen_keys, turned, j)) for j in own]),
                jnp.concatenate([_flat(_append(seen_values, values, j)) for j in own]),
            )
            parts = jnp.split(out, len(own))
            if i < count:
                clean.append(parts[0])
            if i > 0:
                noisy.append(parts[-1])
        return jnp.stack(clean + noisy, axis=1)


@dataclass(frozen=True)
class Cached:
    """One frame over a session's cache and itself; its own keys and values are returned."""

    returns_keys: bool = True

    def __call__(
        self, queries: Heads, keys: Heads, values: Heads, grid: tuple[int, int], past: Any = None
    ) -> Heads:
        """Attention of [n, 1, tokens, heads, d] over ``past`` and the frame itself.

        Args:
            queries: of the current frame, not yet rotated.
            keys: as the queries.
            values: as the queries.
            grid: rows and columns of tokens.
            past: (rotated keys, values, visible, position) of one layer, from `cache.read_cache`.
        """
        past_keys, past_values, visible, position = past
        angles = rotation_angles(position[None], *grid, queries.shape[-1])
        keys = jnp.concatenate([rotate(keys, angles), past_keys], axis=1)
        values = jnp.concatenate([values, past_values], axis=1)
        seen = FrameLengths(keys.shape[1], 1 + visible.sum())
        out = attention(_flat(rotate(queries, angles)), _flat(keys), _flat(values), seen)
        return out.reshape(queries.shape)


Pattern = Bidirectional | TeacherForced | Cached


def _append(seen: list[jax.Array], source: jax.Array, frame: int) -> jax.Array:
    return jnp.concatenate([*seen, source[:, frame : frame + 1]], axis=1)


def _flat(heads: jax.Array) -> jax.Array:
    return heads.reshape(heads.shape[0], -1, *heads.shape[-2:])
