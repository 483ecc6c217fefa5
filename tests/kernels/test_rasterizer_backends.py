"""Every backend against the XLA backend and against the float64 brute force."""

import functools
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blend_problems import make_problem
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.blending import backends, pallas_tpu, triton
from jwm_kernels.gaussian_rasterizer.blending.backends import BACKENDS, choose_backend
from jwm_kernels.gaussian_rasterizer.blending.vjp import Backend, blend_tiles
from jwm_kernels.gaussian_rasterizer.cases import Case, make_splats
from jwm_kernels.gaussian_rasterizer.reference import rasterization_reference

TRITON = Backend(
    functools.partial(triton.forward, interpret=True),
    functools.partial(triton.backward, interpret=True),
)
KERNELS = {"interpret": BACKENDS["interpret"], "triton": TRITON}
PROBLEMS = {
    "one_channel": {"tile_size": 8, "features": 1, "counts": [0, 5, 128, 0]},
    "long_list": {"tile_size": 16, "features": 3, "counts": [257, 0, 1, 40]},
    "many_channels": {"tile_size": 32, "features": 32, "counts": [129, 60], "sigma": 5.0},
    "absgrad": {"tile_size": 16, "features": 3, "counts": [150, 20], "absgrad": True},
    "saturated": {"tile_size": 8, "counts": [280, 9], "sigma": 30.0, "opacity": 1.0},
}
FLIP = 1e-4
"""Pixels whose alpha or transmittance is this close to a threshold may flip in float32."""


def _assert_columns_close(got, expected, tolerance=1e-5):
    """Each column within a relative L2 distance."""
    scale = np.linalg.norm(expected, axis=0)
    error = np.linalg.norm(np.asarray(got) - expected, axis=0)
    assert np.all(error <= tolerance * scale), error / scale


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_equal_xla(kernel, problem):
    problem = make_problem(**PROBLEMS[problem])
    expected = jax.tree.map(np.asarray, problem.run(BACKENDS["xla"]))
    out, transmittance, gradient = problem.run(KERNELS[kernel])
    np.testing.assert_allclose(out, expected[0], atol=2e-6)
    np.testing.assert_allclose(transmittance, expected[1], atol=1e-6)
    _assert_columns_close(gradient, expected[2])


def test_a_tile_of_any_size_equals_xla():
    """12 pixels are no power of two, and Triton says so."""
    problem = make_problem([130, 3], tile_size=12)
    expected = jax.tree.map(np.asarray, problem.run(BACKENDS["xla"]))
    got = problem.run(BACKENDS["interpret"])
    np.testing.assert_allclose(got[0], expected[0], atol=2e-6)
    _assert_columns_close(got[2], expected[2])


@pytest.mark.parametrize("block_steps", [4, 3])
def test_tpu_kernel_gathers_and_scatters_in_blocks(block_steps, monkeypatch):
    """Seven steps: two blocks of four, then three of three."""
    monkeypatch.setattr(pallas_tpu, "BLOCK_STEPS", block_steps)
    problem = make_problem([257, 0, 1, 40], tile_size=8, spare=100, absgrad=True)
    expected = jax.tree.map(np.asarray, problem.run(BACKENDS["xla"]))
    got = problem.run(BACKENDS["interpret"])
    np.testing.assert_allclose(got[0], expected[0], atol=2e-6)
    _assert_columns_close(got[2], expected[2])


@pytest.mark.parametrize("kernel", KERNELS)
def test_splats_behind_ended_pixels_get_no_gradient(kernel):
    """Walls of alpha 0.99: the second would bring T to the limit, so only the first is counted."""
    problem = make_problem([260, 0], tile_size=8, sigma=1e4, opacity=1.0)
    problem.table[:, 5] = 0.0
    out, transmittance, gradient = problem.run(KERNELS[kernel])
    first = problem.rows[0]
    expected = 0.99 * problem.table[first, 6:, None] * np.ones(64)
    np.testing.assert_allclose(out[0], expected, rtol=1e-5)
    np.testing.assert_allclose(transmittance[0], 0.01, rtol=1e-4)
    assert np.all(np.flatnonzero(np.any(np.asarray(gradient) != 0, 1)) == [first])


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_lists_leave_everything_transparent(kernel):
    out, transmittance, gradient = make_problem([0, 0], tile_size=8).run(KERNELS[kernel])
    assert not np.any(out)
    assert np.all(np.asarray(transmittance) == 1)
    assert not np.any(gradient)


@pytest.mark.parametrize("kernel", ["xla", *KERNELS])
def test_a_broken_pixel_does_not_reach_the_splats_of_other_tiles(kernel):
    problem = make_problem([20, 30], tile_size=8)
    problem.grad_out[0, :, 0] = np.nan
    _, _, gradient = problem.run({**BACKENDS, **KERNELS}[kernel])
    broken = np.any(np.isnan(np.asarray(gradient)), axis=1)
    assert broken.any()
    assert not np.setdiff1d(np.flatnonzero(broken), problem.rows[:20]).size


@functools.cache
def _oracle(channels):
    """Scene, float64 value, clear pixels, loss weights of these alone, and the loss's gradients."""
    splats = make_splats(Case(150, 44, 36), seed=7, sigma=3.0, channels=channels)
    weights = np.random.default_rng(2).normal(size=(1, 36, 44, channels + 2))

    def loss(*arrays):
        image, alpha, margin = rasterization_reference(*arrays, 44, 36)
        values, clear = jnp.concatenate([image, alpha], -1), margin > FLIP
        return jnp.sum(weights * clear[..., None] * values), (values, clear)

    with jax.enable_x64(True):
        arrays = [array.astype(np.float64) for array in splats.arrays]
        grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))
        gradients, (values, clear) = jax.tree.map(np.asarray, grad(*arrays))
    weights = (weights * clear[..., None]).astype(np.float32)
    return splats, values, clear, weights, gradients


@pytest.mark.parametrize(
    ("kernel", "tile_size", "channels"),
    [("interpret", 16, 1), ("interpret", 32, 3), ("interpret", 8, 32), ("triton", 16, 3)],
)
def test_values_and_gradients_equal_brute_force(kernel, tile_size, channels, monkeypatch):
    monkeypatch.setitem(BACKENDS, "triton", TRITON)
    splats, expected, clear, weights, expected_gradients = _oracle(channels)
    assert clear.mean() > 0.95

    def loss(*arrays):
        image, alpha, meta = rasterization(
            *arrays, 44, 36, render_mode="RGB+D", tile_size=tile_size, backend=kernel,
            capacity=4096,
        )  # fmt: skip
        values = jnp.concatenate([image, alpha], -1)
        return jnp.sum(weights * values), (values, meta["overflow"])

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))
    gradients, (got, overflow) = grad(*splats.arrays)
    assert overflow == 0
    got, expected = np.asarray(got)[clear], expected[clear]
    np.testing.assert_allclose(got[:, :-2], expected[:, :-2], atol=5e-6)
    np.testing.assert_allclose(got[:, -2], expected[:, -2], atol=1e-4)
    np.testing.assert_allclose(got[:, -1], expected[:, -1], atol=5e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        error = np.linalg.norm(np.asarray(gradient) - wanted)
        assert error < 5e-5 * np.linalg.norm(wanted)


def test_vmap_over_blends_equals_loop():
    """Members with lists of different lengths, and rows shared by none."""
    problems = [make_problem(counts, tile_size=8, spare=60 - sum(counts), seed=seed)
                for seed, counts in enumerate([[30, 2], [0, 0], [5, 50]])]  # fmt: skip
    names = ("table", "rows", "starts", "counts")
    arguments = [np.stack([getattr(p, name) for p in problems]) for name in names]

    def loss(table, *lists):
        out, transmittance = blend_tiles(table, *lists, problems[0].spec, BACKENDS["interpret"])
        return jnp.sum(jnp.sin(out)) + jnp.sum(transmittance**2)

    got = jax.jit(jax.vmap(jax.grad(loss)))(*arguments)
    one = jax.jit(jax.grad(loss))
    for member in range(3):
        expected = one(*(value[member] for value in arguments))
        np.testing.assert_allclose(got[member], expected, rtol=1e-5, atol=1e-6)


def test_leading_axes_equal_xla(splats, render):
    arrays = [np.stack([array, array]) for array in splats.arrays]
    arrays[0][1] += 0.1
    images = [
        render(*arrays, 30, 20, tile_size=16, capacity=4096, backend=backend)[0]
        for backend in ("xla", "interpret")
    ]
    assert images[0].shape == (2, 2, 20, 30, 3)
    np.testing.assert_allclose(images[1], images[0], atol=2e-6)


def test_cameras_over_eight_devices_equal_one():
    """Values, and gradients of shared Gaussians, which are summed over the devices."""
    splats = make_splats(Case(60, 24, 16, cameras=8), seed=5, sigma=2.0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cameras = PartitionSpec("data")

    def render(means, colors, views, Ks):
        arrays = (means, *splats.arrays[1:4], colors, views, Ks)
        return rasterization(*arrays, 24, 16, tile_size=8, capacity=4096, backend="xla")[:2]

    def outcome(render):
        def loss(*arrays):
            image, alpha = render(*arrays)
            return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2), image

        grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        return grad(splats.means, splats.colors, splats.viewmats, splats.Ks)

    everywhere = PartitionSpec()
    in_specs = (everywhere, everywhere, cameras, cameras)
    spread = jax.shard_map(render, mesh=mesh, in_specs=in_specs, out_specs=cameras)
    gradients, image = outcome(spread)
    expected, expected_image = outcome(render)
    assert len(image.sharding.device_set) == 8
    np.testing.assert_allclose(image, expected_image, atol=1e-6)
    for got, wanted in zip(gradients, expected, strict=True):
        assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_tpu_kernels_have_no_race_and_stay_in_bounds(capfd):
    """The TPU interpreter prints races, raises out of bounds, and fills what is not written."""
    problem = make_problem([130, 0, 3, 1], tile_size=4, spare=0)
    params = pltpu.InterpretParams(
        detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
    )
    checked = Backend(
        functools.partial(pallas_tpu.forward, interpret=params),
        functools.partial(pallas_tpu.backward, interpret=params),
    )
    expected = problem.run(BACKENDS["xla"])
    out, _, gradient = problem.run(checked)
    np.testing.assert_allclose(out, expected[0], atol=2e-6)
    _assert_columns_close(gradient, np.asarray(expected[2]))
    assert "RACE DETECTED" not in "".join(capfd.readouterr())


def test_auto_takes_the_backend_of_the_default_device(monkeypatch):
    def chosen(dtype=jnp.float32):
        return choose_backend("auto", jnp.dtype(dtype))

    assert chosen() == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chosen() == "pallas_gpu"
    assert chosen(jnp.float64) == "xla"
    with jax.default_device(jax.devices("cpu")[0]):
        assert chosen() == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert chosen() == "pallas_tpu"


def test_auto_on_a_mesh_takes_the_backend_of_its_devices():
    def chosen(platform, name="auto", dtype=jnp.float32):
        mesh = Mock(spec=Mesh, devices=np.asarray([[Mock(platform=platform)] * 2]))
        return choose_backend(name, jnp.dtype(dtype), mesh)

    assert (chosen("tpu"), chosen("gpu"), chosen("cpu")) == ("pallas_tpu", "pallas_gpu", "xla")
    assert chosen("tpu", "interpret") == "interpret" and chosen("tpu", dtype=jnp.float64) == "xla"


def test_pallas_gpu_falls_to_mosaic_where_triton_is_gone(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert backends.gpu_module() == "mosaic_gpu"


def test_what_a_kernel_does_not_take_is_an_error():
    wide = make_problem([3], tile_size=33, tiles_x=1, splats=4)
    with pytest.raises(ValueError, match=r"tile_size: .* at most 32 pixels, got 33"):
        wide.run(BACKENDS["pallas_tpu"])
    odd = make_problem([3], tile_size=12, tiles_x=1, splats=4)
    with pytest.raises(ValueError, match=r"tile_size: .* one of \(4, 8, 16, 32\), got 12"):
        odd.run(TRITON)
    with pytest.raises(ValueError, match=r"tile_size: .* one of \(16, 32\), got 12"):
        odd.run(BACKENDS["mosaic_gpu"])
    many = make_problem([3], tile_size=8, tiles_x=1, splats=4, spare=26_000_000)
    with pytest.raises(ValueError, match=r"capacity: 26000003 entries in 1 tiles are 203126 grid"):
        many.run(BACKENDS["pallas_tpu"])
    with jax.enable_x64(True):
        double = make_problem([3], tile_size=16, tiles_x=1, splats=4)
        object.__setattr__(double, "table", double.table.astype(np.float64))
        for backend in (BACKENDS["pallas_tpu"], TRITON, BACKENDS["mosaic_gpu"]):
            with pytest.raises(ValueError, match="needs float32, got float64"):
                double.run(backend)
