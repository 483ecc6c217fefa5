"""A call that names no capacity draws everything, or says that it cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import CameraSharding, rasterization, render_ids
from jwm_kernels.gaussian_rasterizer import api, capacity
from jwm_kernels.gsplat import rasterization as drop_in

WIDTH, HEIGHT = 96, 64


def huge_splats(count, cameras=1, size=1.5):
    """Splats that each lie over most of the tiles."""
    random = np.random.default_rng(0)
    means = random.uniform(-1, 1, (count, 3)).astype(np.float32) + np.float32([0, 0, 3])
    quats = np.tile(np.float32([1, 0, 0, 0]), (count, 1))
    scales = np.full((count, 3), size, np.float32)
    opacities = random.uniform(0.05, 0.3, count).astype(np.float32)
    colors = random.uniform(size=(count, 3)).astype(np.float32)
    K = np.float32([[60, 0, WIDTH / 2], [0, 60, HEIGHT / 2], [0, 0, 1]])
    views = np.tile(np.eye(4, dtype=np.float32), (cameras, 1, 1))
    return means, quats, scales, opacities, colors, views, np.tile(K, (cameras, 1, 1))


@pytest.fixture(autouse=True)
def small_default(monkeypatch):
    """Splats are taken to be tiny, so that huge ones need more than the default at this size."""
    monkeypatch.setattr(capacity, "SPLAT_WIDTH", 1.0)


@pytest.mark.parametrize("call", [rasterization, drop_in])
def test_everything_is_drawn_without_a_capacity(call):
    splats = huge_splats(300, cameras=2)
    image, _, meta = call(*splats, WIDTH, HEIGHT)
    ample = rasterization(*splats, WIDTH, HEIGHT, capacity=2 * 300 * 12 * 8)
    assert int(meta["overflow"]) == 0 and meta["capacity"] >= np.sum(meta["isect_total"])
    np.testing.assert_allclose(image, ample[0], atol=1e-6)
    default = capacity.default_capacity(2, 300, 96, meta["tile_size"])
    assert np.sum(meta["isect_total"]) > default


def test_nearby_scenes_share_a_program_and_small_ones_the_default():
    drawn = [rasterization(*huge_splats(n), WIDTH, HEIGHT)[2] for n in (300, 300)]
    before = api._rasterize._cache_size()
    smaller = rasterization(*huge_splats(300, size=1.45), WIDTH, HEIGHT)[2]
    assert api._rasterize._cache_size() == before
    assert smaller["capacity"] == drawn[0]["capacity"]
    tiny = rasterization(*huge_splats(300, size=0.01), WIDTH, HEIGHT)[2]
    assert tiny["capacity"] == capacity.default_capacity(1, 300, 96, tiny["tile_size"])


def test_under_jit_what_did_not_fit_is_counted():
    splats = huge_splats(300)
    overflow = jax.jit(lambda *s: rasterization(*s, WIDTH, HEIGHT)[2]["overflow"])(*splats)
    assert int(overflow) > 0
    closed_over = jax.jit(lambda: rasterization(*splats, WIDTH, HEIGHT)[2]["overflow"])()
    assert int(closed_over) == int(overflow)


def test_strongest_gaussians_are_found_among_all():
    means, quats, scales, opacities, _, views, Ks = huge_splats(300)
    arguments = (means, quats, scales, opacities, views, Ks, WIDTH, HEIGHT)
    ids, weights, meta = render_ids(*arguments, k=2)
    assert int(meta["overflow"]) == 0
    ample = render_ids(*arguments, k=2, capacity=300 * 96)
    np.testing.assert_array_equal(ids, ample[0])
    np.testing.assert_allclose(weights, ample[1], atol=1e-6)


def test_devices_with_unequal_cameras_draw_everything_too():
    mesh = jax.make_mesh((2,), ("cameras",), devices=jax.devices()[:2])
    splats = list(huge_splats(300, cameras=2))
    splats[5][1, 2, 3] = 100.0  # the second camera is far away
    image, _, meta = rasterization(*splats, WIDTH, HEIGHT, sharding=CameraSharding(mesh, "cameras"))
    assert int(jnp.max(meta["overflow"])) == 0
    ample = rasterization(*splats, WIDTH, HEIGHT, capacity=2 * 300 * 96)
    np.testing.assert_allclose(image, ample[0], atol=1e-5)


def test_a_shortfall_is_said_aloud():
    with pytest.warns(RuntimeWarning, match="at least 150 slots, got 100"):
        capacity.warn_of_overflow({"capacity": 100, "overflow": jnp.int32(50), "n_devices": 1})
