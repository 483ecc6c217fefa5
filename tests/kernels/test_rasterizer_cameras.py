"""The unscented transform: its limits, the rolling shutter, and derivatives in every camera."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    RollingShutterType,
    UnscentedTransformParameters,
    gsplat,
    project,
    rasterization,
)

SIZE = (44, 28)
RADIAL = np.array([[0.08, -0.03, 0.01, 0.02]] * 2)
TO_BOTTOM = RollingShutterType.ROLLING_TOP_TO_BOTTOM


def _ftheta(reference, focal=35.0, **changes):
    values = {
        "reference_poly": reference,
        "pixeldist_to_angle_poly": np.array([0, 1 / focal, 0, 0, 0, 0]),
        "angle_to_pixeldist_poly": np.array([0, focal, 0, 0, 0, 0]),
        "max_angle": np.array(1.5),
        "linear_cde": np.array([1.0, 0, 0]),
    }
    return Distortion(ftheta_coeffs=FThetaCameraDistortionParameters(**(values | changes)))


LENSES = {
    "pinhole": ("pinhole", None),
    "opencv": ("pinhole", Distortion(RADIAL, RADIAL[:, :2] / 5, RADIAL / 10)),
    "fisheye": ("fisheye", Distortion(RADIAL / 3)),
    "ftheta": (
        "ftheta",
        _ftheta(
            FThetaPolynomialType.PIXELDIST_TO_ANGLE,
            pixeldist_to_angle_poly=np.array([0, 1 / 35, 1e-5, 1e-7, 1e-9, 1e-11]),
            linear_cde=np.array([1.02, 0.01, -0.02]),
        ),
    ),
}


@pytest.fixture(scope="module")
def end(splats):
    """Camera poses at the end of the frame: 0.4 m further on and turned by 3 degrees."""
    angle = np.deg2rad(3)
    turn = np.eye(4)
    turn[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
    turn[:3, 3] = [0.2, 0.1, -0.4]
    return turn @ splats.viewmats.astype(np.float64)


def _wide(splats):
    arrays = [array.astype(np.float64) for array in splats.arrays]
    return [*arrays[:4], *arrays[5:]]


@pytest.mark.parametrize("camera_model", ["pinhole", "ortho", "fisheye"])
def test_small_gaussians_are_projected_as_by_ewa(splats, camera_model):
    """Both agree to second order in the size of a Gaussian relative to its distance."""
    with jax.enable_x64(True):
        arrays = _wide(splats)
        arrays[2] = arrays[2] * 1e-3
        if camera_model == "ortho":
            arrays[5] = arrays[5] * np.array([0.1, 0.1, 1.0])[:, None]
            arrays[5][:, :2, 2] *= 10
        ewa, ut = (
            project(*arrays, *SIZE, camera_model=camera_model, eps2d=0.0, with_ut=with_ut)
            for with_ut in (False, True)
        )
        seen = np.asarray(ewa.visible & ut.visible)
        assert seen.sum() > 50
        np.testing.assert_allclose(ut.means2d[seen], ewa.means2d[seen], atol=1e-5)
        extra = np.array([1e-6, 0, 1e-6])
        covars = np.asarray(ut.covars2d)[seen] - extra
        scale = np.abs(ewa.covars2d).max(-1, keepdims=True)[seen]
        np.testing.assert_allclose(covars / scale, ewa.covars2d[seen] / scale, atol=2e-4)


def test_a_wide_gaussian_has_the_moments_of_its_samples(splats):
    """Mean and covariance of a million projected samples, within the order of the transform."""
    centre, scales = np.array([0.6, -0.3, 4.0]), np.array([0.5, 0.2, 0.4])
    samples = centre + np.random.default_rng(0).normal(size=(1_000_000, 3)) * scales
    focal, (cx, cy) = splats.Ks[0, 0, 0], splats.Ks[0, :2, 2]
    angle = np.arctan2(np.hypot(*samples.T[:2]), samples[:, 2])
    pixels = samples[:, :2] * (focal * angle / np.hypot(*samples.T[:2]))[:, None] + [cx, cy]
    got = project(
        centre[None].astype(np.float32), np.array([[1, 0, 0, 0]], np.float32),
        scales[None].astype(np.float32), np.ones(1, np.float32), np.eye(4, dtype=np.float32)[None],
        splats.Ks[:1], *SIZE, camera_model="fisheye", with_ut=True, eps2d=0.0,
        ut_params=UnscentedTransformParameters(alpha=1.0),
    )  # fmt: skip
    np.testing.assert_allclose(got.means2d[0, 0], pixels.mean(0), atol=0.02)
    expected = np.cov(pixels.T)[[0, 0, 1], [0, 1, 1]]
    np.testing.assert_allclose(got.covars2d[0, 0], expected, atol=0.03 * expected.max())


def test_a_linear_ftheta_lens_is_an_equidistant_fisheye(splats):
    """Apart from the origin of its pixels, half a pixel further on."""
    Ks = splats.Ks.copy()
    Ks[:, 0, 0] = Ks[:, 1, 1] = 35.0
    shifted = Ks.copy()
    shifted[:, :2, 2] -= 0.5
    arrays = (*splats.arrays[:4], splats.viewmats)
    fisheye = project(*arrays, Ks, *SIZE, camera_model="fisheye", with_ut=True)
    for reference in FThetaPolynomialType:
        ftheta = project(
            *arrays, shifted, *SIZE, camera_model="ftheta", distortion=_ftheta(reference)
        )
        seen = np.asarray(fisheye.visible & ftheta.visible)
        assert seen.sum() > 60
        for name in ("means2d", "covars2d", "depths"):
            got, expected = getattr(ftheta, name), getattr(fisheye, name)
            np.testing.assert_allclose(got[seen], expected[seen], rtol=2e-3, atol=2e-3)


def test_a_camera_at_rest_has_no_rolling_shutter(splats):
    still = project(*splats.arrays[:4], *splats.arrays[5:], *SIZE, with_ut=True)
    rolling = project(
        *splats.arrays[:4], *splats.arrays[5:], *SIZE,
        rolling_shutter=TO_BOTTOM, viewmats_rs=splats.viewmats,
    )  # fmt: skip
    for got, expected in zip(rolling, still, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shutter", [s for s in RollingShutterType if s.name != "GLOBAL"])
def test_a_point_is_seen_from_where_the_camera_is_when_its_line_is_read(splats, end, shutter):
    """Tiny Gaussians; pose by matrix logarithm and exponential, an independent interpolation."""
    with jax.enable_x64(True):
        arrays = _wide(splats)
        arrays[2] = np.full_like(arrays[2], 1e-7)
        got = project(*arrays, *SIZE, rolling_shutter=shutter, viewmats_rs=end)
    forwards = "TOP_TO" in shutter.name or "LEFT_TO" in shutter.name
    vertical = "TOP" in shutter.name
    checked = 0
    for camera, point in np.argwhere(np.asarray(got.visible)):
        pixel = np.asarray(got.means2d[camera, point])
        place, lines = (pixel[1], SIZE[1]) if vertical else (pixel[0], SIZE[0])
        if abs(place - np.round(place)) < 1e-3:
            continue
        line = np.floor(place) if forwards else lines - np.ceil(place)
        poses = [
            _pose_between(arrays[4][camera], end[camera], (line + shift) / (lines - 1))
            for shift in (0, 1, -1)
        ]
        K, mean = arrays[5][camera], arrays[0][point]
        errors = [np.abs(_seen_at(pose, K, mean) - pixel).max() for pose in poses]
        assert min(errors) < 1e-3  # a point may alternate between two lines
        checked += errors[0] < 1e-3
    assert checked > 60


def _seen_at(pose, K, mean):
    ray = K @ (pose @ np.append(mean, 1.0))[:3]
    return ray[:2] / ray[2]


def _pose_between(start, end, time):
    relative = end[:3, :3] @ start[:3, :3].T
    values, vectors = np.linalg.eig(relative)
    turned = (vectors * np.exp(time * np.log(values))) @ np.linalg.inv(vectors)
    pose = np.eye(4)
    pose[:3, :3] = turned.real @ start[:3, :3]
    pose[:3, 3] = (1 - time) * start[:3, 3] + time * end[:3, 3]
    return pose


@pytest.mark.parametrize("name", LENSES)
def test_gradients_equal_finite_differences(splats, end, name):
    """In every input, the end of a rolling shutter and the coefficients of the lens included."""
    camera_model, distortion = LENSES[name]
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        inputs = [*_wide(splats), end, distortion]
        weights = random.normal(size=(2, 64, 8))

        def loss(inputs):
            *arrays, end, distortion = inputs
            splats = project(
                *arrays, *SIZE, camera_model=camera_model, distortion=distortion, viewmats_rs=end,
                rolling_shutter=TO_BOTTOM, antialiased=True,
            )  # fmt: skip
            values = jnp.concatenate(
                [
                    splats.means2d, splats.depths[..., None], splats.covars2d,
                    splats.opacities[..., None], jnp.log(splats.dets)[..., None],
                ], -1,
            )  # fmt: skip
            return jnp.sum(jnp.where(splats.visible[..., None], weights * values, 0.0))

        both = jax.jit(jax.value_and_grad(loss))
        gradients = both(inputs)[1]
        leaves, tree = jax.tree.flatten(inputs)
        step = 1e-7
        for index, gradient in enumerate(jax.tree.leaves(gradients)):
            size = np.abs(leaves[index])
            size = size if size.shape == (6,) else size.mean()  # terms of a polynomial differ
            direction = random.normal(size=gradient.shape) * size
            moved = [
                tree.unflatten(
                    [*leaves[:index], leaves[index] + s * direction, *leaves[index + 1 :]]
                )
                for s in (step, -step)
            ]
            difference = float(both(moved[0])[0] - both(moved[1])[0]) / (2 * step)
            slope = float(jnp.sum(gradient * direction))
            assert difference == pytest.approx(slope, rel=1e-4, abs=1e-3), index


def test_rendering_through_a_lens_under_jit_and_vmap(splats):
    """Distortion is an ordinary traced input, and batch axes go along."""
    size = (splats.width, splats.height)
    lens = Distortion(radial_coeffs=RADIAL.astype(np.float32))
    arrays = splats.arrays

    def image(Ks, lens):
        return rasterization(*arrays[:6], Ks, *size, distortion=lens, capacity=4096)[0]

    one = jax.jit(image)(splats.Ks, lens)
    twice = jax.tree.map(lambda array: np.stack([array] * 2), (splats.Ks, lens))
    many = jax.jit(jax.vmap(image))(*twice)
    np.testing.assert_allclose(many[1], one, atol=1e-5)
    plain = jax.jit(lambda: rasterization(*arrays, *size)[0])()
    assert np.abs(one - plain).max() > 0.05


def test_a_call_written_for_gsplat(splats, render):
    """Its keywords for memory layouts and lenses; what does not exist here is refused."""
    radial = RADIAL.astype(np.float32)

    @jax.jit
    def image(radial):
        return gsplat.rasterization(
            *splats.arrays, *SIZE, packed=False, sparse_grad=False, with_ut=True,
            radial_coeffs=radial, rasterize_mode="classic",
        )[0]  # fmt: skip

    expected = render(*splats.arrays, *SIZE, distortion=Distortion(radial), with_ut=True)[0]
    np.testing.assert_allclose(image(radial), expected, atol=1e-5)
    with pytest.raises(ValueError, match="with_eval3d: not available here"):
        gsplat.rasterization(*splats.arrays, *SIZE, with_eval3d=True)
