"""Compiles the rasterizer for a TPU topology on a machine without one; prints a JSON line each.

Run in a process of its own: libtpu wants its environment before jax starts.

    python compile_for_tpu.py v5e:2x2
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.blending.backends import BACKENDS
from jwm_kernels.gaussian_rasterizer.blending.pallas_tpu import CHUNK, STEPS_MAX
from jwm_kernels.gaussian_rasterizer.blending.vjp import BlendSpec, blend_tiles
from jwm_kernels.gaussian_rasterizer.cases import CASES

GAUSSIANS, WIDTH, HEIGHT, CAMERAS, CAPACITY = 5000, 160, 96, 4, 40_000
BIG, HUGE = CASES["big"], CASES["huge"]
HUGE_SPEC = BlendSpec(HUGE.width, HUGE.height, 16, 0.99)
MOST_ENTRIES = (STEPS_MAX - HUGE_SPEC.tiles_x * HUGE_SPEC.tiles_y) * CHUNK
BLENDS = {
    "one channel, 8 pixels": (1, GAUSSIANS, CAPACITY, BlendSpec(WIDTH, HEIGHT, 8, 0.99)),
    "32 channels, 32 pixels": (32, GAUSSIANS, CAPACITY, BlendSpec(WIDTH, HEIGHT, 32, 0.99)),
    "128 channels, 32 pixels": (128, GAUSSIANS, CAPACITY, BlendSpec(WIDTH, HEIGHT, 32, 0.99)),
    "absgrad": (3, GAUSSIANS, CAPACITY, BlendSpec(WIDTH, HEIGHT, 16, 0.99, absgrad=True)),
    "big": (3, BIG.gaussians, 881_744, BlendSpec(BIG.width, BIG.height, 16, 0.99)),
    "huge": (3, HUGE.gaussians, 4_194_304, HUGE_SPEC),
    "huge, most steps": (3, HUGE.gaussians, MOST_ENTRIES, HUGE_SPEC),
}
"""Name -> channels, rows of the table, list entries (of big and huge what `suggest_capacity` says,
then as many as one call takes), spec."""


def _render(*arrays):
    options = {"tile_size": 16, "backend": "pallas_tpu", "capacity": CAPACITY}
    return rasterization(*arrays, WIDTH, HEIGHT, **options)[:2]


def _render_shapes(shardings):
    shapes = [(GAUSSIANS, 3), (GAUSSIANS, 4), (GAUSSIANS, 3), (GAUSSIANS,), (GAUSSIANS, 3)]
    shapes += [(CAMERAS, 4, 4), (CAMERAS, 3, 3)]
    return [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for shape, sharding in zip(shapes, shardings, strict=True)
    ]


def _blend_shapes(channels, rows, entries, spec, sharding):
    columns = 6 + channels + 2 * spec.absgrad
    tiles = spec.tiles_x * spec.tiles_y
    shapes = [((rows, columns), jnp.float32), ((entries,), jnp.int32)]
    shapes += [((tiles,), jnp.int32)] * 2
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]


def _gradient(function, arguments):
    def loss(*arrays):
        first, second = function(*arrays)
        return jnp.sum(jnp.sin(first)) + jnp.sum(second**2)

    return jax.grad(loss, argnums=tuple(range(arguments)))


def _report(name, function, shapes, **sizes):
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*shapes)
    kernels = lowered.as_text().count("custom_call @tpu_custom_call")
    compiled = lowered.compile()
    result = {
        "name": name,
        "kernels": kernels,
        "seconds": round(time.perf_counter() - start, 1),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        **sizes,
    }
    print(json.dumps(result), flush=True)


def main(topology: str) -> None:
    """Compiles blends, a whole rendering, and one with its cameras spread over four chips."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    one = jax.sharding.SingleDeviceSharding(devices[0])
    for name, (channels, rows, entries, spec) in BLENDS.items():

        def blend(*lists, spec=spec):
            return blend_tiles(*lists, spec, BACKENDS["pallas_tpu"])

        shapes = _blend_shapes(channels, rows, entries, spec, one)
        pixels = spec.tiles_x * spec.tiles_y * spec.tile_size**2
        sizes = {"rows": rows, "entries": entries, "values": pixels * (channels + 1)}
        _report(f"gradient, {name}", _gradient(blend, 1), shapes, **sizes)

    _report("forward, whole", _render, _render_shapes([one] * 7))
    _report("gradient, whole", _gradient(_render, 7), _render_shapes([one] * 7))

    mesh = Mesh(np.array(devices), ("data",))
    specs = (PartitionSpec(),) * 5 + (PartitionSpec("data"),) * 2
    spread = jax.shard_map(_render, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"))
    shapes = _render_shapes([NamedSharding(mesh, spec) for spec in specs])
    _report("gradient, sharded", _gradient(spread, 7), shapes)


if __name__ == "__main__":
    main(sys.argv[1])
