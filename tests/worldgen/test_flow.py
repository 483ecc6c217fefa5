"""The straight path, its inverse formulas, the schedule and guidance."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.worldgen import flow


def latents(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, 1, 3, 2, 2, 4))


def test_x0_and_velocity_describe_the_same_prediction():
    x0, noise = latents(0), latents(1)
    sigma = jnp.asarray([[0.1, 0.5, 1.0], [0.3, 0.9, 0.2]])
    x = flow.add_noise(x0, noise, sigma)
    velocity = flow.velocity_from_x0(x, x0, sigma)
    np.testing.assert_allclose(velocity, noise - x0, atol=2e-5)


def test_sigma_is_per_latent_frame():
    x0, noise = latents(0), latents(1)
    x = flow.add_noise(x0, noise, jnp.asarray([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(x[0, 0, 1], noise[0, 0, 1])
    np.testing.assert_array_equal(x[1, 0, 0], noise[1, 0, 0])
    np.testing.assert_array_equal(x[:, :, 2], x0[:, :, 2])


def test_euler_with_the_true_x0_lands_on_it_in_any_number_of_steps():
    x0, noise = latents(0), latents(1)
    for steps in (1, 4):
        x = noise
        sigmas = flow.sigma_schedule(steps, 2.5)
        for sigma, following in pairwise(sigmas):
            moved = flow.euler_step(x, x0, jnp.asarray(sigma), jnp.asarray(following))
            by_velocity = x + (following - sigma) * flow.velocity_from_x0(x, x0, jnp.asarray(sigma))
            np.testing.assert_allclose(moved, by_velocity, atol=1e-5)
            x = moved
        np.testing.assert_allclose(x, x0, atol=1e-6)


def test_schedule_is_the_shifted_grid():
    np.testing.assert_allclose(
        flow.sigma_schedule(4, 5.0), [1.0, 0.9375, 0.833333, 0.625, 0.0], atol=1e-6
    )
    np.testing.assert_allclose(flow.shift_sigma(jnp.asarray([0.0, 0.5, 1.0]), 1.0), [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="steps"):
        flow.sigma_schedule(0, 5.0)


def test_guidance_uses_the_unconditional_convention():
    unconditional, conditional = latents(0), latents(1)
    np.testing.assert_allclose(flow.guided(unconditional, conditional, 1.0), conditional, atol=1e-6)
    np.testing.assert_array_equal(flow.guided(unconditional, conditional, 0.0), unconditional)
    sigma, x = jnp.asarray(0.4), latents(2)
    of_x0 = flow.velocity_from_x0(x, flow.guided(unconditional, conditional, 3.0), sigma)
    of_velocity = flow.guided(
        flow.velocity_from_x0(x, unconditional, sigma),
        flow.velocity_from_x0(x, conditional, sigma),
        3.0,
    )
    np.testing.assert_allclose(of_x0, of_velocity, atol=1e-4)


def test_random_sigmas_lie_inside_the_interval_and_the_weight_is_bounded():
    sigma = flow.logit_normal_sigma(jax.random.key(0), (1000,), 0.6, 1.2)
    assert float(sigma.min()) > 0 and float(sigma.max()) < 1
    assert abs(float(jnp.median(sigma)) - 0.6457) < 0.05
    np.testing.assert_allclose(flow.x0_weight(jnp.asarray([0.0, 0.2, 1.0])), [25, 25, 1], rtol=1e-5)
