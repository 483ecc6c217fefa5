"""One scene over several devices gives the image and the gradient of a single device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jwm_kernels import (
    CameraSharding,
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    RollingShutterType,
    SplatSharding,
    check_overflow,
    rasterization,
)
from jwm_kernels.gaussian_rasterizer.cases import Case, make_splats

SIZE = (24, 16)
KINDS = [CameraSharding, SplatSharding]


@pytest.fixture(scope="module")
def mesh():
    """Two by two devices, of which a scene uses one axis; both kinds of axis are used."""
    return jax.make_mesh((2, 2), ("model", "data"), axis_types=(AxisType.Explicit, AxisType.Auto))


@pytest.fixture(scope="module")
def scene():
    """Arrays of 32 splats with SH colours, one of them broken, seen by four cameras."""
    splats = make_splats(Case(32, *SIZE, cameras=4), seed=3, sigma=2.5)
    colors = np.random.default_rng(0).normal(size=(32, 4, 3)).astype(np.float32)
    colors[7, 2, 1] = np.nan
    return [*splats.arrays[:4], colors, *splats.arrays[5:]]


def _render(arrays, sharding, **options):
    image, alpha, meta = rasterization(
        *arrays, *SIZE, render_mode="RGB+ED", capacity=4096, sharding=sharding, **options
    )
    assert meta.pop("n_devices") == (1 if sharding is None else 2)
    return image, alpha, meta


def _gradient(scene, sharding):
    """((loss, (image, alpha, meta)), gradients in the arrays, a probe and the background)."""

    def loss(*inputs):
        *arrays, probe, background = inputs
        image, alpha, meta = _render(
            arrays, sharding, sh_degree=1, means2d_probe=probe, absgrad=True, backgrounds=background
        )
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2), (image, alpha, meta)

    function = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(9)), has_aux=True))
    return function(*scene, np.zeros((4, 32, 2), np.float32), np.full((4, 3), 0.3, np.float32))


def _assert_close(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())


@pytest.fixture(scope="module")
def alone(scene):
    """Results of a single device."""
    return _gradient(scene, None)


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_equals_alone(scene, mesh, alone, kind):
    """Image, alpha, every entry of meta, and the gradient in every input."""
    assert int(alone[0][1][2]["dropped"]) == 1
    _assert_close(_gradient(scene, kind(mesh, "data")), alone)


def test_colors_of_every_camera_and_a_lens(scene, mesh):
    """Colours [C, N, D], a rolling shutter, and an f-theta lens that the cameras share."""
    colors = np.random.default_rng(1).random((4, 32, 3)).astype(np.float32)
    colors[2, 5] = np.inf  # broken for one camera, so dropped for all
    arrays = [*scene[:4], colors, *scene[5:]]
    lens = FThetaCameraDistortionParameters(
        FThetaPolynomialType.ANGLE_TO_PIXELDIST, [0.0] * 6, [0, 19, 0, 0, 0, 0], 1.5, [1, 0, 0]
    )
    end = scene[5].copy()
    end[:, :3, 3] += 0.1

    @jax.jit
    def renders(*arrays):
        options = dict(
            camera_model="ftheta", distortion=Distortion(ftheta_coeffs=lens), viewmats_rs=end,
            rolling_shutter=RollingShutterType.ROLLING_TOP_TO_BOTTOM,
        )  # fmt: skip
        shardings = [None, *(kind(mesh, "model") for kind in KINDS)]
        return [_render(arrays, sharding, **options) for sharding in shardings]

    alone, *sharded = renders(*arrays)
    assert int(alone[2]["dropped"]) == 1
    for one in sharded:
        _assert_close(one, alone)


def test_only_projected_splats_travel(scene, mesh):
    """No collective of a render sees the SH coefficients [N, K, 3]."""

    def image(*arrays):
        return rasterization(*arrays, *SIZE, sh_degree=1, sharding=SplatSharding(mesh, "data"))[0]

    text = jax.jit(image).lower(*scene).as_text()
    assert "all_to_all" in text
    assert "all_gather" not in text


def test_overflow_is_summed_and_capacity_shared_out(scene, mesh):
    viewmats = scene[5].copy()
    viewmats[2:, 2, 3] = -1000.0  # the second device sees nothing and needs no slots
    arrays = [*scene[:5], viewmats, scene[6]]

    def meta(capacity, sharding):
        return rasterization(*arrays, *SIZE, capacity=capacity, sh_degree=1, sharding=sharding)[2]

    short = meta(101, CameraSharding(mesh, "data"))
    assert short["capacity"] == 102
    wanted = np.asarray(short["isect_total"]).reshape(2, 2).sum(1)
    assert short["overflow"] == np.maximum(wanted - 51, 0).sum() > 0
    np.testing.assert_array_equal(short["isect_total"], meta(101, None)["isect_total"])
    with pytest.raises(ValueError, match="capacity: expected at least") as error:
        check_overflow(short)
    enough = int(re.search(r"at least (\d+) slots", str(error.value))[1])
    check_overflow(meta(enough, CameraSharding(mesh, "data")))


def test_what_cannot_be_dealt_out_is_an_error(scene, mesh):
    odd = [array[:31] for array in scene[:5]]
    with pytest.raises(
        ValueError, match=r"means: Gaussians: expected a positive multiple of 2,.*31"
    ):
        rasterization(*odd, *scene[5:], *SIZE, sh_degree=1, sharding=SplatSharding(mesh, "data"))
    odd = [array[:3] for array in scene[5:]]
    with pytest.raises(
        ValueError, match=r"viewmats: cameras: expected a positive multiple .* got 3"
    ):
        rasterization(*scene[:5], *odd, *SIZE, sh_degree=1, sharding=CameraSharding(mesh, "data"))
    with pytest.raises(
        ValueError, match=r"sharding\.axis: expected one of model, data, got 'views'"
    ):
        CameraSharding(mesh, "views")
