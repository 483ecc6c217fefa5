"""The implementations of the blend by name, and which of them `auto` takes.

Pallas is imported when one of its backends is first used.
"""

import importlib
import importlib.util

import jax.numpy as jnp
from jax.sharding import Mesh

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.blending import xla
from jwm_kernels.gaussian_rasterizer.blending.vjp import Backend
from jwm_kernels.gaussian_rasterizer.platforms import target_platform

_PACKAGE = "jwm_kernels.gaussian_rasterizer.blending"


def _in_module(name: str, **options) -> Backend:
    def forward(*arguments):
        return importlib.import_module(f"{_PACKAGE}.{name}").forward(*arguments, **options)

    def backward(*arguments):
        return importlib.import_module(f"{_PACKAGE}.{name}").backward(*arguments, **options)

    return Backend(forward, backward)


def gpu_module() -> str:
    """The file behind `pallas_gpu`: the Triton form while jax has it."""
    has_triton = importlib.util.find_spec("jax.experimental.pallas.triton") is not None
    return "triton" if has_triton else "mosaic_gpu"


BACKENDS: dict[str, Backend] = {
    "xla": Backend(xla.forward, xla.backward),
    "pallas_tpu": _in_module("pallas_tpu"),
    "pallas_gpu": _in_module(gpu_module()),
    "mosaic_gpu": _in_module("mosaic_gpu"),
    "interpret": _in_module("pallas_tpu", interpret=True),
}
"""Name -> implementation of the blend. A new one is a file with two functions and a line here."""


def check_backend(name: str) -> None:
    """Raises ValueError unless it is "auto" or a key of `BACKENDS`."""
    validation.check_choice("backend", name, ("auto", *BACKENDS))


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
