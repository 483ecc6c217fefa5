"""Renders of trained scenes and their gradients against those of an independent dense torch code.

In float64, everything agrees to the float32 in which the golden arrays are stored. In float32 a few
decisions fall otherwise (see `flip_band`): pixels at which that may happen are compared with the
noise that the golden data states between its own float32 and float64 runs, all others to rounding;
and so are gradients of the loss, and those of a loss without these pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flip_band import flip_band

from jwm_kernels import check_overflow, rasterization
from jwm_kernels.gaussian_rasterizer.constants import ALPHA_MIN, LOG_ALPHA_SLACK

pytestmark = pytest.mark.golden
GRADIENTS = ("means", "quats", "scales", "opacities", "colors")
MAX_ALPHA = 0.999
STATED_NOISE = {"image": 6e-4, "gradient": 4e-4}
"""Of float32: the largest error of an image, as a share of its largest value where that is over 1,
and of a gradient relative to its norm."""


@functools.cache
def _load(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@functools.cache
def _renderer(path, dtype):
    """A function from the three weights of the loss to images and gradients.

    The programs run for longer than LLVM takes to optimise them, unlike those of most tests.
    """
    golden = _load(path)
    *splats, viewmats, Ks = (golden[name].astype(dtype) for name in (*GRADIENTS, "viewmats", "Ks"))
    height, width, degree = (int(golden[name]) for name in ("height", "width", "sh_degree"))
    views, capacity = len(viewmats), 3 * len(viewmats) * len(splats[0])
    background = np.tile(golden["background"].astype(dtype), (views, 1))

    def loss(splats, weights):
        image, alpha, meta = rasterization(
            *splats, viewmats, Ks, width, height, render_mode="RGB+D", tile_size=8,
            sh_degree=None if degree < 0 else degree, backgrounds=background, max_alpha=MAX_ALPHA,
            capacity=capacity, host_sort=False,
        )  # fmt: skip
        images = (image[..., :3], image[..., 3], alpha[..., 0])
        means = [
            jnp.sum(jnp.mean((values * weight).reshape(views, -1), -1))
            for values, weight in zip(images, weights, strict=True)
        ]
        return means[0] + 0.1 * means[1] + means[2], (images, meta)

    options = {"xla_backend_optimization_level": 2}
    function = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)

    def render(weights):
        result = function(splats, [weight.astype(dtype) for weight in weights])
        (total, (images, meta)), gradients = jax.tree.map(np.asarray, result)
        check_overflow(meta)
        images = dict(zip(("render_rgb", "render_depth_acc", "render_alpha"), images, strict=True))
        return total, images, meta, dict(zip(GRADIENTS, gradients, strict=True))

    return render


def _weights(golden):
    return [golden[f"loss_w_{name}"] for name in ("rgb", "depth", "alpha")]


@functools.cache
def _in_float64(path):
    """Results, the band of each image, and gradients of the loss without the bands."""
    with jax.enable_x64(True):
        render, weights = _renderer(path, np.float64), _weights(_load(path))
        results = render(weights)
        band = flip_band(results[2], MAX_ALPHA)
        return results, band, render(_without(band, weights))[3]


def _without(band, weights):
    return [weight * ~band.reshape(*band.shape, *[1] * (weight.ndim - 3)) for weight in weights]


def _relative(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_scene_in_float64(golden_scene):
    golden = _load(golden_scene)
    (total, images, _, gradients), _, _ = _in_float64(golden_scene)
    for name, image in images.items():
        np.testing.assert_allclose(image, golden[name], rtol=1e-7, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(total, golden["loss"], rtol=1e-10)
    for name, gradient in gradients.items():
        assert _relative(gradient, golden[f"grad_{name}"]) < 1e-7, name


def test_projected_splats_in_float64(golden_scene):
    """The same but for the half-widths: gsplat's classic ones do not depend on opacity."""
    golden = _load(golden_scene)
    _, _, meta, _ = _in_float64(golden_scene)[0]
    meta = {name: meta[name][0] for name in ("means2d", "depths", "conics", "radii", "opacities")}
    seen = np.all(golden["view0_radii"] > 0, -1)
    drawn = np.all(meta["radii"] > 0, -1)
    assert drawn.mean() > 0.01
    assert not np.any(drawn & ~seen)
    for name in ("means2d", "depths", "conics"):
        expected = golden[f"view0_{name}"][drawn]
        np.testing.assert_allclose(meta[name][drawn], expected, rtol=1e-7, err_msg=name)

    a, b, c = np.moveaxis(golden["view0_conics"][seen].astype(np.float64), -1, 0)
    sigma = np.sqrt(np.stack([c, a], -1) / (a * c - b * b)[:, None])
    reach = np.log(np.maximum(meta["opacities"][seen] / ALPHA_MIN, 1)) + LOG_ALPHA_SLACK
    half = np.sqrt(2 * reach)[:, None] * sigma
    means, size = golden["view0_means2d"][seen], [int(golden["width"]), int(golden["height"])]
    inside = np.all((means + half > 0) & (means - half < size), -1)
    expected = np.ceil(half) * (inside & (meta["opacities"][seen] >= ALPHA_MIN))[:, None]
    assert np.mean(np.ceil(3.33 * sigma) != golden["view0_radii"][seen]) < 1e-3
    assert np.mean(expected != meta["radii"][seen]) < 1e-3


def test_scene_in_float32(golden_scene):
    golden = _load(golden_scene)
    (_, _, meta64, _), band, clear_gradients = _in_float64(golden_scene)
    render, weights = _renderer(golden_scene, np.float32), _weights(golden)
    total, images, meta, gradients = render(weights)
    drawn = np.all(meta64["radii"] > 0, -1)
    for name in ("means2d", "depths", "conics"):
        assert _relative(meta[name][drawn], meta64[name][drawn]) < 1e-6, name
    assert band.mean() < 0.03
    for name, image in images.items():
        largest = max(1.0, np.abs(golden[name]).max())
        error = np.abs(image - golden[name]).reshape(*band.shape, -1).max(-1) / largest
        assert error[~band].max() < 5e-6, name
        assert error[band].max() < STATED_NOISE["image"], name
        assert np.mean(error > 5e-6) < 2e-3, name
    np.testing.assert_allclose(total, golden["loss"], rtol=2e-5)
    for name, gradient in gradients.items():
        assert _relative(gradient, golden[f"grad_{name}"]) < STATED_NOISE["gradient"], name
    _, _, _, gradients = render(_without(band, weights))
    for name, gradient in gradients.items():
        assert _relative(gradient, clear_gradients[name]) < 2e-5, name
