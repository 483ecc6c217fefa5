"""Conditions: rays, holes, masks, styles, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.scene.cameras import Camera, Intrinsics, Rig
from jwm_jax.worldgen.conditions import (
    camera_rays,
    drop_conditions,
    fill_holes,
    no_conditions,
    pool_mask,
    style_codes,
    unconditional,
)
from jwm_jax.worldgen.config import WorldGenConfig

CONFIG = WorldGenConfig(latent_channels=4)


def test_rays_point_where_the_camera_looks_and_moments_hold_its_place():
    forward = np.asarray([[0, 0, 1, 1.5], [-1, 0, 0, 0.3], [0, -1, 0, 1.2], [0, 0, 0, 1.0]])
    K = np.asarray([[80.0, 0, 80], [0, 80, 48], [0, 0, 1]])
    lens = Intrinsics(K=K, width=160, height=96)
    rays = camera_rays(Rig(("front",), (lens,), forward[None]), 12, 20)
    assert rays.shape == (1, 12, 20, 6)
    np.testing.assert_allclose(np.linalg.norm(rays[..., :3], axis=-1), 1.0, rtol=1e-5)
    assert (rays[..., 0] > 0).all()
    assert (rays[0, :, 0, 1] > 0).all() and (rays[0, :, -1, 1] < 0).all()
    assert (rays[0, 0, :, 2] > 0).all() and (rays[0, -1, :, 2] < 0).all()
    origin = np.asarray([1.5, 0.3, 1.2])
    np.testing.assert_allclose(rays[..., 3:], np.cross(origin, rays[..., :3]), atol=1e-5)
    np.testing.assert_allclose(camera_rays([Camera(lens, forward)], 12, 20), rays)


def test_mirrored_rays_are_those_of_the_mirrored_rig():
    from jwm_jax.paradigms.latent_encoding import MIRROR

    right = np.asarray([[0, 0, 1, 1.5], [-1, 0, 0, -0.5], [0, -1, 0, 1.2], [0, 0, 0, 1.0]])
    left = right.copy()
    left[1, 3] = 0.5
    K = np.asarray([[80.0, 0, 80], [0, 80, 48], [0, 0, 1]])
    lens = Intrinsics(K=K, width=160, height=96)
    one, other = (camera_rays([Camera(lens, p)], 12, 20) for p in (right, left))
    np.testing.assert_allclose(one[:, :, ::-1] * MIRROR, other, atol=1e-5)


def test_holes_show_the_last_frame_and_the_mask_is_pooled():
    prior, last = jnp.ones((1, 4, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)).at[..., 0].set(0.5)
    alpha = jnp.ones((1, 4, 16, 16)).at[:, :2, :8, :8].set(0.0)
    filled = fill_holes(prior, alpha, last)
    np.testing.assert_array_equal(filled[0, 0, 0, 0], [0.5, 0, 0])
    np.testing.assert_array_equal(filled[0, 2], jnp.ones((16, 16, 3)))
    mask = pool_mask(alpha, 2, 2)
    np.testing.assert_allclose(mask[0, :, :, 0], [[0.5, 1.0], [1.0, 1.0]])


def test_style_codes():
    assert style_codes(CONFIG, None).tolist() == [0, 0]
    assert style_codes(CONFIG, {"weather": "fog", "time_of_day": "noon"}).tolist() == [1, 3]
    assert style_codes(CONFIG, {"weather": "locusts"}).tolist() == [0, 0]
    with pytest.raises(ValueError, match="season"):
        style_codes(CONFIG, {"season": "winter"})


def test_the_vocabulary_knows_the_streets_styles():
    from jwm_jax.data.streets.generate import TIMES_OF_DAY, WEATHERS

    words = dict(CONFIG.styles)
    assert set(TIMES_OF_DAY) <= set(words["time_of_day"])
    assert set(WEATHERS) <= set(words["weather"])


def test_dropout_hides_whole_conditions_of_whole_samples():
    empty = no_conditions(CONFIG, (64, 1, 2, 2, 2))
    full = jax.tree.map(jnp.ones_like, empty)
    dropped = drop_conditions(jax.random.key(0), full, {"prior": 0.5, "style": 1.0})
    assert not dropped.style.any() and bool((dropped.layout == 1).all())
    prior, mask = dropped.prior.reshape(64, -1), dropped.prior_mask.reshape(64, -1)
    np.testing.assert_array_equal(prior[:, 0], mask[:, 0])
    assert bool((prior == prior[:, :1]).all()) and 16 < float(prior[:, 0].sum()) < 48


def test_guidance_s_null_branch_keeps_the_geometry():
    full = jax.tree.map(jnp.ones_like, no_conditions(CONFIG, (1, 1, 2, 2, 2)))
    null = unconditional(full)
    assert not null.style.any()
    kept = dataclasses.replace(null, style=full.style)
    assert all(bool((leaf == 1).all()) for leaf in jax.tree.leaves(kept))
