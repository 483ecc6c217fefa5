"""Attention patterns against the dense predicate, and the cache against the pattern's window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.nn.rotary import rotate, rotation_angles
from jwm_jax.worldgen.cache import empty_cache, write_cache
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.masks import Cached, FromMemory, Sight, TeacherForced, teacher_forcing_mask

GRID, HEAD_DIM = (1, 2), 12
TOKENS = GRID[0] * GRID[1]


def test_the_block_mask_of_three_frames_after_a_given_one():
    mask = teacher_forcing_mask(3, 1, Sight(window=9)).astype(int)
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],  # noisy 1 sees clean 0 and itself
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert mask.tolist() == expected


def dense(q, k, v, sight, frames):
    """One masked call at absolute positions."""
    index = jnp.concatenate([jnp.arange(frames) + offset for offset in (0, sight.given)])
    angles = rotation_angles(index, *GRID, HEAD_DIM)
    q, k, v = (a.reshape(a.shape[0], 2 * frames, *a.shape[3:]) for a in (q, k, v))
    flat = (
        a.reshape(a.shape[0], -1, *a.shape[-2:]) for a in (rotate(q, angles), rotate(k, angles), v)
    )
    mask = jnp.asarray(teacher_forcing_mask(frames, TOKENS, sight))
    out = jax.nn.dot_product_attention(*flat, mask=mask[None, None])
    return out.reshape(-1, 2, frames, TOKENS, 2, HEAD_DIM)


@pytest.mark.parametrize(
    "sight",
    [
        Sight(window=9),
        Sight(window=9, sink=1),
        Sight(window=2),
        Sight(window=1, sink=1, rebase=False),
        Sight(chunk=3, window=9, given=0),
        Sight(chunk=3, window=2, sink=1, given=1, rebase=False),
        Sight(chunk=2, window=3, given=2),
    ],
    ids=repr,
)
def test_rectangular_calls_equal_one_dense_masked_call(sight):
    """Without a forgotten gap behind the sink, absolute positions are the window's positions."""
    frames = 6
    keys = jax.random.split(jax.random.key(sight.window), 3)
    q, k, v = (jax.random.normal(key, (2, 2, frames, TOKENS, 2, HEAD_DIM)) for key in keys)
    expected = dense(q, k, v, sight, frames)
    blocks = TeacherForced(sight)(q, k, v, GRID)
    whole = sight.given + (frames - sight.given) // sight.chunk * sight.chunk
    np.testing.assert_allclose(blocks[:, 0, :whole], expected[:, 0, :whole], atol=1e-5)
    np.testing.assert_allclose(blocks[:, 1], expected[:, 1], atol=1e-5)
    noisy = (a[:, 1:] for a in (q, k, v))
    memory = (k[:, 0], v[:, 0], jnp.asarray(frames))
    parallel = FromMemory(sight)(*noisy, GRID, memory)
    np.testing.assert_allclose(parallel[:, 0], blocks[:, 1], atol=1e-5)


@pytest.mark.parametrize("rebase", [True, False])
@pytest.mark.parametrize(
    ("window", "sink", "slots", "chunk"), [(2, 1, 3, 1), (3, 0, 3, 3), (1, 2, 9, 1), (3, 1, 4, 2)]
)
def test_the_ring_shows_what_teacher_forcing_shows(window, sink, slots, chunk, rebase):
    """Chunk after chunk through the ring, longer than it, equals the noisy half at once."""
    config = WorldGenConfig(dim=24, num_layers=2, num_heads=2, window=window, sink=sink)
    sight = Sight(chunk, 1, window, sink, rebase)
    frames = 6
    keys = jax.random.split(jax.random.key(window), 3)
    q, k, v = (jax.random.normal(key, (1, 2, frames, TOKENS, 2, HEAD_DIM)) for key in keys)
    expected = TeacherForced(sight)(q, k, v, GRID)[:, 1:]
    pattern, cache = Cached(window, sink, rebase), empty_cache(config, 1, TOKENS, slots)
    for start, stop in sight.chunks(frames + 1):
        if start:
            own = slice(start - 1, stop - 1)
            past = (cache.keys[1], cache.values[1], cache.frames)
            out = pattern(q[:, 1:, own], k[:, 1:, own], v[:, 1:, own], GRID, past)
            np.testing.assert_allclose(out, expected[:, :, own], atol=1e-5)
        clean = (jnp.stack([a[:, 0, start:stop]] * 2) for a in (k, v))
        cache = write_cache(cache, *clean, config)


def test_a_cache_without_room_beside_its_sink_is_refused():
    with pytest.raises(ValueError, match="more slots than its sink of 1, got 1"):
        empty_cache(WorldGenConfig(), 1, TOKENS, slots=1)
