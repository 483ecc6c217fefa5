"""Compiles attention for a TPU topology on a machine without one; prints a JSON line each.

Run in a process of its own: libtpu wants its environment before jax starts.

    python compile_attention_for_tpu.py v5e:2x2
"""

import json
import os
import sys
import time

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jwm_jax.distributed.context import framed_attention
from jwm_jax.nn.masks import FrameLengths, Full, Padded, TeacherForcing

CHUNKS = TeacherForcing(clean=12, noisy=(3, 15), chunk=3, window=9, sink=3)
CASES = {
    "base, one clip, both ways": (Full(), 21, 21, 1560, 12, 128, jnp.bfloat16),
    "base, teacher forcing": (CHUNKS, 24, 24, 1560, 12, 128, jnp.bfloat16),
    "base, a chunk from memory": (FrameLengths(15, 7), 3, 15, 1560, 12, 128, jnp.bfloat16),
    "small, padded": (Padded(Full(), 256, 252), 21, 21, 256, 8, 64, jnp.bfloat16),
    "width 48 in float32": (Full(), 5, 5, 240, 4, 48, jnp.float32),
}
"""Name -> mask, frames of queries and of keys, tokens, heads, head_dim, type."""


def main() -> None:
    """Forward and gradient of every case on four chips, the tokens of a frame split over them."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
    devices = np.array(topology.devices).reshape(1, 1, -1, 1)
    axes = ("data", "fsdp", "context", "tensor")
    mesh = Mesh(devices, axes, axis_types=(AxisType.Auto,) * 4)
    layout = NamedSharding(mesh, PartitionSpec(None, None, "context"))
    for name, (mask, queries, keys, tokens, heads, width, dtype) in CASES.items():
        shapes = [
            jax.ShapeDtypeStruct((1, frames, tokens, heads, width), dtype, sharding=layout)
            for frames in (queries, keys, keys)
        ]

        def loss(*arrays, mask=mask):
            return framed_attention(*arrays, mask).astype(jnp.float32).sum()

        for kind, function in (("forward", loss), ("gradient", jax.grad(loss, (0, 1, 2)))):
            begin = time.perf_counter()
            with jax.set_mesh(mesh):
                compiled = jax.jit(function).lower(*shapes).compile()
            text = compiled.as_text()
            result = {
                "name": f"{kind}, {name}",
                "kernels": text.count('custom_call_target="tpu_custom_call"'),
                "all_to_all": text.count(" all-to-all("),
                "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
                "seconds": round(time.perf_counter() - begin, 1),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
