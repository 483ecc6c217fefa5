"""Equality with gsplat's arrays: projections through every camera, covariances, colours.

The golden arrays were computed in float64 and stored as float32. Computed in float64 here, all must
agree to that rounding. For the unscented transform gsplat reads a camera's pose as translation and
quaternion. Its cameras are stored as float32 matrices, which are rotations to 1e-7 only, so the
rotation of that quaternion is what is compared with (`_posed`): close to a wide lens 1e-7 are up to
2e-5 pixels. The unscented transform is also computed in float32: 99 % of the errors must
stay within the worst of gsplat's own float32 run of the same case, and all of them within the worst
of its cases; under a rolling shutter, where a sigma point may fall on another line, 99 %.
"""

import functools
import json

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
    project,
    quat_scale_to_covar,
    spherical_harmonics,
)
from jwm_kernels.gaussian_rasterizer.projection.lenses import make_lens

pytestmark = pytest.mark.golden

FTHETA_REFERENCES = {
    "fw": FThetaPolynomialType.ANGLE_TO_PIXELDIST,
    "bw": FThetaPolynomialType.PIXELDIST_TO_ANGLE,
}
POINT_CAMERAS = {
    "pinhole": ("pinhole", ""),
    "ortho": ("ortho", ""),
    "opencv": ("pinhole", "opencv"),
    "fisheye": ("fisheye", "fish"),
    "ftheta_fw": ("ftheta", "fw"),
    "ftheta_bw": ("ftheta", "bw"),
}
"""Name in the golden arrays -> camera model, distortion."""


@functools.lru_cache(maxsize=2)
def _load(folder):
    """Arrays, the same in float64, configuration."""
    with np.load(folder / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    wide = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array
        for name, array in arrays.items()
    }
    return arrays, wide, json.loads((folder / "config.json").read_text())


def _distortion(arrays, kind):
    if kind == "":
        return None
    if kind == "opencv":
        names = ("opencv_radial6", "opencv_tangential2", "opencv_thin_prism4")
        return Distortion(*(arrays[name] for name in names))
    if kind == "fish":
        return Distortion(radial_coeffs=arrays["fisheye_radial4"])
    return Distortion(
        ftheta_coeffs=FThetaCameraDistortionParameters(
            reference_poly=FTHETA_REFERENCES[kind],
            pixeldist_to_angle_poly=arrays["ftheta_pixeldist_to_angle"],
            angle_to_pixeldist_poly=arrays["ftheta_angle_to_pixeldist"],
            max_angle=arrays["ftheta_max_angle"],
            linear_cde=arrays["ftheta_linear_cde"],
        )
    )


def _posed(viewmats):
    """The cameras whose rotation is that of the unit quaternion read off the matrix.

    With the largest component q_i = sqrt(1 + s_i) / 2, s_i a signed sum of the diagonal, the others
    follow from sums and differences of the entries beside the diagonal.
    """
    posed = np.array(viewmats, np.float64)
    for matrix in posed.reshape(-1, 4, 4):
        R = matrix[:3, :3]
        signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        squares = 1 + signs @ np.diag(R)
        i = int(np.argmax(squares))
        products = np.array(
            [
                [squares[0], R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]],
                [R[2, 1] - R[1, 2], squares[1], R[1, 0] + R[0, 1], R[0, 2] + R[2, 0]],
                [R[0, 2] - R[2, 0], R[1, 0] + R[0, 1], squares[2], R[2, 1] + R[1, 2]],
                [R[1, 0] - R[0, 1], R[0, 2] + R[2, 0], R[2, 1] + R[1, 2], squares[3]],
            ]
        )
        w, *vector = products[i] / np.linalg.norm(products[i])
        cross = np.cross(np.eye(3), vector)
        matrix[:3, :3] = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    return posed


def _project(arrays, config, splats, opacities, viewmats, camera_model, **options):
    Ks = arrays["Ks_ortho" if camera_model == "ortho" else "Ks"]
    return project(
        *splats, opacities, viewmats, Ks, config["width"], config["height"],
        near_plane=config["near_plane"], far_plane=config["far_plane"], eps2d=config["eps2d"],
        camera_model=camera_model, **options,
    )  # fmt: skip


def _ut_options(arrays, config, case):
    case = config["ut_cases"][case]
    shutter = RollingShutterType[case["rolling_shutter"]]
    moving = shutter is not RollingShutterType.GLOBAL
    return {
        "camera_model": case["camera_model"],
        "distortion": _distortion(arrays, case["distortion"]),
        "rolling_shutter": shutter,
        "viewmats_rs": _posed(arrays["viewmats_end"]) if moving else None,
        "ut_params": UnscentedTransformParameters(**config["ut_params"]),
        "with_ut": True,
        "antialiased": True,
    }


def _loss(projected, wide, counted):
    terms = [
        jnp.sum(projected.means2d * wide["loss_w_means2d"], -1),
        projected.depths * wide["loss_w_depths"],
        jnp.sum(projected.conics * wide["loss_w_conics"], -1),
        projected.compensations * wide["loss_w_comp"],
    ]
    fields = {
        "means2d": projected.means2d,
        "depths": projected.depths,
        "conics": projected.conics,
        "compensations": projected.compensations,
    }
    total = jnp.sum(jnp.where(counted, sum(terms), 0.0))
    return total, (fields, projected.visible, projected.radii)


def _compare(golden, prefix, counted, names, result, gradients):
    total, (fields, visible, radii) = result
    for name, got in fields.items():
        tolerance = 2e-7 if name == "means2d" else 3e-7
        expected = golden[prefix + name][counted]
        np.testing.assert_allclose(
            got[counted], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )
    np.testing.assert_allclose(total, golden[prefix + "loss"], rtol=2e-7)
    for name, gradient in zip(names, gradients, strict=True):
        expected = golden[f"{prefix}grad_{name}"]
        assert np.linalg.norm(gradient - expected) < 3e-7 * np.linalg.norm(expected), name
    both = counted & np.asarray(visible)
    assert both.sum() > 0.97 * counted.sum()
    difference = np.abs(radii - golden[prefix + "radii"])[both]
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.02


def test_ewa_projection_and_its_gradients(golden_ewa):
    folder, camera_model = golden_ewa
    golden, wide, config = _load(folder)
    prefix = f"ewa_{camera_model}_"
    counted = np.all(golden[prefix + "radii"] > 0, -1)
    names = ("means", "quats", "scales", "viewmats")
    with jax.enable_x64(True):

        def loss(means, quats, scales, viewmats):
            opaque = np.ones(means.shape[:-1])
            splats = (means, quats, scales)
            projected = _project(wide, config, splats, opaque, viewmats, camera_model)
            return _loss(projected, wide, counted)

        function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        result, gradients = function(*(wide[name] for name in names))
        _compare(golden, prefix, counted, names, result, gradients)


def test_unscented_projection_and_its_gradients(golden_ut):
    folder, case = golden_ut
    golden, wide, config = _load(folder)
    counted = golden[case + "_stable"]
    names = ("means", "quats", "scales")
    with jax.enable_x64(True):
        options, viewmats = _ut_options(wide, config, case), _posed(wide["viewmats"])

        def loss(*splats):
            projected = _project(wide, config, splats, wide["opacities"], viewmats, **options)
            return _loss(projected, wide, counted)

        function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        result, gradients = function(*(wide[name] for name in names))
        _compare(golden, case + "_", counted, names, result, gradients)


def test_unscented_projection_in_float32_is_as_exact_as_stated(golden_ut):
    folder, case = golden_ut
    golden, _, config = _load(folder)
    options = _ut_options(golden, config, case)
    if options["viewmats_rs"] is not None:
        options["viewmats_rs"] = golden["viewmats_end"]

    @jax.jit
    def fields(*splats):
        projected = _project(
            golden, config, splats, golden["opacities"], golden["viewmats"], **options
        )
        return _loss(projected, golden, True)[1][0]

    got = fields(*(golden[name] for name in ("means", "quats", "scales")))
    stable = golden[case + "_stable"]
    noise = config["ut_float32_error_on_stable"]
    moving = options["rolling_shutter"] is not RollingShutterType.GLOBAL
    for name, values in got.items():
        error = np.abs(values - golden[f"{case}_{name}"])[stable]
        assert np.mean(error > noise[f"{case}_{name}"] + 1e-6) < 0.01, (name, error.max())
        worst = max(noise[f"{other}_{name}"] for other in config["ut_cases"])
        assert moving or error.max() <= worst + 1e-6, (name, error.max())


def test_points_and_their_validity(golden_points):
    folder, name = golden_points
    golden, wide, config = _load(folder)
    camera_model, kind = POINT_CAMERAS[name]
    Ks = wide["Ks_ortho" if camera_model == "ortho" else "Ks"]
    size = config["width"], config["height"]
    centre = Ks[:, None, :2, 2]
    with jax.enable_x64(True):
        lens = make_lens(
            camera_model, jnp.asarray(Ks), *size, _distortion(wide, kind),
            config["camera_point_margin_factor"],
        )  # fmt: skip
        u, v, valid = lens(*jnp.moveaxis(wide["camera_points"], -1, 0))
        back_u, back_v, _ = lens(*jnp.moveaxis(wide[f"cam_{name}_pixels_to_rays"], -1, 0))
    expected_valid = golden[f"cam_{name}_points_valid"]
    np.testing.assert_array_equal(valid, expected_valid)
    got = (np.stack([u, v], -1) + centre)[expected_valid]
    expected = golden[f"cam_{name}_points_to_pixels"][expected_valid]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)
    if camera_model != "ortho":
        invertible = golden[f"cam_{name}_pixels_valid"]
        got = (np.stack([back_u, back_v], -1) + centre)[invertible]
        np.testing.assert_allclose(got, golden["pixels"][invertible], atol=1e-3)


def test_covariances(golden_folder):
    golden, _, _ = _load(golden_folder)
    got = quat_scale_to_covar(golden["quats"], golden["scales"])
    np.testing.assert_allclose(got, golden["covars"], rtol=1e-5, atol=1e-7)


def test_spherical_harmonics_and_their_gradients(golden_sh):
    folder, degree = golden_sh
    golden, _, _ = _load(folder)
    dirs, coeffs = golden["sh_dirs"], golden["sh_coeffs"]

    def loss(coeffs, dirs):
        spread = jnp.broadcast_to(coeffs, (*dirs.shape[:-1], *coeffs.shape[-2:]))
        colors = spherical_harmonics(int(degree), dirs, spread)
        return jnp.sum(colors * golden["loss_w_sh"]), colors

    (_, colors), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(coeffs, dirs)
    np.testing.assert_allclose(colors, golden[f"sh{degree}_colors"], atol=2e-6)
    for name, gradient in zip(("coeffs", "dirs"), gradients, strict=True):
        if (key := f"sh{degree}_grad_{name}") in golden:
            scale = max(1.0, np.abs(golden[key]).max())
            np.testing.assert_allclose(gradient, golden[key], atol=2e-6 * scale)
