"""The rasterizer against a float64 brute force and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.cases import Case, make_splats
from jwm_kernels.gaussian_rasterizer.reference import rasterization_reference

NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
FLIP = 1e-4
"""Pixels whose alpha or transmittance is this close to a threshold may flip in float32."""


@pytest.fixture(scope="module")
def oracle(splats, weights):
    """Image, alpha, margin, loss and gradients by brute force in float64."""
    with jax.enable_x64(True):
        arrays = [array.astype(np.float64) for array in splats.arrays]

        def loss(*arrays):
            image, alpha, margin = rasterization_reference(*arrays, splats.width, splats.height)
            return jnp.sum(weights * jnp.concatenate([image, alpha], -1)), (image, alpha, margin)

        (value, result), gradients = jax.jit(
            jax.value_and_grad(loss, argnums=tuple(range(7)), has_aux=True)
        )(*arrays)
        return jax.tree.map(np.asarray, (*result, value, gradients))


def test_values_equal_brute_force(splats, render, oracle):
    image, alpha, _, _, _ = oracle
    got, got_alpha, _ = render(*splats.arrays, splats.width, splats.height, render_mode="RGB+D")
    np.testing.assert_allclose(got[..., :3], image[..., :3], atol=2e-6)
    np.testing.assert_allclose(got[..., 3], image[..., 3], atol=2e-5)
    np.testing.assert_allclose(got_alpha, alpha, atol=2e-6)


def test_the_scene_has_no_pixel_on_a_threshold(oracle):
    assert oracle[2].min() > 1e-6


@pytest.mark.parametrize("index", range(7), ids=NAMES)
def test_gradients_equal_brute_force(splats, value_and_grad, oracle, index):
    value, gradients = value_and_grad(*splats.arrays)
    np.testing.assert_allclose(value, oracle[3], rtol=1e-5)
    error = np.linalg.norm(gradients[index] - oracle[4][index])
    assert error < 2e-5 * np.linalg.norm(oracle[4][index])


def test_float64_gradients_equal_brute_force_to_float64(splats, value_and_grad, oracle):
    with jax.enable_x64(True):
        arrays = [array.astype(np.float64) for array in splats.arrays]
        _, gradients = value_and_grad(*arrays)
        for name, got, expected in zip(NAMES, gradients, oracle[4], strict=True):
            error = np.linalg.norm(np.asarray(got) - expected)
            assert error < 1e-11 * np.linalg.norm(expected), name


@pytest.mark.parametrize(
    "options",
    [
        {"rasterize_mode": "antialiased", "eps2d": 0.8},
        {"camera_model": "ortho", "max_alpha": 0.9, "near_plane": 5.0, "far_plane": 40.0},
    ],
    ids=["antialiased", "ortho"],
)
def test_modes_equal_brute_force(splats, render, options):
    arrays = list(splats.arrays)
    if options.get("camera_model") == "ortho":
        arrays[6] = arrays[6] * np.array([0.1, 0.1, 1.0], np.float32)[:, None]
        arrays[6][:, :2, 2] *= 10
    with jax.enable_x64(True):
        wide = [array.astype(np.float64) for array in arrays]
        image, alpha, margin = jax.jit(
            lambda *wide: rasterization_reference(*wide, splats.width, splats.height, **options)
        )(*wide)
    got, got_alpha, _ = render(*arrays, splats.width, splats.height, render_mode="RGB+D", **options)
    clear = np.asarray(margin) > FLIP
    assert clear.mean() > 0.97
    assert np.asarray(alpha).max() > 0.5
    np.testing.assert_allclose(got[clear][:, :3], np.asarray(image)[clear][:, :3], atol=5e-6)
    np.testing.assert_allclose(got[clear][:, 3], np.asarray(image)[clear][:, 3], atol=1e-4)
    np.testing.assert_allclose(got_alpha[clear], np.asarray(alpha)[clear], atol=5e-6)


def test_gradients_equal_finite_differences():
    """Along a random direction of every input, SH colours and the background included."""
    splats = make_splats(Case(24, 20, 14), seed=11, sigma=3.0)
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        inputs = [array.astype(np.float64) for array in splats.arrays]
        inputs[4] = random.normal(size=(24, 9, 3)) * 0.3
        inputs.append(random.random((1, 3)))
        weight = random.normal(size=(1, 14, 20, 5))

        def loss(*inputs):
            *arrays, background = inputs
            image, alpha, _ = rasterization(
                *arrays, 20, 14, sh_degree=2, render_mode="RGB+ED", backgrounds=background,
                rasterize_mode="antialiased", tile_size=8,
            )  # fmt: skip
            return jnp.sum(weight * jnp.concatenate([image, alpha], -1))

        both = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(8))))
        gradients = both(*inputs)[1]
        step = 1e-5
        for index, gradient in enumerate(gradients):
            direction = random.normal(size=gradient.shape) * np.abs(inputs[index]).mean()
            ahead, behind = list(inputs), list(inputs)
            ahead[index] = inputs[index] + step * direction
            behind[index] = inputs[index] - step * direction
            difference = float(both(*ahead)[0] - both(*behind)[0]) / (2 * step)
            slope = float(jnp.sum(gradient * direction))
            assert difference == pytest.approx(slope, rel=1e-6), (*NAMES, "backgrounds")[index]
