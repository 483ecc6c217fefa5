"""WorldRec's loss and gradient on a mesh against one device: differences, work, what moves.

Eight devices, 8 context pictures; prints a table and a JSON line for each mesh:

    python tests/paradigms/worldrec_on_meshes.py context=8 data=8 fsdp=8 data=2,fsdp=2,context=2
    python tests/paradigms/worldrec_on_meshes.py --real context=8              (the tiny network)
    python launch/local.py --processes 2 --devices 4 -- \\
        python tests/paradigms/worldrec_on_meshes.py fsdp=2,context=4

A mesh has as many scenes as data x fsdp. `flops` is that of a device times the number of devices,
over that of one device alone; `error` the largest difference of a gradient's entry, over the
largest entry of its tensor.
"""

import argparse
import json
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax

from jwm_jax.data.records import encode_clip
from jwm_jax.data.streets import make_clip
from jwm_jax.distributed import (
    MeshConfig,
    gather_to_host,
    init_sharded,
    initialize,
    local_rows,
    make_mesh,
    put_batch,
    read_compiled,
    unbox,
)
from jwm_jax.paradigms.worldrec import WorldRecExperiment
from jwm_jax.paradigms.worldrec_data import Batch, Sampling, make_example
from jwm_jax.worldrec import StageConfig, WorldRecConfig

SMALL = WorldRecConfig(
    height=32,
    cell=(2, 4),
    children=(2, 2),
    width=16,
    hidden=16,
    weight_hidden=8,
    stem=8,
    stages=(StageConfig(8, 1, 1, 1, True), StageConfig(16, 1, 2, 2, True)),
    pyramid=8,
    levels=2,
    norm_group=4,
    max_tracks=4,
    sky=(6, 16),
)


def experiment(real: bool, targets: int) -> WorldRecExperiment:
    """The tiny network at 96 x 160, or a smaller one at 32 x 48."""
    sampling = Sampling(
        max_context=8, targets=targets, span=1.0, instant=0.0, slots=4.0 if real else 12.0
    )
    model = WorldRecConfig() if real else SMALL
    return WorldRecExperiment(name="meshes", model=model, sampling=sampling)


def examples(config: WorldRecExperiment, scenes: int) -> Batch:
    """A batch from one procedural clip."""
    size = {"height": config.model.height, "width": 160 if config.model.height == 96 else 48}
    clip = make_clip(3, "easy", num_frames=12, views=("front_left", "front"), **size)
    record = encode_clip(clip)
    made = [
        make_example(
            config.model, config.sampling, config.columns, record, np.random.default_rng(10 + i)
        )
        for i in range(scenes)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *made)


def measure(config: WorldRecExperiment, batch: Batch, sizes: dict[str, int] | None):
    """((loss, gradients), `Program`) of a step on a mesh, or on one device."""
    task, optimizer = config.task(), optax.adamw(1e-3)

    def init(key):
        params = task.init(key)
        return params, optimizer.init(params)

    def step(state, batch):
        params, moments = state
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, None)
        updates, moments = optimizer.update(grads, moments, params)
        return (loss, grads), (optax.apply_updates(params, updates), moments)

    if sizes is None:
        state = jax.jit(lambda key: unbox(init(key)))(jax.random.key(0))
        compiled = jax.jit(step).lower(state, batch).compile()
        return jax.device_get(compiled(state, batch)[0]), read_compiled(compiled)
    mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
    scenes = batch.images.shape[0]
    mine = local_rows(mesh, scenes)
    with jax.set_mesh(mesh):
        state, shardings = init_sharded(init, jax.random.key(0), mesh)
        rows = put_batch(jax.tree.map(lambda x: np.asarray(x)[None, mine], batch), mesh, scenes)
        rows = jax.tree.map(lambda x: x[0], rows)
        out = ((None, shardings[0]), shardings)
        compiled = jax.jit(step, out_shardings=out).lower(state, rows).compile()
        result = gather_to_host(compiled(state, rows)[0])
    return result, read_compiled(compiled, mesh, state[0])


def compare(config: WorldRecExperiment, sizes: dict[str, int]) -> dict:
    """What one mesh gives, beside one device."""
    batch = examples(config, sizes.get("data", 1) * sizes.get("fsdp", 1))
    (loss, grads), one = measure(config, batch, None)
    (split_loss, split_grads), program = measure(config, batch, sizes)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    errors = {
        jax.tree_util.keystr(path, simple=True, separator="."): float(
            np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(np.float32).tiny)
        )
        for (path, a), b in zip(leaves, jax.tree.leaves(split_grads), strict=True)
    }
    worst = max(errors, key=errors.get)
    devices = int(np.prod(list(sizes.values())))
    if jax.process_index() == 0:
        print(program.table(), flush=True)
    return {
        "mesh": sizes,
        "loss": abs(float(split_loss - loss) / float(loss)),
        "error": errors[worst],
        "worst": worst,
        "over": sorted(name for name, error in errors.items() if error > 1e-5),
        "flops": program.flops * devices / one.flops,
        "elementwise": program.elementwise * devices / one.elementwise,
        "moves": sorted({(c.kind, *c.axes, c.moves) for c in program.collectives}),
    }


def main(arguments: list[str]) -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--targets", type=int, default=2)
    parser.add_argument("meshes", nargs="+")
    given = parser.parse_args(arguments)
    if "JWM_NUM_PROCESSES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", 8)
    initialize()
    config = experiment(given.real, given.targets)
    for text in given.meshes:
        sizes = {name: int(size) for name, size in (part.split("=") for part in text.split(","))}
        result = compare(config, sizes)
        if jax.process_index() == 0:
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
