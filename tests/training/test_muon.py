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


def test_only_kernels_of_convolutions_and_blocks_differ_from_adam():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)},
        "embed": {"kernel": jnp.ones((4, 8))},
        "layers": {
            "out": {"kernel": jnp.ones((3, 16, 8)), "bias": jnp.ones((3, 8))},
            "depthwise": {"kernel": jnp.ones((3, 3, 3, 8))},
            "modulation": jnp.ones((3, 6, 8)),
        },
    }
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
    muon, adam = scale_by_muon_and_adam(0.9, 0.99, 1e-8), optax.scale_by_adam(0.9, 0.99, 1e-8)
    updates, state = muon.update(grads, muon.init(params))
    expected, adam_state = adam.update(grads, adam.init(params))
    assert jax.tree.structure(state) == jax.tree.structure(adam_state)
    conv = np.asarray(updates["conv"].pop("kernel")).reshape(1, -1, 8)
    blocks = np.asarray(updates["layers"]["out"].pop("kernel"))
    raw = grads["conv"].pop("kernel").reshape(1, -1, 8), grads["layers"]["out"].pop("kernel")
    del expected["conv"]["kernel"], expected["layers"]["out"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    for update, gradient in zip((conv, blocks), raw, strict=True):
        for one, direction in zip(update, np.asarray(gradient), strict=True):
            values = np.linalg.svd(one, compute_uv=False) / (0.2 * max(one.shape) ** 0.5)
            assert values.min() > 0.5 and values.max() < 1.3
            assert np.sum(one * direction) > 0


def test_a_zero_gradient_moves_nothing():
    params = {"kernel": jnp.ones((3, 3, 4, 8))}
    muon = scale_by_muon_and_adam(0.9, 0.99, 1e-8)
    updates, _ = muon.update(jax.tree.map(jnp.zeros_like, params), muon.init(params))
    assert not np.any(updates["kernel"])
