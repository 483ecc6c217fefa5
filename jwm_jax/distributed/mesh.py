"""One device mesh for every model and paradigm.

Four axes are enough: `data` replicates the parameters and splits the batch (the axis that may cross
slices), `fsdp` splits the batch and the parameters, `context` splits tokens, queries or Gaussians,
and `tensor` splits heads and hidden units. A size of 1 switches an axis off.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jwm_jax.errors import UsageError

MESH_AXES = ("data", "fsdp", "context", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes in devices; one of them may be -1 and takes the devices that are left.

    Attributes:
        data: Replicas of the model; the batch is split over them.
        fsdp: Shards of the parameters; the batch is split over them as well.
        context: Shards of a sequence: tokens, queries or Gaussians.
        tensor: Shards of heads and hidden units.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, int, int, int]:
        """The four axis sizes for a number of devices.

        Args:
            num_devices: Devices that are there.

        Returns:
            Sizes of (data, fsdp, context, tensor); their product is at most `num_devices`, and
            equal to it where one size is -1.

        Raises:
            UsageError: When the sizes do not fit the devices.
        """
        given = asdict(self)
        rest = [name for name, size in given.items() if size == -1]
        wrong = [name for name, size in given.items() if size == 0 or size < -1]
        if wrong or len(rest) > 1:
            raise UsageError(
                f"mesh sizes must be positive and at most one may be -1 (the rest), got {given}."
            )
        product = math.prod(size for size in given.values() if size != -1)
        if rest:
            if num_devices % product:
                raise UsageError(
                    f"mesh {given} needs a multiple of {product} devices, but there are "
                    f"{num_devices}; change --mesh.* or the number of devices."
                )
            given[rest[0]] = num_devices // product
        elif product > num_devices:
            raise UsageError(
                f"mesh {given} needs {product} devices, but there are {num_devices}; on CPU add "
                f"--devices {product}, else make --mesh.* smaller."
            )
        return given["data"], given["fsdp"], given["context"], given["tensor"]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Build the mesh with the axes `MESH_AXES`.

    Sizes without a -1 may ask for fewer devices than there are; the first ones are used then. Over
    several processes the mesh has to cover every device, or some process would own none of it.

    Args:
        config: Axis sizes.
        devices: Devices to use; all of them by default.

    Returns:
        A mesh whose axes are all of type Auto, as `constrain` and flax expect.

    Raises:
        UsageError: When the sizes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(devices))
    count = math.prod(sizes)
    if count < len(devices) and jax.process_count() > 1:
        raise UsageError(
            f"mesh {dict(zip(MESH_AXES, sizes, strict=True))} uses {count} of {len(devices)} "
            "devices; over several processes it must use all of them (set one size to -1)."
        )
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=np.array(devices[:count])
    )


def use_cpu_devices(count: int) -> None:
    """Split the host CPU into `count` devices; call it before JAX touches any backend.

    One jitted step keeps little more than one core busy, while the batch split over two devices
    keeps two cores busy. Has no effect on other platforms.

    Args:
        count: Number of CPU devices, at least 1.

    Raises:
        UsageError: When the count is not positive or JAX has already started with another count.
    """
    if count < 1:
        raise UsageError(f"--devices must be at least 1, got {count}.")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if len(jax.local_devices(backend="cpu")) != count:
            raise UsageError(
                f"--devices {count} came after JAX had started; set it before any JAX call."
            ) from error
