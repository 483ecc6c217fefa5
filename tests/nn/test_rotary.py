"""Rotary embedding: relative, norm-preserving, separate for frame, row and column."""

import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.nn.rotary import pair_counts, rotate, rotation_angles

HEAD_DIM, HEIGHT, WIDTH = 16, 3, 4


def random_heads(seed: int, frames: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (1, frames, HEIGHT * WIDTH, 2, HEAD_DIM))


def scores(queries, keys, frames):
    angles = rotation_angles(frames, HEIGHT, WIDTH, HEAD_DIM)
    return jnp.einsum("nfshd,ngthd->nhfsgt", rotate(queries, angles), rotate(keys, angles))


def test_scores_depend_only_on_differences_of_frames():
    queries, keys = random_heads(0, 3), random_heads(1, 3)
    here = scores(queries, keys, jnp.asarray([0, 1, 2]))
    later = scores(queries, keys, jnp.asarray([40, 41, 42]))
    np.testing.assert_allclose(here, later, atol=2e-5)
    stretched = scores(queries, keys, jnp.asarray([0, 2, 4]))
    assert np.abs(np.asarray(here - stretched)).max() > 1e-2


def test_rotation_keeps_norms_and_position_zero_changes_nothing():
    heads = random_heads(2, 2)
    angles = rotation_angles(jnp.asarray([0, 5]), HEIGHT, WIDTH, HEAD_DIM)
    turned = rotate(heads, angles)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(heads, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(turned[:, 0, 0], heads[:, 0, 0])


def test_pairs_split_as_in_wan():
    assert pair_counts(128) == (22, 21, 21)
    angles = rotation_angles(jnp.asarray([0, 1]), HEIGHT, WIDTH, 128)
    moved = np.asarray(angles[1] - angles[0])
    assert (moved[:, :22] > 0).all() and not moved[:, 22:].any()
    rows = np.asarray(angles[0]).reshape(HEIGHT, WIDTH, 64)
    assert (np.diff(rows, axis=0)[..., 22:43] > 0).all()
    assert not np.diff(rows, axis=1)[..., :43].any()
