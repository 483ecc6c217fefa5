"""Wrong arguments are named, with what was expected and what came."""

import numpy as np
import pytest

from jwm_kernels import rasterization, spherical_harmonics


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
            {"camera_model": "fisheye"},
            "camera_model: expected one of pinhole, ortho, got 'fisheye'",
        ),
        ({"render_mode": "rgb"}, "render_mode: expected one of RGB, D, ED"),
        ({"rasterize_mode": "soft"}, "rasterize_mode: expected one of classic, antialiased"),
        ({"backend": "cuda"}, "backend: expected one of auto, xla, got 'cuda'"),
        ({"width": 0}, "width: expected at least 1 pixel, got 0"),
        ({"tile_size": 0}, "tile_size: expected at least 1"),
        ({"max_alpha": 1.0}, "max_alpha: expected a value between 0 and 1"),
        ({"near_plane": 2.0, "far_plane": 1.0}, "near_plane, far_plane"),
        ({"eps2d": -0.1}, "eps2d: expected a value >= 0"),
        ({"capacity": 0}, "capacity: expected at least 1 slot"),
        ({"sh_degree": 1}, r"colors: expected shape \[64, K, 3\]"),
        ({"backgrounds": np.zeros(3, np.float32)}, r"backgrounds: expected shape \[2, 3\]"),
    ],
)
def test_wrong_options(splats, options, expected):
    with pytest.raises(ValueError, match=expected):
        _call(splats, **options)


def test_too_few_coefficients(splats):
    coefficients = np.zeros((64, 4, 3), np.float32)
    with pytest.raises(ValueError, match="sh_degree 2 needs at least 9 coefficients"):
        _call(splats, {"colors": coefficients}, sh_degree=2)
    with pytest.raises(ValueError, match="degree 2 needs at least 9"):
        spherical_harmonics(2, np.zeros((64, 3), np.float32), coefficients)
    with pytest.raises(ValueError, match="expected 0 to 4, got 5"):
        spherical_harmonics(5, np.zeros((64, 3), np.float32), coefficients)
