"""Renders of trained scenes and their gradients against those of an independent dense torch code.

Computed in float64, everything must agree to the float32 in which the golden arrays are stored. In
float32, a splat at the edge of a threshold may or may not count at a pixel: such pixels form a band
that must be narrow (few) and shallow (bounded by what one splat at the threshold can change); all
others must agree to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import check_overflow, rasterization, suggest_capacity

pytestmark = pytest.mark.golden
GRADIENTS = ("means", "quats", "scales", "opacities", "colors")


@functools.lru_cache(maxsize=1)
def _load(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _render(golden, dtype):
    arrays = [golden[name].astype(dtype) for name in (*GRADIENTS, "viewmats", "Ks")]
    height, width, degree = (int(golden[name]) for name in ("height", "width", "sh_degree"))
    views = len(golden["viewmats"])
    capacity = suggest_capacity(*arrays[:4], *arrays[5:], width, height, tile_size=8)
    background = np.tile(golden["background"].astype(dtype), (views, 1))

    def loss(*splats):
        image, alpha, meta = rasterization(
            *splats, *arrays[5:], width, height, render_mode="RGB+D", tile_size=8,
            sh_degree=None if degree < 0 else degree, backgrounds=background, max_alpha=0.999,
            capacity=capacity, host_sort=False,
        )  # fmt: skip
        rgb, depth, alpha = image[..., :3], image[..., 3], alpha[..., 0]

        def mean(values):
            return jnp.sum(jnp.mean(values.reshape(views, -1), -1))

        total = mean(rgb * golden["loss_w_rgb"]) + mean(alpha * golden["loss_w_alpha"])
        total += 0.1 * mean(depth * golden["loss_w_depth"])
        return total, (rgb, depth, alpha, meta)

    function = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(5)), has_aux=True))
    (total, result), gradients = function(*arrays[:5])
    check_overflow(result[-1])
    return jax.tree.map(np.asarray, (total, *result, gradients))


def test_scene_in_float64(golden_scene):
    golden = _load(golden_scene)
    with jax.enable_x64(True):
        total, rgb, depth, alpha, _, gradients = _render(golden, np.float64)
    np.testing.assert_allclose(rgb, golden["render_rgb"], atol=2e-6)
    np.testing.assert_allclose(depth, golden["render_depth_acc"], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(alpha, golden["render_alpha"], atol=2e-6)
    np.testing.assert_allclose(total, golden["loss"], rtol=1e-6)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        expected = golden[f"grad_{name}"]
        assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected), name


def test_scene_in_float32(golden_scene):
    golden = _load(golden_scene)
    total, rgb, _, alpha, meta, gradients = _render(golden, np.float32)
    for got, name in ((rgb, "render_rgb"), (alpha, "render_alpha")):
        brightest = max(1.0, np.abs(golden[name]).max())
        error = np.abs(got - golden[name])
        band = error > 1e-5 * brightest
        assert band.mean() < 5e-3, name
        assert error.max() < brightest / 255, name
    np.testing.assert_allclose(total, golden["loss"], rtol=1e-4)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        expected = golden[f"grad_{name}"]
        assert np.linalg.norm(gradient - expected) < 1e-3 * np.linalg.norm(expected), name
    seen = np.all(golden["view0_radii"] > 0, -1) & np.all(meta["radii"][0] > 0, -1)
    assert seen.sum() > 0.01 * len(seen)
    for name in ("means2d", "depths", "conics"):
        expected = golden[f"view0_{name}"][seen]
        np.testing.assert_allclose(meta[name][0][seen], expected, rtol=2e-3, atol=2e-4)
