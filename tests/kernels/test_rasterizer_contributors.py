"""Contributors of pixels and gradients in the image plane, against brute force in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import project, rasterization, render_ids
from jwm_kernels.gaussian_rasterizer.reference import composite, rasterization_reference

SIZE = (44, 28)


@pytest.fixture(scope="module")
def all_weights(splats):
    """Weight of every Gaussian at every pixel [C, H, W, N]: an identity matrix as colours."""
    with jax.enable_x64(True):
        arrays = [array.astype(np.float64) for array in splats.arrays]
        arrays[4] = np.eye(64)
        image, alpha, _ = rasterization_reference(*arrays, *SIZE)
        weights = np.asarray(image[..., :64])
        np.testing.assert_allclose(weights.sum(-1), alpha[..., 0], atol=1e-12)
        return weights


@pytest.mark.parametrize("k", [1, 5])
def test_strongest_contributors(splats, all_weights, k):
    ids, weights, meta = render_ids(*splats.arrays[:4], *splats.arrays[5:], *SIZE, k=k)
    assert int(meta["overflow"]) == 0
    order = np.argsort(-all_weights, -1)[..., :k]
    expected = np.take_along_axis(all_weights, order, -1)
    np.testing.assert_allclose(weights, expected, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(ids) == -1, expected == 0)
    following = np.sort(all_weights, -1)[..., ::-1][..., : k + 1]
    clear = np.min(-np.diff(following), -1) > 1e-5  # no two weights that float32 may exchange
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(ids[clear], order[clear])


def test_contributors_of_a_batch_and_of_an_empty_scene(splats):
    arrays = [*splats.arrays[:4], *splats.arrays[5:]]
    one, _, _ = render_ids(*arrays, *SIZE, k=2)
    batched = [np.stack([array] * 2) for array in arrays]
    batched[3][1] = 0
    ids, weights, _ = render_ids(*batched, *SIZE, k=2)
    np.testing.assert_array_equal(ids[0], one)
    assert np.all(ids[1] == -1)
    assert not np.any(weights[1])
    empty = [array[:0] for array in arrays[:4]] + arrays[4:]
    ids, weights, _ = render_ids(*empty, *SIZE, k=2)
    assert ids.shape == weights.shape == (2, 28, 44, 2)
    assert np.all(ids == -1)


@pytest.fixture(scope="module")
def gradient_of_probe(splats, weights):
    """Gradient in the means on the screen, plain or absolute, and in the Gaussians' own means."""

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(absgrad):
        def loss(means, probe):
            image, alpha, _ = rasterization(
                means, *splats.arrays[1:], *SIZE, render_mode="RGB+D", absgrad=absgrad,
                means2d_probe=probe,
            )  # fmt: skip
            return jnp.sum(weights * jnp.concatenate([image, alpha], -1))

        return jax.value_and_grad(loss, (0, 1))(splats.means, np.zeros((2, 64, 2), np.float32))

    return gradient


@pytest.fixture(scope="module")
def pixel_gradients(splats, weights):
    """d (loss of one pixel) / d (mean on the screen of one Gaussian) [C, H, W, N, 2] in float64."""
    with jax.enable_x64(True):
        arrays = [array.astype(np.float64) for array in splats.arrays]
        projected = project(*arrays[:4], *arrays[5:], *SIZE)
        per_camera = []
        for camera in range(2):
            order = np.argsort(projected.depths[camera])
            xx, xy, yy = np.moveaxis(np.asarray(projected.covars2d[camera])[order], -1, 0)
            covars = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)
            features = np.concatenate([arrays[4], projected.depths[camera][:, None]], -1)[order]

            def pixels(means, camera=camera, order=order, covars=covars, features=features):
                out, alpha, _ = composite(
                    means, jnp.linalg.inv(covars), arrays[3][order], features,
                    projected.visible[camera][order], *SIZE, 0.99,
                )  # fmt: skip
                image = jnp.concatenate([out, alpha[..., None]], -1)
                return jnp.sum(weights[camera] * image, -1)

            jacobian = jax.jit(jax.jacfwd(pixels))(projected.means2d[camera][order])
            per_camera.append(np.asarray(jacobian)[:, :, np.argsort(order)])
        return np.stack(per_camera)


@pytest.mark.parametrize("absgrad", [False, True])
def test_probe_receives_the_gradient_in_the_image_plane(
    gradient_of_probe, pixel_gradients, absgrad
):
    got = gradient_of_probe(absgrad)[1][1]
    each = np.abs(pixel_gradients) if absgrad else pixel_gradients
    expected = each.sum((1, 2))
    assert np.linalg.norm(got - expected) < 2e-5 * np.linalg.norm(expected)


def test_absolute_gradients_change_nothing_else(gradient_of_probe):
    (plain, (plain_gradient, signed)), (value, (gradient, absolute)) = (
        gradient_of_probe(absgrad) for absgrad in (False, True)
    )
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-4, atol=1e-4)
    assert np.all(absolute >= np.abs(signed) * (1 - 1e-4) - 1e-4)
    assert np.sum(absolute) > 1.2 * np.sum(np.abs(signed))
