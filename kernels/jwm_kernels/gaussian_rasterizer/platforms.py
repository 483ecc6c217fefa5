"""The platform that a call is traced for."""

import jax
from jax.sharding import Mesh

PLATFORMS: dict[str, str] = {"pallas_tpu": "tpu", "pallas_gpu": "gpu", "mosaic_gpu": "gpu"}
"""Backends that run on one platform only, and that platform; the others run everywhere."""


def target_platform(backend: str = "auto", mesh: Mesh | None = None) -> str:
    """The platform that a call is traced for.

    Tile size, sort on the host and the backend behind `auto` all follow from it, so that a named
    TPU or GPU backend is all that an export for another platform needs.

    Args:
      backend: "auto" or a key of `BACKENDS`.
      mesh: the devices that will run it, where they are known.

    Returns:
      that of the backend if it has one of its own, otherwise that of the mesh, without one that of
      the mesh in force (`jax.set_mesh`), which may be a topology that is compiled for, else that of
      `jax.default_device`.
    """
    if backend in PLATFORMS:
        return PLATFORMS[backend]
    if mesh is not None:
        return mesh.devices.flat[0].platform
    in_force = jax.sharding.get_abstract_mesh().abstract_device
    if in_force is not None:
        return in_force.platform
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
