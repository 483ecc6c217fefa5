"""Wrong arguments are named, with what was expected and what came."""

import numpy as np
import pytest

from jwm_kernels import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    RollingShutterType,
    UnscentedTransformParameters,
    check_overflow,
    rasterization,
    render_ids,
    spherical_harmonics,
)
from jwm_kernels.gaussian_rasterizer.validation import check_floating

TO_BOTTOM = RollingShutterType.ROLLING_TOP_TO_BOTTOM
FTHETA = Distortion(
    ftheta_coeffs=FThetaCameraDistortionParameters(
        FThetaPolynomialType.ANGLE_TO_PIXELDIST, [0.0] * 6, [0.0, 30.0] + [0.0] * 4, 1.5, [1, 0, 0]
    )
)


def _coefficients(*shape):
    return np.zeros(shape, np.float32)


def _call(splats, replaced=None, **options):
    arrays = dict(
        zip(
            ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks"),
            splats.arrays,
            strict=True,
        )
    )
    arrays.update(replaced or {})
    return rasterization(*arrays.values(), options.pop("width", 44), 28, **options)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("means", (64, 2), r"means: expected shape \[\*batch, N, 3\], got \(64, 2\)"),
        ("quats", (64, 3), r"quats: expected shape \[64, 4\], got \(64, 3\)"),
        ("scales", (63, 3), r"scales: expected shape \[64, 3\]"),
        ("opacities", (64, 1), r"opacities: expected shape \[64\], got \(64, 1\)"),
        ("colors", (63, 3), r"colors: expected shape \[64, D\] or \[2, 64, D\]"),
        ("viewmats", (4, 4), r"viewmats: expected shape \[C, 4, 4\], got \(4, 4\)"),
        ("Ks", (1, 3, 3), r"Ks: expected shape \[2, 3, 3\], got \(1, 3, 3\)"),
    ],
)
def test_wrong_shapes(splats, name, shape, expected):
    with pytest.raises(ValueError, match=expected):
        _call(splats, {name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"camera_model": "lidar"},
            "camera_model: expected one of pinhole, ortho, fisheye, ftheta, got 'lidar'",
        ),
        ({"render_mode": "rgb"}, "render_mode: expected one of RGB, D, ED"),
        ({"rasterize_mode": "soft"}, "rasterize_mode: expected one of classic, antialiased"),
        ({"backend": "cuda"}, "backend: expected one of auto, xla.* got 'cuda'"),
        ({"width": 0}, "width: expected a whole number of at least 1, got 0"),
        ({"tile_size": 0}, "tile_size: expected a whole number of at least 1, got 0"),
        ({"max_alpha": 1.0}, "max_alpha: expected a value between 0 and 1"),
        ({"near_plane": 2.0, "far_plane": 1.0}, "near_plane, far_plane"),
        ({"eps2d": -0.1}, "eps2d: expected a value >= 0"),
        ({"capacity": 0}, "capacity: expected a whole number of at least 1, got 0"),
        ({"sh_degree": 1}, r"colors: expected shape \[64, K, 3\]"),
        ({"backgrounds": np.zeros(3, np.float32)}, r"backgrounds: expected shape \[2, 3\]"),
        ({"absgrad": True}, r"means2d_probe: expected zeros of shape \[2, 64, 2\].* got None"),
        (
            {"means2d_probe": np.zeros((64, 2), np.float32)},
            r"means2d_probe: expected shape \[2, 64, 2\], got \(64, 2\)",
        ),
        ({"rolling_shutter": TO_BOTTOM}, "viewmats_rs: expected camera poses.* got None"),
        ({"viewmats_rs": _coefficients(2, 4, 4)}, r"viewmats_rs: .* got shape \(2, 4, 4\) with"),
        (
            {"rolling_shutter": TO_BOTTOM, "viewmats_rs": _coefficients(1, 4, 4)},
            r"viewmats_rs: expected shape \[2, 4, 4\], got \(1, 4, 4\)",
        ),
        ({"camera_model": "ftheta"}, "ftheta_coeffs: expected exactly for camera_model 'ftheta'"),
        ({"distortion": FTHETA}, "ftheta_coeffs: .* got some for 'pinhole'"),
        (
            {"distortion": Distortion(radial_coeffs=_coefficients(2, 5))},
            r"distortion.radial_coeffs: expected shape \[2, 4 or 6\], got \(2, 5\)",
        ),
        (
            {"distortion": Distortion(thin_prism_coeffs=_coefficients(4))},
            r"distortion.thin_prism_coeffs: expected shape \[2, 4\], got \(4,\)",
        ),
        (
            {
                "camera_model": "fisheye",
                "distortion": Distortion(tangential_coeffs=_coefficients(2, 2)),
            },
            "distortion.tangential_coeffs: expected None for camera_model 'fisheye'",
        ),
        (
            {"distortion": Distortion(radial_coeffs=_coefficients(2, 4)), "with_ut": False},
            "with_ut: expected True or None",
        ),
    ],
)
def test_wrong_options(splats, options, expected):
    with pytest.raises(ValueError, match=expected):
        _call(splats, **options)


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (np.zeros(3, np.int32), "expected floating point values, got dtype int32"),
        (np.zeros(3, bool), "expected floating point values, got dtype bool"),
        ([0.0, 1.0], "expected an array, got list"),
    ],
)
def test_wrong_dtypes(value, given):
    """At the check itself: in tests beartype stands before the function that calls it."""
    with pytest.raises(ValueError, match=f"scales: {given}"):
        check_floating(means=np.zeros(3), backgrounds=None, scales=value)


def test_parameters_of_the_transform():
    with pytest.raises(ValueError, match="ut_params: expected alpha > 0"):
        UnscentedTransformParameters(alpha=0.0)
    with pytest.raises(ValueError, match=r"beta >= alpha\^2, got alpha 1\.0, kappa 0\.0, beta 0"):
        UnscentedTransformParameters(alpha=1.0, beta=0.0)


def test_number_of_contributors(splats):
    with pytest.raises(ValueError, match="k: expected a whole number of at least 1, got 0"):
        render_ids(*splats.arrays[:4], *splats.arrays[5:], 44, 28, k=0)


def test_overflow_is_an_error_when_asked(splats):
    meta = _call(splats, capacity=100)[2]
    wanted = int(meta["isect_total"].sum())
    with pytest.raises(ValueError, match=f"capacity: expected at least {wanted} slots, got 100"):
        check_overflow(meta)
    check_overflow(_call(splats, capacity=wanted)[2])


def test_too_few_coefficients(splats):
    coefficients = np.zeros((64, 4, 3), np.float32)
    with pytest.raises(ValueError, match="sh_degree 2 needs at least 9 coefficients"):
        _call(splats, {"colors": coefficients}, sh_degree=2)
    with pytest.raises(ValueError, match="degree 2 needs at least 9"):
        spherical_harmonics(2, np.zeros((64, 3), np.float32), coefficients)
    with pytest.raises(ValueError, match="expected 0 to 4, got 5"):
        spherical_harmonics(5, np.zeros((64, 3), np.float32), coefficients)
