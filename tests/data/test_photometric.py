"""Photometric changes are one draw an example, bounded, and nothing where nothing is asked."""

import numpy as np

from jwm_jax.data.photometric import QUALITY, UNCHANGED, Change, Photometric, draw_change

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0.2, 0.6, (2, 3, 16, 24, 3)).astype(np.float32)


def test_zeros_change_nothing():
    change = draw_change(UNCHANGED, np.random.default_rng(1))
    np.testing.assert_allclose(change(IMAGES), IMAGES, rtol=1e-6)


def test_draws_stay_within_their_bounds_and_come_as_often_as_asked():
    config = Photometric(exposure=0.2, white_balance=0.1, blur=0.3, jpeg=0.5)
    drawn = [draw_change(config, np.random.default_rng(seed)) for seed in range(400)]
    gains = np.log([change.gains for change in drawn])
    assert np.abs(gains.mean(1)).max() <= 0.2 and np.abs(gains.mean(1)).max() > 0.15
    assert np.abs(gains - gains.mean(1, keepdims=True)).max() < 0.2
    assert abs(np.mean([change.blur > 0 for change in drawn]) - 0.3) < 0.08
    qualities = [change.quality for change in drawn if change.quality]
    assert abs(len(qualities) / 400 - 0.5) < 0.08
    assert QUALITY[0] <= min(qualities) < max(qualities) <= QUALITY[1]


def test_each_change_does_what_it_says():
    bright = Change((1.2, 1.0, 0.8), 0.0, 0)(IMAGES)
    np.testing.assert_allclose(bright, IMAGES * np.float32([1.2, 1.0, 0.8]), rtol=1e-6)
    assert Change((9.0, 9.0, 9.0), 0.0, 0)(IMAGES).max() == 1.0
    blurred = Change((1.0, 1.0, 1.0), 1.0, 0)(IMAGES)
    inner = IMAGES[0, 0, 4:7, 4:7].astype(np.float64)
    weights = np.outer([1, 2, 1], [1, 2, 1])[..., None] / 16
    np.testing.assert_allclose(blurred[0, 0, 5, 5], (inner * weights).sum((0, 1)), rtol=1e-5)
    packed = Change((1.0, 1.0, 1.0), 0.0, 30)(IMAGES)
    assert packed.shape == IMAGES.shape and 0.01 < np.abs(packed - IMAGES).mean() < 0.2
