"""jit, vmap, batch axes, scan, remat, sharding and export around `rasterization`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jwm_kernels import rasterization

SIZE = (24, 16)


@pytest.fixture(scope="module")
def scenes(splats):
    """Three scenes of 64 splats with one camera each: seven arrays with a leading axis of 3."""
    random = np.random.default_rng(1)
    arrays = [np.stack([array] * 3) for array in splats.arrays[:5]]
    arrays += [np.stack([array[:1]] * 3) for array in splats.arrays[5:]]
    arrays[0] = arrays[0] + random.normal(size=arrays[0].shape).astype(np.float32) * 0.05
    arrays[3] = arrays[3] * np.array([1.0, 0.5, 0.02], np.float32)[:, None]
    return arrays


def _loss(*arrays):
    image, alpha, _ = rasterization(*arrays, *SIZE, render_mode="RGB+ED", capacity=2048)
    return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2)


def _close(got, expected):
    for a, b in zip(got, expected, strict=True):
        b = np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())


@pytest.fixture(scope="module")
def looped(scenes):
    """Gradients of every scene, one after the other."""
    grad = jax.jit(jax.grad(_loss, argnums=tuple(range(7))))
    each = [grad(*(array[k] for array in scenes)) for k in range(3)]
    return [np.stack(parts) for parts in zip(*each, strict=True)]


def test_vmap_of_grad_equals_loop(scenes, looped):
    grad = jax.grad(_loss, argnums=tuple(range(7)))
    _close(jax.jit(jax.vmap(grad))(*scenes), looped)


def test_grad_of_vmap_equals_loop(scenes, looped):
    def total(*arrays):
        return jnp.sum(jax.vmap(_loss)(*arrays))
    _close(jax.jit(jax.grad(total, argnums=tuple(range(7))))(*scenes), looped)


def test_batch_axes_equal_loop(scenes, looped):
    arrays = [array[None] for array in scenes]

    def loss(*arrays):
        image, alpha, _ = rasterization(*arrays, *SIZE, render_mode="RGB+ED", capacity=6144)
        assert image.shape == (1, 3, 1, 16, 24, 4)
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2)

    gradients = jax.jit(jax.grad(loss, argnums=tuple(range(7))))(*arrays)
    _close([gradient[0] for gradient in gradients], looped)


def test_vmap_over_cameras_alone_equals_many_cameras(splats):
    views = np.stack([splats.viewmats[0], splats.viewmats[1], splats.viewmats[0]])
    def render(views):
        return rasterization(
            *splats.arrays[:5], views, splats.Ks[: len(views)], *SIZE, capacity=4096
        )[0]
    one = jax.jit(jax.vmap(lambda view: render(view[None])[0]))(views)
    many = jax.jit(lambda views: render(views))(views[:2])
    np.testing.assert_allclose(one[:2], many, atol=1e-6)
    np.testing.assert_array_equal(one[0], one[2])


def test_scan_and_remat_equal_loop(scenes, looped):
    def total(*arrays):
        def step(carry, scene):
            return carry + jax.checkpoint(_loss)(*scene), None

        return jax.lax.scan(step, 0.0, arrays)[0]

    _close(jax.jit(jax.grad(total, argnums=tuple(range(7))))(*scenes), looped)


def test_sharded_scenes_equal_loop(scenes, looped):
    """A batch spread over devices by `jax.jit`, and by `jax.shard_map`."""
    mesh = jax.make_mesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    arrays = [jax.device_put(array, NamedSharding(mesh, spec)) for array in scenes]
    grad = jax.vmap(jax.grad(_loss, argnums=tuple(range(7))))
    _close(jax.jit(grad)(*arrays), looped)
    mapped = jax.shard_map(grad, mesh=mesh, in_specs=(spec,) * 7, out_specs=(spec,) * 7)
    _close(jax.jit(mapped)(*arrays), looped)


def test_cameras_sharded_with_the_scene_replicated(splats):
    """The gradient of shared Gaussians is summed over the devices that hold the cameras."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def image(means, views, Ks):
        return rasterization(means, *splats.arrays[1:5], views, Ks, *SIZE, capacity=2048)[0]

    mapped = jax.shard_map(image, mesh=mesh, in_specs=(PartitionSpec(), spec, spec), out_specs=spec)
    arguments = (splats.means, splats.viewmats, splats.Ks)
    got = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(mapped(*a)))))(*arguments)
    expected = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(image(*a)))))(*arguments)
    _close([got], [expected])


def test_export_lowers_for_every_platform(splats):
    function = jax.jit(lambda *arrays: rasterization(*arrays, *SIZE, tile_size=8)[:2])
    exported = jax.export.export(function, platforms=("cpu", "tpu", "cuda"))(*splats.arrays)
    assert exported.out_avals[0].shape == (2, 16, 24, 3)


def test_second_call_does_not_compile_again(splats, render):
    render(*splats.arrays, splats.width, splats.height)
    before = render._cache_size()
    render(*(array + 0 for array in splats.arrays), splats.width, splats.height)
    assert render._cache_size() == before


def test_runs_are_repeatable(splats, value_and_grad):
    first, second = value_and_grad(*splats.arrays), value_and_grad(*splats.arrays)
    jax.tree.map(np.testing.assert_array_equal, first, second)
