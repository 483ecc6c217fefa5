"""Attention patterns against the dense predicate, and the cache against the pattern's window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.nn.rotary import rotate, rotation_angles
from jwm_jax.worldgen.cache import empty_cache, read_cache, write_cache
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.masks import TeacherForced, is_visible, teacher_forcing_mask

GRID, HEAD_DIM = (1, 2), 12


def test_the_block_mask_of_three_chunks():
    mask = teacher_forcing_mask(3, 1, window=9, sink=0).astype(int)
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],  # noisy 1 sees clean 0 and itself
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert mask.tolist() == expected


@pytest.mark.parametrize(("window", "sink"), [(9, 0), (9, 1), (2, 0)])
def test_rectangular_calls_equal_one_dense_masked_call(window, sink):
    """Without a forgotten gap behind the sink, absolute positions are the window's positions."""
    frames, tokens = 4, GRID[0] * GRID[1]
    keys = jax.random.split(jax.random.key(window), 3)
    shape = (2, 2 * frames, tokens, 2, HEAD_DIM)
    q, k, v = (jax.random.normal(key, shape) for key in keys)
    index = jnp.concatenate([jnp.arange(frames), jnp.arange(1, frames + 1)])
    angles = rotation_angles(index, *GRID, HEAD_DIM)
    mask = jnp.asarray(teacher_forcing_mask(frames, tokens, window, sink))
    flat = (rotate(q, angles), rotate(k, angles), v)
    flat = (a.reshape(2, -1, 2, HEAD_DIM) for a in flat)
    dense = jax.nn.dot_product_attention(*flat, mask=mask[None, None])
    blocks = TeacherForced(frames, window, sink)(q, k, v, GRID)
    np.testing.assert_allclose(blocks, dense.reshape(shape), atol=1e-5)


@pytest.mark.parametrize(("window", "sink"), [(2, 1), (3, 0), (1, 2)])
def test_the_ring_holds_what_the_predicate_shows_at_positions_within_the_window(window, sink):
    config = WorldGenConfig(dim=24, num_layers=2, num_heads=2, window=window, sink=sink)
    tokens = GRID[0] * GRID[1]
    cache = empty_cache(config, 1, tokens)
    write = jax.jit(lambda cache, keys: write_cache(cache, keys, keys, config))
    read = jax.jit(lambda cache: read_cache(cache, config, GRID))
    history = []
    for frame in range(8):
        rotated, values, visible, position = read(cache)
        seen = [past for past in range(frame) if is_visible(frame, past, window, sink)]
        assert int(position) == len(seen) <= config.slots
        expected = [rotate(history[past], rotation_at(i)) for i, past in enumerate(seen)]
        got = {float(values[0, 0, s, 0, 0, 0]): s for s in np.flatnonzero(visible)}
        assert len(got) == len(seen)
        for past, turned in zip(seen, expected, strict=True):
            slot = got[float(history[past][0, 0, 0, 0, 0, 0])]
            np.testing.assert_allclose(rotated[:, :, slot], turned[:, :, 0], atol=1e-5)
        keys = jax.random.normal(jax.random.key(frame), (2, 1, 1, tokens, 2, 12))
        history.append(keys)
        cache = write(cache, keys)


def rotation_at(position: int) -> jax.Array:
    return rotation_angles(jnp.asarray([position]), *GRID, HEAD_DIM)
