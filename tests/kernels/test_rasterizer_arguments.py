"""Wrong arguments are named, with what was expected and what came."""

import dataclasses

import jax
import numpy as np
import pytest
from jaxtyping import config

from jwm_kernels import (
    Distortion,
    FThetaCameraDistortionParameters,
    FThetaPolynomialType,
    RollingShutterType,
    UnscentedTransformParameters,
    bin_tiles,
    blend,
    check_overflow,
    project,
    rasterization,
    render_ids,
    spherical_harmonics,
    suggest_capacity,
)

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
        ({"eps2d": -0.1}, "eps2d: expected a finite value >= 0"),
        ({"capacity": 0}, "capacity: expected a whole number of at least 1, got 0"),
        ({"capacity": 2**31}, r"capacity: expected fewer than 2\^31 slots, got 2147483648"),
        ({"tile_size": 10**6}, "tile_size: expected at most 1024 pixels, got 1000000"),
        ({"near_plane": None}, "near_plane: expected a number, .* got NoneType"),
        ({"eps2d": np.zeros(2)}, "eps2d: expected a number, .* got ndarray"),
        ({"eps2d": np.inf}, "eps2d: expected a finite value >= 0, got inf"),
        ({"host_sort": "x"}, "host_sort: expected True, False or None, got 'x'"),
        ({"with_ut": "no"}, "with_ut: expected True, False or None, got 'no'"),
        ({"viewmats_rs": [1.0]}, "viewmats_rs: expected camera poses.* got list with"),
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
def test_wrong_options(splats, unchecked, options, expected):
    with pytest.raises(ValueError, match=expected):
        _call(splats, **options)


@pytest.fixture
def unchecked(monkeypatch):
    """Without beartype, which in tests stands before every function and refuses what it may see."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.mark.parametrize("function", [project, render_ids, suggest_capacity, rasterization])
@pytest.mark.parametrize(
    ("index", "wrong", "expected"),
    [
        (0, np.zeros((64, 3), np.int32), "means: expected floating point values, got dtype int32"),
        (0, None, "means: expected an array, got NoneType"),
        (1, np.zeros((64, 3), np.float32), r"quats: expected shape \[64, 4\], got \(64, 3\)"),
        (1, None, "quats: expected an array, got NoneType"),
        (2, [0.0, 1.0], "scales: expected an array, got list"),
        (3, np.zeros(64, bool), "opacities: expected floating point values, got dtype bool"),
        (4, np.zeros((2, 3, 4), np.float32), r"viewmats: expected shape \[2, 4, 4\], got"),
        (6, 44.5, "width: expected a whole number of at least 1, got 44.5"),
        (7, -1, "height: expected a whole number of at least 1, got -1"),
        (7, True, "height: expected a whole number of at least 1, got True"),
    ],
)
def test_every_entry_checks_the_scene(splats, unchecked, function, index, wrong, expected):
    arguments = [*splats.arrays[:4], *splats.arrays[5:], 44, 28]
    arguments[index] = wrong
    if function is rasterization:
        arguments.insert(4, splats.colors)
    with pytest.raises(ValueError, match=expected):
        function(*arguments)


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        (project, {"near_plane": -1.0}, "near_plane, far_plane: expected 0 <= near < far"),
        (project, {"eps2d": float("nan")}, "eps2d: expected a finite value >= 0, got nan"),
        (project, {"distortion": {}}, "distortion: expected Distortion, got dict"),
        (
            project,
            {"ut_params": 0.1},
            "ut_params: expected UnscentedTransformParameters, got float",
        ),
        (project, {"covars": _coefficients(64, 3)}, r"covars: expected shape \[64, 3, 3\], got"),
        (project, {"covars": _coefficients(64, 3, 3), "with_ut": True}, "covars: expected None"),
        (suggest_capacity, {"tile_size": 8.0}, "tile_size: expected a whole number .* got 8.0"),
        (suggest_capacity, {"margin": 0.0}, "margin: expected a finite value > 0, got 0.0"),
        (suggest_capacity, {"backend": "cuda"}, "backend: expected one of auto, xla"),
        (render_ids, {"k": 1.0}, "k: expected a whole number of at least 1, got 1.0"),
        (render_ids, {"capacity": 2.5}, "capacity: expected a whole number of at least 1, got 2.5"),
    ],
)
def test_options_of_the_stages(splats, unchecked, function, options, expected):
    with pytest.raises(ValueError, match=expected):
        function(*splats.arrays[:4], *splats.arrays[5:], 44, 28, **options)


@pytest.fixture(scope="module")
def stages(splats):
    """A projection, colours of every camera, and the lists of tiles of 8 pixels."""
    projection = jax.jit(lambda *a: project(*a, 44, 28))(*splats.arrays[:4], *splats.arrays[5:])
    lists = jax.jit(lambda p: bin_tiles(p, 44, 28, tile_size=8, capacity=2048))(projection)
    return projection, np.stack([splats.colors] * 2), lists


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"projection": None}, "projection: expected Projection, got NoneType"),
        (
            {"depths": _coefficients(64)},
            r"projection.depths: expected shape \[\*batch, C, N\], got",
        ),
        ({"dets": _coefficients(2, 63)}, r"projection.dets: expected shape \[2, 64\], got \(2, 63"),
        ({"means2d": np.zeros((2, 64, 2), int)}, "projection.means2d: expected floating point"),
        ({"tile_size": 0}, "tile_size: expected a whole number of at least 1, got 0"),
        ({"capacity": 1e4}, "capacity: expected a whole number of at least 1, got 10000.0"),
        ({"width": 44.0}, "width: expected a whole number of at least 1, got 44.0"),
    ],
)
def test_arguments_of_bin_tiles(stages, unchecked, changes, expected):
    arguments = {"width": 44, "height": 28, "tile_size": 8, "capacity": 2048} | changes
    fields = {name: arguments.pop(name) for name in changes if hasattr(stages[0], name)}
    projection = arguments.pop("projection", stages[0]._replace(**fields))
    with pytest.raises(ValueError, match=expected):
        bin_tiles(projection, **arguments)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"features": _coefficients(64, 3)},
            r"features: expected shape \[2, 64, 3\], got \(64, 3\)",
        ),
        ({"features": np.zeros((2, 64, 3), int)}, "features: expected floating point values"),
        ({"lists": ()}, "lists: expected TileLists, got tuple"),
        ({"tile_size": 16}, r"lists.starts: expected shape \[12\], got \(48,\)"),
        ({"max_alpha": 1.0}, "max_alpha: expected a value between 0 and 1"),
        ({"height": 28.0}, "height: expected a whole number of at least 1, got 28.0"),
        ({"means2d_probe": _coefficients(64, 2)}, r"means2d_probe: expected shape \[2, 64, 2\]"),
    ],
)
def test_arguments_of_blend(stages, unchecked, changes, expected):
    projection, features, lists = stages
    arguments = {"features": features, "lists": lists, "width": 44, "height": 28, "tile_size": 8}
    with pytest.raises(ValueError, match=expected):
        blend(projection, **arguments | changes)


@pytest.mark.parametrize("degree", [1.5, True, -1, 5, "2"])
def test_degrees(splats, unchecked, degree):
    coefficients = _coefficients(64, 25, 3)
    with pytest.raises(ValueError, match=r"sh_degree: expected a whole number from 0 to 4, got"):
        _call(splats, {"colors": coefficients}, sh_degree=degree)
    with pytest.raises(ValueError, match=r"degrees_to_use: expected a whole number from 0 to 4"):
        spherical_harmonics(degree, splats.means, coefficients)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("angle_to_pixeldist_poly", [0.0] * 5, r"shape \[6\] or \[2, 6\], got \[0.0, 0.0"),
        ("pixeldist_to_angle_poly", _coefficients(3, 6), r"shape \[6\] or \[2, 6\], got array"),
        ("max_angle", _coefficients(1), r"shape \[\] or \[2\], got array"),
        ("linear_cde", ["1", "0", "0"], r"shape \[3\] or \[2, 3\], got \['1'"),
        ("linear_cde", None, r"shape \[3\] or \[2, 3\], got None"),
        ("reference_poly", 0, "expected FThetaPolynomialType, got int"),
    ],
)
def test_numbers_of_an_ftheta_lens(splats, unchecked, field, value, expected):
    lens = dataclasses.replace(FTHETA.ftheta_coeffs, **{field: value})
    with pytest.raises(ValueError, match=rf"distortion.ftheta_coeffs.{field}: .*{expected}"):
        _call(splats, camera_model="ftheta", distortion=Distortion(ftheta_coeffs=lens))


def test_colors_are_needed_for_colors_only(splats, unchecked):
    with pytest.raises(ValueError, match="colors: expected an array, got NoneType"):
        _call(splats, {"colors": None})
    depth, _, _ = jax.eval_shape(lambda: _call(splats, {"colors": None}, render_mode="D"))
    assert depth.shape == (2, 28, 44, 1)


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
    with pytest.raises(ValueError, match="coeffs: degrees_to_use 2 needs at least 9 coefficients"):
        spherical_harmonics(2, np.zeros((64, 3), np.float32), coefficients)


def test_directions_fit_the_coefficients(unchecked):
    with pytest.raises(ValueError, match=r"dirs: expected shape \[64, 3\], got \(63, 3\)"):
        spherical_harmonics(1, np.zeros((63, 3), np.float32), np.zeros((64, 4, 3), np.float32))
    with pytest.raises(ValueError, match="dirs: expected floating point values, got dtype int32"):
        spherical_harmonics(1, np.zeros((64, 3), np.int32), np.zeros((64, 4, 3), np.float32))
