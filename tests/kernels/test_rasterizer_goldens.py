"""Equality with gsplat's arrays: its projection, covariances, SH, and renders of a trained scene.

The golden arrays were computed in float64. Computed in float64 here, everything must agree to the
float32 in which they are stored. In float32, a splat at the edge of a threshold may or may not
count at a pixel: such pixels form a band that must be narrow (few) and shallow (bounded by what one
splat at the threshold can change); all others must agree to rounding.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import project, quat_scale_to_covar, spherical_harmonics
from jwm_kernels.gaussian_rasterizer import rasterization, suggest_capacity

pytestmark = pytest.mark.golden
GRADIENTS = ("means", "quats", "scales", "opacities", "colors")


@pytest.fixture(scope="module")
def guitar(jwm_data):
    path = jwm_data / "gaussians" / "guitar_trained_golden.npz"
    if not path.is_file():
        pytest.skip(f"no golden arrays: {path} does not exist")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module", params=["a"])
def torch_golden(jwm_data, request):
    folder = jwm_data / "golden" / "gsplat_torch" / request.param
    if not folder.is_dir():
        pytest.skip(f"no golden arrays: {folder} does not exist")
    with np.load(folder / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads((folder / "config.json").read_text())


def _render_guitar(golden, dtype):
    arrays = [golden[name].astype(dtype) for name in (*GRADIENTS, "viewmats", "Ks")]
    height, width = int(golden["height"]), int(golden["width"])
    capacity = suggest_capacity(*arrays[:4], *arrays[5:], width, height, tile_size=8)
    background = np.tile(golden["background"].astype(dtype), (2, 1))

    def loss(*splats):
        image, alpha, meta = rasterization(
            *splats, *arrays[5:], width, height, render_mode="RGB+D", tile_size=8,
            backgrounds=background, max_alpha=0.999, capacity=capacity, host_sort=False,
        )  # fmt: skip
        rgb, depth, alpha = image[..., :3], image[..., 3], alpha[..., 0]

        def mean(values):
            return jnp.sum(jnp.mean(values.reshape(2, -1), -1))

        total = mean(rgb * golden["loss_w_rgb"]) + mean(alpha * golden["loss_w_alpha"])
        total += 0.1 * mean(depth * golden["loss_w_depth"])
        return total, (rgb, depth, alpha, meta)

    function = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(5)), has_aux=True))
    (total, result), gradients = function(*arrays[:5])
    return jax.tree.map(np.asarray, (total, *result, gradients))


def test_trained_scene_in_float64(guitar):
    with jax.enable_x64(True):
        total, rgb, depth, alpha, meta, gradients = _render_guitar(guitar, np.float64)
    assert int(meta["overflow"]) == 0
    np.testing.assert_allclose(rgb, guitar["render_rgb"], atol=2e-6)
    np.testing.assert_allclose(depth, guitar["render_depth_acc"], atol=1e-5)
    np.testing.assert_allclose(alpha, guitar["render_alpha"], atol=2e-6)
    np.testing.assert_allclose(total, guitar["loss"], rtol=1e-6)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        expected = guitar[f"grad_{name}"]
        assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected), name


def test_trained_scene_in_float32(guitar):
    total, rgb, _, alpha, meta, gradients = _render_guitar(guitar, np.float32)
    for got, name in ((rgb, "render_rgb"), (alpha, "render_alpha")):
        error = np.abs(got - guitar[name])
        band = error > 1e-5
        assert band.mean() < 5e-3, name
        assert error.max() < 1 / 255, name
    np.testing.assert_allclose(total, guitar["loss"], rtol=1e-4)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        expected = guitar[f"grad_{name}"]
        assert np.linalg.norm(gradient - expected) < 1e-3 * np.linalg.norm(expected), name
    seen = np.all(guitar["view0_radii"] > 0, -1) & np.all(meta["radii"][0] > 0, -1)
    assert seen.sum() > 1000
    for name in ("means2d", "depths", "conics"):
        expected = guitar[f"view0_{name}"][seen]
        np.testing.assert_allclose(meta[name][0][seen], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("camera_model", ["pinhole", "ortho"])
def test_projection_and_its_gradients(torch_golden, camera_model):
    golden, config = torch_golden
    prefix = f"ewa_{camera_model}_"
    visible = np.all(golden[prefix + "radii"] > 0, -1)
    with jax.enable_x64(True):
        wide = {name: golden[name].astype(np.float64) for name in golden if golden[name].ndim}
        Ks = wide["Ks_ortho" if camera_model == "ortho" else "Ks"]

        def loss(means, quats, scales, viewmats):
            splats = project(
                means, quats, scales, np.ones(len(means)), viewmats, Ks, config["width"],
                config["height"], near_plane=config["near_plane"], eps2d=config["eps2d"],
                camera_model=camera_model,
            )  # fmt: skip
            terms = [
                jnp.sum(splats.means2d * wide["loss_w_means2d"], -1),
                splats.depths * wide["loss_w_depths"],
                jnp.sum(splats.conics * wide["loss_w_conics"], -1),
                splats.compensations * wide["loss_w_comp"],
            ]
            return jnp.sum(jnp.where(visible, sum(terms), 0.0)), (splats, splats.conics)

        names = ("means", "quats", "scales", "viewmats")
        function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        (total, (splats, conics)), gradients = function(*(wide[name] for name in names))
    for name, got in (
        ("means2d", splats.means2d),
        ("depths", splats.depths),
        ("conics", conics),
        ("compensations", splats.compensations),
    ):
        expected = golden[prefix + name][visible]
        np.testing.assert_allclose(got[visible], expected, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(total, golden[prefix + "loss"], rtol=1e-6)
    for name, gradient in zip(names, gradients, strict=True):
        expected = golden[f"{prefix}grad_{name}"]
        np.testing.assert_allclose(
            gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max(), err_msg=name
        )
    both = visible & np.asarray(splats.visible)
    assert both.sum() > 0.97 * visible.sum()
    radii = np.where(splats.visible[..., None], np.ceil(splats.extents), 0)
    assert np.abs(radii - golden[prefix + "radii"])[both].max() <= 1


def test_covariances(torch_golden):
    golden, _ = torch_golden
    got = quat_scale_to_covar(golden["quats"], golden["scales"])
    np.testing.assert_allclose(got, golden["covars"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("degree", range(4))
def test_spherical_harmonics_and_their_gradients(torch_golden, degree):
    golden, _ = torch_golden
    dirs, coeffs = golden["sh_dirs"], golden["sh_coeffs"]

    def loss(coeffs, dirs):
        spread = jnp.broadcast_to(coeffs, (*dirs.shape[:-1], *coeffs.shape[-2:]))
        colors = spherical_harmonics(degree, dirs, spread)
        return jnp.sum(colors * golden["loss_w_sh"]), colors

    (_, colors), (grad_coeffs, grad_dirs) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        coeffs, dirs
    )
    np.testing.assert_allclose(colors, golden[f"sh{degree}_colors"], atol=2e-6)
    np.testing.assert_allclose(grad_coeffs, golden[f"sh{degree}_grad_coeffs"], atol=2e-6)
    if degree:
        expected = golden[f"sh{degree}_grad_dirs"]
        np.testing.assert_allclose(grad_dirs, expected, atol=2e-6 * np.abs(expected).max())
