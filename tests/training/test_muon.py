"""Muon: kernels move by semi-orthogonal matrices, everything else as under Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jwm_jax.training.muon import orthogonalize, scale_by_muon_and_adam


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    matrix = jax.random.normal(jax.random.key(0), shape)
    result = np.asarray(orthogonalize(matrix))
    values = np.linalg.svd(result, compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = np.linalg.svd(np.asarray(matrix), full_matrices=False)
    aligned = left.T @ result @ right.T
    np.testing.assert_allclose(aligned, np.diag(np.diag(aligned)), atol=1e-4)
    assert np.diag(aligned).min() > 0.5


def test_only_convolution_kernels_differ_from_adam():
    params = {"kernel": jnp.ones((3, 3, 4, 8)), "matrix": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
    muon, adam = scale_by_muon_and_adam(0.9, 0.99, 1e-8), optax.scale_by_adam(0.9, 0.99, 1e-8)
    updates, state = muon.update(grads, muon.init(params))
    expected, adam_state = adam.update(grads, adam.init(params))
    for name in ("matrix", "bias"):
        np.testing.assert_array_equal(updates[name], expected[name])
    assert jax.tree.structure(state) == jax.tree.structure(adam_state)
    kernel = np.asarray(updates["kernel"]).reshape(-1, 8)
    rms = float(np.sqrt(np.mean(kernel**2)))
    assert 0.1 < rms < 0.3
    cosine = np.sum(kernel * np.asarray(grads["kernel"]).reshape(-1, 8))
    assert cosine > 0


def test_a_zero_gradient_moves_nothing():
    params = {"kernel": jnp.ones((3, 3, 4, 8))}
    muon = scale_by_muon_and_adam(0.9, 0.99, 1e-8)
    updates, _ = muon.update(jax.tree.map(jnp.zeros_like, params), muon.init(params))
    assert not np.any(updates["kernel"])
