"""Mesh, axis rules, sharded init and multi-host set-up."""

from jwm_jax.distributed.compiled import Program, read_compiled
from jwm_jax.distributed.mesh import MESH_AXES, MeshConfig, make_mesh, use_cpu_devices
from jwm_jax.distributed.multihost import HostConfig, initialize
from jwm_jax.distributed.rules import RULES, spec_for
from jwm_jax.distributed.sharding import (
    axis_names,
    batch_sharding,
    constrain,
    gather_to_host,
    init_sharded,
    local_rows,
    put_batch,
    put_rows,
    tree_shardings,
    unbox,
    unnamed_leaves,
)
from jwm_jax.distributed.topology import topology_mesh

__all__ = [
    "MESH_AXES",
    "RULES",
    "HostConfig",
    "MeshConfig",
    "Program",
    "axis_names",
    "batch_sharding",
    "constrain",
    "gather_to_host",
    "init_sharded",
    "initialize",
    "local_rows",
    "make_mesh",
    "put_batch",
    "put_rows",
    "read_compiled",
    "spec_for",
    "topology_mesh",
    "tree_shardings",
    "unbox",
    "unnamed_leaves",
    "use_cpu_devices",
]
