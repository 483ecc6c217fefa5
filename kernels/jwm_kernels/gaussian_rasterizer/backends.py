"""The implementations of the blend by name, which of them `auto` takes, and for which platform.

Pallas is imported when one of its backends is first used.
"""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jwm_kernels.gaussian_rasterizer import blend_xla, validation
from jwm_kernels.gaussian_rasterizer.vjp import Backend

_PACKAGE = "jwm_kernels.gaussian_rasterizer"


def _in_module(name: str, **options) -> Backend:
    def forward(*arguments):
        return importlib.import_module(f"{_PACKAGE}.{name}").forward(*arguments, **options)

    def backward(*arguments):
        return importlib.import_module(f"{_PACKAGE}.{name}").backward(*arguments, **options)

    return Backend(forward, backward)


def gpu_module() -> str:
    """The file behind `pallas_gpu`: the Triton form while jax has it."""
    has_triton = importlib.util.find_spec("jax.experimental.pallas.triton") is not None
    return "blend_triton" if has_triton else "blend_mosaic_gpu"


BACKENDS: dict[str, Backend] = {
    "xla": Backend(blend_xla.forward, blend_xla.backward),
    "pallas_tpu": _in_module("blend_pallas_tpu"),
    "pallas_gpu": _in_module(gpu_module()),
    "mosaic_gpu": _in_module("blend_mosaic_gpu"),
    "interpret": _in_module("blend_pallas_tpu", interpret=True),
}
"""Name -> implementation of the blend. A new one is a file with two functions and a line here."""


PLATFORMS: dict[str, str] = {"pallas_tpu": "tpu", "pallas_gpu": "gpu", "mosaic_gpu": "gpu"}
"""Backends that run on one platform only, and that platform; the others run everywhere."""


def check_backend(name: str) -> None:
    """Raises ValueError unless it is "auto" or a key of `BACKENDS`."""
    validation.check_choice("backend", name, ("auto", *BACKENDS))


def target_platform(backend: str = "auto", mesh: Mesh | None = None) -> str:
    """The platform that a call is traced for.

    Tile size, sort on the host and the backend behind `auto` all follow from it, so that a named
    TPU or GPU backend is all that an export for another platform needs.

    Args:
      backend: "auto" or a key of `BACKENDS`.
      mesh: the devices that will run it, where they are known.

    Returns:
      that of the backend if it has one of its own, otherwise that of the mesh, without one that of
      `jax.default_device`.
    """
    if backend in PLATFORMS:
        return PLATFORMS[backend]
    if mesh is not None:
        return mesh.devices.flat[0].platform
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def choose_backend(name: str, dtype: jnp.dtype, mesh: Mesh | None = None) -> str:
    """The backend behind a name, for `auto` that of the target platform or of a mesh's devices.

    `auto` is decided while tracing: TPUs take `pallas_tpu`, GPUs `pallas_gpu`, all else and every
    dtype but float32 `xla`. One traced function with a branch per platform
    (`jax.lax.platform_dependent`) would trace every kernel everywhere and could not be exported for
    several platforms at once, because Pallas refuses to lower a kernel for a platform not its own.

    Args:
      name: "auto" or a key of `BACKENDS`.
      dtype: of the blended table.
      mesh: the devices that will run it, where they are known.

    Returns:
      a key of `BACKENDS`.
    """
    if name != "auto":
        return name
    if dtype != jnp.float32:
        return "xla"
    return {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}.get(target_platform(mesh=mesh), "xla")
