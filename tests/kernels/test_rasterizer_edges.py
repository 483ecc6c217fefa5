"""Degenerate scenes: finite values and gradients, and nothing spoils its neighbours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    Projection,
    RollingShutterType,
    TileLists,
    bin_tiles,
    project,
    rasterization,
    suggest_capacity,
)


def _all_finite(*values) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(values))


BROKEN = [(index, bad) for index in range(5) for bad in (np.nan, -np.inf, 1e30)]


@pytest.mark.parametrize(("index", "bad"), BROKEN)
def test_broken_gaussians_do_not_spoil_others(splats, value_and_grad, index, bad):
    broken = [array.copy() for array in splats.arrays]
    broken[index][::7] = bad
    removed = [array.copy() for array in splats.arrays]
    removed[3][::7] = 0
    value, gradients = value_and_grad(*broken)
    expected, expected_gradients = value_and_grad(*removed)
    assert _all_finite(value, gradients)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    for got in gradients[:5]:
        assert not np.any(got[::7])


def test_broken_gaussians_are_counted(splats, render):
    """A Gaussian that is broken in several ways counts once; colours count where they are used."""
    arrays = [array.copy() for array in splats.arrays]
    size = (splats.width, splats.height)
    assert int(render(*arrays, *size)[2]["dropped"]) == 0
    arrays[0][3, 1], arrays[3][3], arrays[2][5, 0] = np.nan, np.inf, -np.inf
    arrays[4][7, 2] = np.nan
    assert int(render(*arrays, *size)[2]["dropped"]) == 3
    assert int(render(*arrays, *size, render_mode="D")[2]["dropped"]) == 2


BROKEN_CAMERAS = [("viewmats", (1, 3), np.nan), ("Ks", (0, 2), np.inf), ("Ks", (0, 0), 0.0)]


@pytest.mark.parametrize("with_ut", [False, True])
@pytest.mark.parametrize(("name", "place", "bad"), BROKEN_CAMERAS)
def test_a_broken_camera_sees_nothing_and_spoils_nothing(splats, name, place, bad, with_ut):
    size = (splats.width, splats.height)
    harmonics = np.tile(splats.colors[:, None], (1, 4, 1))

    def loss(*arrays):
        image, alpha, meta = rasterization(*arrays, *size, with_ut=with_ut, sh_degree=1)
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2), (image, meta)

    function = jax.value_and_grad(loss, argnums=tuple(range(7)), has_aux=True)
    arrays = [*splats.arrays[:4], harmonics, *splats.arrays[5:]]
    broken = [array.copy() for array in arrays]
    broken[5 if name == "viewmats" else 6][(0, *place)] = bad
    away = [array.copy() for array in arrays]
    away[5][0, 2, 3] = -1000.0
    (value, (image, meta)), gradients = function(*broken)
    (expected, _), expected_gradients = function(*away)
    assert int(meta["dropped_cameras"]) == 1 and int(meta["dropped"]) == 0
    assert not np.any(image[0]) and np.any(image[1])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert not np.any(gradients[5][0]) and not np.any(gradients[6][0])


def test_a_splat_too_small_to_be_seen_has_a_finite_gradient(splats):
    """Without blur the conic of a splat of 1e-5 px would have entries of 1e10."""
    arrays = [array.copy() for array in splats.arrays]
    arrays[2][:8] *= np.geomspace(1e-2, 1e-9, 8, dtype=np.float32)[:, None]

    def loss(*arrays):
        image, alpha, _ = rasterization(*arrays, splats.width, splats.height, eps2d=0.0)
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2)

    assert _all_finite(jax.value_and_grad(loss, argnums=tuple(range(7)))(*arrays))


def test_the_sign_of_a_scale_does_not_matter(splats, render):
    arrays = list(splats.arrays)
    arrays[2] = arrays[2] * np.random.default_rng(0).choice([-1, 1], (64, 3)).astype(np.float32)
    size = (splats.width, splats.height)
    for with_ut in (False, True):
        np.testing.assert_allclose(
            render(*arrays, *size, with_ut=with_ut)[0],
            render(*splats.arrays, *size, with_ut=with_ut)[0],
            atol=1e-5,
        )


def test_extreme_gaussians_give_finite_values_and_gradients(splats, value_and_grad):
    """Each kind at several places among ordinary ones."""
    arrays = extreme_arrays(splats)
    value, gradients = value_and_grad(*arrays)
    assert _all_finite(value, gradients)
    assert not np.any(gradients[3][0:3])


@pytest.mark.parametrize("lens", ["pinhole", "opencv", "fisheye", "ftheta"])
def test_extreme_gaussians_in_every_camera(splats, lens):
    """Through the unscented transform, with a rolling shutter and with SH colours."""
    arrays = extreme_arrays(splats)
    arrays[4] = np.random.default_rng(0).normal(size=(64, 4, 3)).astype(np.float32)
    end = splats.viewmats.copy()
    end[:, :3, 3] += [0.1, -0.05, 0.2]
    radial = np.full((2, 4), 0.05, np.float32)
    camera_model, distortion = {
        "pinhole": ("pinhole", None),
        "opencv": ("pinhole", Distortion(radial, radial[:, :2] / 5, radial / 10)),
        "fisheye": ("fisheye", Distortion(radial)),
        "ftheta": ("ftheta", Distortion(ftheta_coeffs=FTHETA)),
    }[lens]

    def loss(arrays, end, distortion):
        image, alpha, _ = rasterization(
            *arrays, splats.width, splats.height, render_mode="RGB+D", sh_degree=1,
            camera_model=camera_model, distortion=distortion, viewmats_rs=end,
            rolling_shutter=RollingShutterType.ROLLING_TOP_TO_BOTTOM,
        )  # fmt: skip
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha)

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    value, gradients = function(arrays, end, distortion)
    assert _all_finite(value, gradients)
    assert np.any(gradients[0][0]), "something must be visible"


FTHETA = FThetaCameraDistortionParameters(
    reference_poly=FThetaPolynomialType.PIXELDIST_TO_ANGLE,
    pixeldist_to_angle_poly=np.array([0, 1 / 35, 0, 1e-7, 0, 0], np.float32),
    angle_to_pixeldist_poly=np.array([0, 35, 0, 0, 0, 0], np.float32),
    max_angle=np.float32(1.8),
    linear_cde=np.array([1.01, 0.01, -0.01], np.float32),
)


def extreme_arrays(splats) -> list[np.ndarray]:
    """The seven arrays with some Gaussians at the limits of what is legal."""
    means, quats, scales, opacities, *_ = arrays = [array.copy() for array in splats.arrays]
    opacities[0:3] = 0.0
    opacities[3:6] = 1.0
    opacities[6:8] = 1e-20
    scales[8:11] = 1e4  # wider than the image by far
    means[11:13], scales[11:13] = [0.0, 0.0, 0.011], 3.0  # the camera is inside
    means[13:15] = [0.0, 0.0, 0.0]  # at the camera
    means[15:17, 2] *= -1  # behind
    scales[17:19] = 0.0
    scales[19:21, :2] = 0.0  # a needle
    quats[21:23] = 0.0
    quats[23:25] *= 1e-18
    quats[25:27] *= 1e9
    means[27:29] = [1e11, -1e11, 1e9]
    scales[29:31] = 1e11
    return arrays


def test_rescaled_quaternions_change_nothing(splats, value_and_grad):
    arrays = list(splats.arrays)
    arrays[1] = arrays[1] * np.float32(1e-12)
    np.testing.assert_allclose(
        value_and_grad(*arrays)[0], value_and_grad(*splats.arrays)[0], rtol=1e-5
    )


def test_nothing_visible_shows_the_background(splats, render):
    arrays = list(splats.arrays)
    arrays[3] = np.zeros_like(arrays[3])
    background = np.array([[0.2, 0.4, 0.6], [1.0, 0.0, 0.5]], np.float32)
    image, alpha, meta = render(*arrays, splats.width, splats.height, backgrounds=background)
    np.testing.assert_array_equal(image, np.broadcast_to(background[:, None, None], image.shape))
    assert not np.any(alpha)
    assert not np.any(meta["radii"])
    assert not np.any(meta["isect_total"])


def test_no_gaussians_at_all(splats):
    """The background in every pixel, and gradients of the shapes of the empty inputs."""
    arrays = [array[:0] for array in splats.arrays[:4]] + [np.zeros((0, 4, 3), np.float32)]
    background = np.full((2, 3), 0.25, np.float32)

    @jax.jit
    def gradient(*arrays):
        def loss(*arrays):
            image, alpha, meta = rasterization(
                *arrays, *splats.arrays[5:], 20, 12, backgrounds=background, sh_degree=1
            )
            return jnp.sum(image), (image, alpha, meta["radii"])

        return jax.grad(loss, argnums=(0, 4), has_aux=True)(*arrays)

    (grad_means, grad_colors), (image, alpha, radii) = gradient(*arrays)
    np.testing.assert_allclose(image, 0.25)
    assert alpha.shape == (2, 12, 20, 1)
    assert radii.shape == (2, 0, 2)
    assert grad_means.shape == (0, 3)
    assert grad_colors.shape == (0, 4, 3)
    projection = project(*arrays[:4], *splats.arrays[5:], 20, 12)
    for host_sort in (False, True):
        lists = bin_tiles(projection, 20, 12, tile_size=8, capacity=4, host_sort=host_sort)
        assert not np.any(lists.counts) and lists.isect_total.shape == (2,)


def test_one_opaque_wall_hides_what_is_behind(splats, render):
    """Two splats of alpha 0.99 reach the transmittance limit; what is behind gets no weight."""
    arrays = [array.copy() for array in splats.arrays]
    arrays[0][:2] = [[0, 0, 1.0], [0, 0, 1.1]]
    arrays[2][:2], arrays[3][:2] = 50.0, 1.0
    arrays[4][:2] = 0.0
    image, alpha, _ = render(*arrays, splats.width, splats.height)
    assert float(image.max()) < 0.01 * 1.01
    assert float(alpha.min()) >= 0.99
    assert float(alpha.max()) <= 1 - 1e-4


def test_overflow_drops_the_farthest_and_is_counted(splats, render):
    arrays = [array.copy() for array in splats.arrays]
    size = (splats.width, splats.height)
    full = render(*arrays, *size)[2]
    assert int(full["overflow"]) == 0
    near = np.argsort(np.asarray(full["depths"]), axis=None)[:64]
    wanted = np.asarray(full["tiles_per_gauss"]).reshape(-1)
    capacity = int(wanted[near].sum())
    _, lists = _bin(arrays, size, capacity)
    assert int(lists.overflow) == int(full["isect_total"].sum()) - capacity
    listed = np.asarray(lists.rows)[: int(lists.counts.sum())]
    assert set(listed) <= set(near)
    complete = _bin(arrays, size, 4096)[1]
    kept = set(np.asarray(complete.rows)[: int(complete.counts.sum())])
    assert set(listed) == kept & set(near)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _bin(arrays, size, capacity) -> tuple[Projection, TileLists]:
    projection = project(*arrays[:4], *arrays[5:], *size)
    return projection, bin_tiles(projection, *size, tile_size=8, capacity=capacity)


def test_count_beyond_int32_is_reported_not_wrapped():
    """300,000 splats over 10,000 tiles each want 3e9 entries."""
    n = 300_000
    means = np.zeros((n, 3), np.float32)
    means[:, 2] = np.linspace(1, 2, n)
    ones = np.ones((n, 4), np.float32)
    projection = project(
        means, ones, ones[:, :3] * 100, ones[:, 0], np.eye(4, dtype=np.float32)[None],
        np.array([[[800, 0, 400], [0, 800, 400], [0, 0, 1]]], np.float32), 800, 800,
    )  # fmt: skip
    lists = bin_tiles(projection, 800, 800, tile_size=8, capacity=20_000, host_sort=False)
    assert int(lists.isect_total[0]) == 2**31 - 1
    assert int(lists.overflow) > 2**31 - 2**16
    assert int(lists.counts.sum()) == 20_000
    assert set(np.asarray(lists.rows)) == {0, 1}


def test_suggested_capacity_suffices_and_is_bucketed(splats, render):
    arguments = (*splats.arrays[:4], *splats.arrays[5:], splats.width, splats.height)
    capacity = suggest_capacity(*arguments, tile_size=8, margin=1.0)
    meta = render(*splats.arrays, splats.width, splats.height, capacity=capacity)[2]
    assert int(meta["overflow"]) == 0
    assert int(meta["isect_total"].sum()) <= capacity < 1.25 * int(meta["isect_total"].sum())
    assert capacity == suggest_capacity(*arguments, tile_size=8, margin=1.01)


def test_meta_speaks_gsplat(splats, render):
    meta = render(*splats.arrays, splats.width, splats.height)[2]
    assert meta["means2d"].shape == (2, 64, 2)
    assert meta["conics"].shape == (2, 64, 3)
    assert meta["radii"].dtype == jnp.int32
    np.testing.assert_array_equal(meta["tiles_per_gauss"].sum(-1), meta["isect_total"])
    assert (meta["tile_width"], meta["tile_height"]) == (6, 4)
    assert (meta["n_batches"], meta["n_cameras"]) == (1, 2)


def test_depth_modes_agree(splats, render):
    size = (splats.width, splats.height)
    both, alpha, _ = render(*splats.arrays, *size, render_mode="RGB+D")
    color, depth = both[..., :3], both[..., 3:]
    np.testing.assert_allclose(color, render(*splats.arrays, *size)[0], atol=1e-6)
    np.testing.assert_allclose(
        render(*splats.arrays, *size, render_mode="D")[0], depth, rtol=1e-5, atol=1e-5
    )
    expected = depth / np.maximum(alpha, 1e-10)
    got = render(*splats.arrays, *size, render_mode="ED")[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    seen = np.asarray(alpha) > 0
    assert np.all((got[seen] > 2.9) & (got[seen] < 81))
