"""Losses and SSIM against direct formulas."""

import jax.numpy as jnp
import numpy as np

from jwm_jax.nn.ssim import ssim
from jwm_jax.worldrec.losses import (
    LossWeights,
    depth_loss,
    gradient_loss,
    picture_loss,
    sky_loss,
)


def direct_ssim(x, y):
    offsets = np.arange(11) - 5
    window = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None] ** 2) / 1.5**2)
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            for c in range(3):
                a, b = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
                ma, mb = (window * a).sum(), (window * b).sum()
                va = (window * (a - ma) ** 2).sum()
                vb = (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_ssim_equals_its_definition():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(16, 14, 3))
    y = np.clip(x + rng.normal(size=x.shape) * 0.1, 0, 1)
    got = float(ssim(x.astype(np.float32), y.astype(np.float32)))
    np.testing.assert_allclose(got, direct_ssim(x, y), atol=1e-4)
    assert abs(float(ssim(x, x)) - 1.0) < 1e-5


def test_the_gradient_term_ignores_a_constant_and_sees_blur():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.uniform(size=(1, 16, 16, 3)), jnp.float32)
    assert float(gradient_loss(x, x)) == 0.0
    np.testing.assert_allclose(float(gradient_loss(x + 0.1, x)), 0.0, atol=1e-6)
    blurred = 0.5 * (x + jnp.roll(x, 1, axis=2))
    assert float(gradient_loss(blurred, x)) > 0.05


def test_equal_pictures_cost_nothing():
    x = jnp.full((2, 16, 16, 3), 0.3)
    loss, parts = picture_loss(LossWeights(), x, x)
    np.testing.assert_allclose(float(loss), 0.0, atol=1e-5)
    assert float(parts["psnr"]) > 60


def test_depth_and_sky_count_only_where_they_are_known():
    log_depth = jnp.log(jnp.asarray([[[2.0, 5.0], [8.0, 1.0]]]))
    measured = jnp.asarray([[[4.0, 0.0], [8.0, 0.0]]])
    np.testing.assert_allclose(float(depth_loss(log_depth, measured)), np.log(2) / 2, rtol=1e-5)
    assert float(depth_loss(log_depth, jnp.zeros((1, 2, 2)))) == 0.0
    logit = jnp.asarray([[[0.0, 50.0], [50.0, 0.0]]])
    is_sky = jnp.asarray([[[True, True], [False, False]]])
    known = jnp.asarray([[[True, True], [False, False]]])
    np.testing.assert_allclose(float(sky_loss(logit, is_sky, known)), np.log(2) / 2, rtol=1e-5)
