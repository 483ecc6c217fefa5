"""Kernels for TPU and CUDA lower on a machine that has neither; Mosaic GPU in its interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blend_problems import make_problem

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.blending import mosaic_gpu
from jwm_kernels.gaussian_rasterizer.blending.backends import BACKENDS
from jwm_kernels.gaussian_rasterizer.blending.vjp import Backend

SIZE = (44, 28)


@pytest.fixture
def h200():
    """A GPU that lowering can ask for its kind. jax has no public way to name one."""
    mesh = pytest.importorskip("jax._src.mesh")
    if not hasattr(mesh, "AbstractDevice"):
        pytest.skip("jax has no abstract device any more, so CUDA kernels cannot be lowered here")
    device = mesh.AbstractDevice("NVIDIA H200", None, "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        yield device


def _gradient(backend, **options):
    def loss(*arrays):
        image, alpha, _ = rasterization(*arrays, *SIZE, tile_size=16, backend=backend, **options)
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2)

    return jax.grad(loss, argnums=(0, 1, 2, 3, 4, 5))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(
    ("backend", "call"), [("pallas_gpu", "__gpu$xla.gpu.triton"), ("mosaic_gpu", "mosaic_gpu")]
)
@pytest.mark.parametrize("channels", [3, 40])
def test_forward_and_gradient_lower_for_cuda(splats, h200, backend, call, channels):
    arrays = list(splats.arrays)
    arrays[4] = np.ones((64, channels), np.float32)
    lowered = jax.jit(_gradient(backend)).trace(*arrays).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count(f"custom_call @{call}") == 2


def test_forward_and_gradient_export_for_tpu(splats):
    exported = jax.export.export(jax.jit(_gradient("pallas_tpu")), platforms=("tpu",))
    assert exported(*splats.arrays).mlir_module().count("@tpu_custom_call") == 2


def test_mosaic_gpu_equals_xla_in_its_interpreter():
    """Simulated threads and memories are slow: a tiny problem, its channels in two groups."""
    params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
    interpret = params.InterpretGPUParams()
    backend = Backend(
        functools.partial(mosaic_gpu.forward, interpret=interpret),
        functools.partial(mosaic_gpu.backward, interpret=interpret),
    )
    problem = make_problem([19, 0], tile_size=16, splats=24, features=18, absgrad=True, spare=3)
    expected = jax.tree.map(np.asarray, problem.run(BACKENDS["xla"]))
    out, transmittance, gradient = problem.run(backend)
    np.testing.assert_allclose(out, expected[0], atol=2e-6)
    np.testing.assert_allclose(transmittance, expected[1], atol=1e-6)
    error = np.linalg.norm(np.asarray(gradient) - expected[2], axis=0)
    assert np.all(error <= 1e-5 * np.linalg.norm(expected[2], axis=0))
