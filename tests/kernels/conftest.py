"""One small scene and one compiled renderer, shared by all tests of the rasterizer.

Golden arrays are found by listing folders: `golden_folder` runs over all variants of gsplat's
functions, `golden_ewa`, `golden_ut`, `golden_points` and `golden_sh` over every camera or degree in
each of them, `golden_scene` over all rendered scenes.
"""

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.cases import Case, Splats, make_splats

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("JWM_DATA", ROOT.parent / "shared" / "data")).expanduser()

STATIC = (
    "width", "height", "tile_size", "render_mode", "rasterize_mode", "camera_model", "max_alpha",
    "capacity", "host_sort", "near_plane", "far_plane", "radius_clip", "eps2d", "sh_degree",
    "backend", "rolling_shutter", "with_ut", "ut_params", "absgrad",
)  # fmt: skip


@pytest.fixture(scope="session")
def splats() -> Splats:
    """64 wide splats seen by two cameras in 44x28 pixels: neither side is a multiple of a tile."""
    return make_splats(Case(64, 44, 28, cameras=2), seed=3, sigma=2.5)


@pytest.fixture(scope="session")
def render():
    """`rasterization`, compiled once for each combination of shapes and options."""
    return jax.jit(rasterization, static_argnames=STATIC)


@pytest.fixture(scope="session")
def weights() -> np.ndarray:
    """Fixed random weights that turn an image of 3 colours, depth and alpha into a loss."""
    return np.random.default_rng(5).normal(size=(2, 28, 44, 5)).astype(np.float32)


@pytest.fixture(scope="session")
def value_and_grad(splats, weights):
    """Loss of the weighted image and its gradient in all seven arrays, for the scene's shapes."""

    def loss(*arrays):
        image, alpha, _ = rasterization(*arrays, splats.width, splats.height, render_mode="RGB+D")
        return jnp.sum(weights * jnp.concatenate([image, alpha], -1))

    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(7))))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Lists the golden arrays that a test asks for."""
    folders = [path for path in sorted(DATA.glob("golden/gsplat_torch/*")) if path.is_dir()]
    listings = {
        "golden_folder": lambda: folders,
        "golden_ewa": lambda: _cases(folders, r"ewa_(\w+)_means2d"),
        "golden_ut": lambda: _cases(folders, r"(ut_\w+)_means2d", "ut_cases"),
        "golden_points": lambda: _cases(folders, r"cam_(\w+)_points_to_pixels"),
        "golden_sh": lambda: _cases(folders, r"sh(\d+)_colors"),
        "golden_scene": lambda: sorted(DATA.glob("gaussians/*_golden.npz")),
    }
    for name in set(metafunc.fixturenames) & set(listings):
        found = listings[name]()
        ids = ["-".join([c[0].name, c[1]]) if isinstance(c, tuple) else c.stem for c in found]
        metafunc.parametrize(name, found, ids=ids, scope="module")


def _cases(folders, pattern, listed_in=None):
    """(folder, name) of every array whose name fits, and of every case the configuration lists."""
    pairs = []
    for folder in folders:
        with np.load(folder / "golden.npz") as file:
            matches = [re.fullmatch(pattern, key) for key in file.files]
        names = {match[1] for match in matches if match and "loss_w" not in match[0]}
        if listed_in is not None:
            names |= set(json.loads((folder / "config.json").read_text())[listed_in])
        pairs += [(folder, name) for name in sorted(names)]
    return pairs
