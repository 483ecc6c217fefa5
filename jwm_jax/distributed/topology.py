"""A mesh of TPU chips that are not there, to compile for them ahead of time.

The `libtpu` wheel compiles real TPU executables on any machine. Arrays cannot live on such a mesh,
only shapes with shardings: `jax.jit(f).lower(*shapes).compile()` gives the program that the chips
would run, with its memory, products and collectives.
"""

import math
import os

from jax.experimental import topologies
from jax.sharding import Mesh

from jwm_jax.distributed.mesh import MESH_AXES, MeshConfig
from jwm_jax.errors import UsageError

_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu would otherwise ask a TPU machine's metadata server for."""


def topology_mesh(config: MeshConfig, topology: str) -> Mesh:
    """The mesh over the chips of a TPU slice that need not exist.

    Args:
        config: Axis sizes.
        topology: Generation and shape of the slice, such as "v5p:4x4x4" or "v6e:4x4".

    Returns:
        A mesh with the axes of `make_mesh`; it cannot hold arrays.

    Raises:
        UsageError: There is no libtpu, no such topology, or the sizes do not fit it.
    """
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu and PJRT raise what they like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UsageError(
            f"cannot compile for {topology!r} ({reason}); it takes "
            "`pip install 'jwm_jax[tpu-aot]'` and a slice such as v5p:2x2x1, v5p:4x4x4 or v6e:4x4."
        ) from error
    sizes = config.sizes(len(slice_.devices))
    if math.prod(sizes) != len(slice_.devices):
        raise UsageError(
            f"the mesh {sizes} must use all {len(slice_.devices)} chips of {topology}."
        )
    return topologies.make_mesh(slice_, sizes, MESH_AXES)
