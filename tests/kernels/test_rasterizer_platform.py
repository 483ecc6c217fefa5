"""Tile size, sort on the host and backend follow from one platform; the sort does not hang."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import bin_tiles, project, rasterization, suggest_capacity
from jwm_kernels.gaussian_rasterizer import api
from jwm_kernels.gaussian_rasterizer.binning.tile_lists import (
    HOST_SORT_SLOTS,
    count_tiles,
    default_host_sort,
    grid_shape,
)
from jwm_kernels.gaussian_rasterizer.capacity import default_capacity, default_tile_size
from jwm_kernels.gaussian_rasterizer.cases import CASES, make_splats
from jwm_kernels.gaussian_rasterizer.platforms import target_platform


@pytest.fixture
def gpu(monkeypatch):
    """A default backend that is a GPU, beside a single CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_device_count", lambda platform=None: 1)


def _decisions(backend="auto"):
    return (
        target_platform(backend),
        default_tile_size(backend),
        default_host_sort(HOST_SORT_SLOTS, backend),
    )


def test_the_default_device_decides(gpu):
    assert _decisions() == _decisions("xla") == ("gpu", 16, False)
    with jax.default_device("cpu"):
        assert _decisions() == _decisions("interpret") == ("cpu", 8, True)
        assert not default_host_sort(HOST_SORT_SLOTS - 1)
    with jax.default_device(jax.devices("cpu")[0]):
        assert _decisions() == ("cpu", 8, True)


def test_a_backend_of_one_platform_decides_before_the_device(gpu):
    with jax.default_device("cpu"):
        assert _decisions("pallas_tpu") == ("tpu", 16, False)
        assert _decisions("pallas_gpu") == _decisions("mosaic_gpu") == ("gpu", 16, False)


def test_export_for_another_platform_needs_only_the_backend(splats, monkeypatch):
    """Even where this machine would sort on its host, which cannot be exported."""
    monkeypatch.setattr(jax, "local_device_count", lambda platform=None: 1)

    def image(*arrays):
        image, _, meta = rasterization(
            *arrays, 44, 28, capacity=HOST_SORT_SLOTS, backend="pallas_tpu"
        )
        assert meta["tile_size"] == 16
        return image

    exported = jax.export.export(jax.jit(image), platforms=("tpu",))(*splats.arrays)
    assert "@tpu_custom_call" in exported.mlir_module()


def test_suggested_capacity_knows_the_tiles_of_the_backend(splats):
    arguments = (*splats.arrays[:4], *splats.arrays[5:], 44, 28)
    got = suggest_capacity(*arguments, backend="pallas_tpu")
    assert got == suggest_capacity(*arguments, tile_size=16) < suggest_capacity(*arguments)


@pytest.mark.parametrize("tile_size", [4, 8, 16, 32])
def test_default_capacity_holds_the_splats_of_a_reconstruction(tile_size):
    splats = make_splats(CASES["tiny"])
    size, n = (splats.width, splats.height), len(splats.means)
    projection = jax.jit(lambda *a: project(*a, *size))(*splats.arrays[:4], *splats.arrays[5:])
    wanted = int(jnp.sum(count_tiles(projection, *size, tile_size)))
    tiles = int(np.prod(grid_shape(*size, tile_size)))
    # Four times the area of its splats, so that a capture seen from close by fits as well.
    assert 2 * wanted <= default_capacity(1, n, tiles, tile_size) < 8 * wanted


@pytest.mark.realdata
@pytest.mark.parametrize("tile_size", [8, 16])
def test_default_capacity_holds_a_capture_that_fills_the_image(tile_size, jwm_data):
    with np.load(jwm_data / "gaussians" / "guitar_trained_golden.npz") as file:
        splats = [file[name] for name in ("means", "quats", "scales", "opacities")]
    means = splats[0]
    centre = np.median(means, axis=0)
    away = np.percentile(np.linalg.norm(means - centre, axis=1), 90)
    viewmat = np.eye(4, dtype=np.float32)
    viewmat[:3, 3] = np.float32([0, 0, away]) - centre
    K = np.float32([[800, 0, 512], [0, 800, 384], [0, 0, 1]])
    projection = jax.jit(lambda *a: project(*a, 1024, 768))(*splats, viewmat[None], K[None])
    wanted = int(jnp.sum(count_tiles(projection, 1024, 768, tile_size)))
    tiles = int(np.prod(grid_shape(1024, 768, tile_size)))
    assert wanted <= default_capacity(1, len(means), tiles, tile_size)


def test_the_table_decides_whether_auto_takes_a_kernel(splats, monkeypatch):
    """Features and projection of two dtypes: no kernel takes the float64 table of the two."""
    chosen = []

    def choose(name, dtype):
        chosen.append(dtype)
        return "xla"

    monkeypatch.setattr(api, "choose_backend", choose)
    with jax.enable_x64(True):
        projection = jax.eval_shape(
            lambda *a: project(*a, 44, 28), *splats.arrays[:4], *splats.arrays[5:]
        )
        lists = jax.eval_shape(
            lambda p: bin_tiles(p, 44, 28, tile_size=8, capacity=256), projection
        )
        for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
            features = jax.ShapeDtypeStruct((2, 64, 3), dtype)
            jax.eval_shape(
                lambda *a: api.blend(*a, 44, 28, tile_size=8), projection, features, lists
            )
    assert chosen == [jnp.float32, jnp.float32, jnp.float64]


def test_a_probe_of_another_dtype_does_not_change_the_result(splats):
    with jax.enable_x64(True):
        probe = np.zeros((2, 64, 2))
        for absgrad in (False, True):
            image, _, _ = jax.eval_shape(
                lambda p, absgrad=absgrad: rasterization(
                    *splats.arrays, 44, 28, means2d_probe=p, absgrad=absgrad
                )[:3],
                probe,
            )
            assert image.dtype == jnp.float32


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.cases import Case, make_splats

splats = make_splats(Case(72_000, 32, 24), sigma=1.0)

def loss(host_sort, *arrays):
    image, alpha, meta = rasterization(
        *arrays, 32, 24, tile_size=4, capacity=620_000, host_sort=host_sort
    )
    return jnp.sum(image**2) + jnp.sum(alpha), meta["isect_total"]

function = jax.value_and_grad(loss, argnums=tuple(range(1, 8)), has_aux=True)
function = jax.jit(function, static_argnums=0)
results = [jax.block_until_ready(function(host_sort, *splats.arrays)) for host_sort in (1, 0)]
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)
print("entries", int(results[0][0][1][0]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux pins to a core")
def test_sorting_on_the_host_works_on_one_core():
    """A callback that waits for a second thread never ends there."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE],
        env=environment, timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > HOST_SORT_SLOTS
