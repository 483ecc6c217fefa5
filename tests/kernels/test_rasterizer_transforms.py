"""jit, vmap, batch axes, scan, remat, sharding and export around `rasterization`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jwm_kernels import bin_tiles, blend, project, rasterization, render_ids

SIZE = (24, 16)
INPUTS = (0, 3, 5)
"""Gradients are compared for means, opacities and viewmats."""


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
    grad = jax.jit(jax.grad(_loss, argnums=INPUTS))
    each = [grad(*(array[k] for array in scenes)) for k in range(3)]
    return [np.stack(parts) for parts in zip(*each, strict=True)]


def test_grad_of_vmap_equals_loop(scenes, looped):
    def total(*arrays):
        return jnp.sum(jax.vmap(_loss)(*arrays))

    _close(jax.jit(jax.grad(total, argnums=INPUTS))(*scenes), looped)


def test_batch_axes_equal_loop(scenes, looped):
    arrays = [array[None] for array in scenes]

    def loss(*arrays):
        image, alpha, _ = rasterization(*arrays, *SIZE, render_mode="RGB+ED", capacity=6144)
        assert image.shape == (1, 3, 1, 16, 24, 4)
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2)

    gradients = jax.jit(jax.grad(loss, argnums=INPUTS))(*arrays)
    _close([gradient[0] for gradient in gradients], looped)


def test_vmap_over_cameras_alone_equals_many_cameras(splats, render):
    """Unbatched Gaussians are shared by the members of the batch."""
    size = (splats.width, splats.height)

    def one(view, K):
        return rasterization(*splats.arrays[:5], view[None], K[None], *size, capacity=2048)[0][0]

    got = jax.jit(jax.vmap(one))(splats.viewmats, splats.Ks)
    np.testing.assert_allclose(got, render(*splats.arrays, *size)[0], atol=1e-6)


def test_scan_and_remat_equal_loop(scenes, looped):
    def total(*arrays):
        def step(carry, scene):
            return carry + jax.checkpoint(_loss)(*scene), None

        return jax.lax.scan(step, 0.0, arrays)[0]

    _close(jax.jit(jax.grad(total, argnums=INPUTS))(*scenes), looped)


def test_sharded_scenes_equal_loop(scenes, looped):
    """Gradients under vmap, spread over devices by `jax.jit` and by `jax.shard_map`."""
    mesh = jax.make_mesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    arrays = [jax.device_put(array, NamedSharding(mesh, spec)) for array in scenes]
    grad = jax.vmap(jax.grad(_loss, argnums=INPUTS))
    _close(jax.jit(grad)(*arrays), looped)
    mapped = jax.shard_map(grad, mesh=mesh, in_specs=(spec,) * 7, out_specs=(spec,) * 3)
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


def test_sort_on_the_host_within_a_shard_map(splats, render):
    """A mesh of one device, which is where a single CPU sorts on the host."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def image(views, Ks):
        size = (splats.width, splats.height)
        return rasterization(*splats.arrays[:5], views, Ks, *size, host_sort=True)[0]

    mapped = jax.shard_map(image, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    expected = render(*splats.arrays, splats.width, splats.height)[0]
    np.testing.assert_allclose(jax.jit(mapped)(*splats.arrays[5:]), expected, atol=1e-6)


def test_export_lowers_for_every_platform(splats):
    function = jax.jit(lambda *arrays: rasterization(*arrays, *SIZE, tile_size=8)[:2])
    exported = jax.export.export(function, platforms=("cpu", "tpu", "cuda"))(*splats.arrays)
    assert exported.out_avals[0].shape == (2, 16, 24, 3)


def test_second_call_does_not_compile_again(splats, render):
    render(*splats.arrays, splats.width, splats.height)
    before = render._cache_size()
    render(*(array + 0 for array in splats.arrays), splats.width, splats.height)
    assert render._cache_size() == before


def test_calls_outside_jit_compile_once(splats):
    """Values and gradients of the three functions that loop over tiles."""
    arrays, size = splats.arrays, (splats.width, splats.height)

    def image(means):
        return jnp.sum(rasterization(means, *arrays[1:], *size)[0])

    projection = project(*arrays[:4], *arrays[5:], *size)
    lists = bin_tiles(projection, *size, tile_size=8, capacity=4096)
    features = jnp.broadcast_to(splats.colors, (2, 64, 3))

    def blended(features):
        return jnp.sum(blend(projection, features, lists, *size, tile_size=8)[0])

    calls = [
        lambda: image(arrays[0]),
        lambda: jax.grad(image)(arrays[0]),
        lambda: blended(features),
        lambda: jax.grad(blended)(features),
        lambda: render_ids(*arrays[:4], *arrays[5:], *size, k=2),
    ]
    compiled = []

    def note(event, seconds, **labels):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(labels.get("fun_name"))

    for call in calls:
        call()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        for call in calls:
            call()
        assert compiled == []
        jax.jit(lambda x: x + 41)(1.0)
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_runs_are_repeatable(splats, value_and_grad):
    first, second = value_and_grad(*splats.arrays), value_and_grad(*splats.arrays)
    jax.tree.map(np.testing.assert_array_equal, first, second)
