"""Every training on meshes of eight devices against one: differences, work, what moves.

Loss and gradient of the real network on a made-up batch, and the costs of the whole compiled step,
optimiser included; a table and a JSON line for each training and mesh:

    python tests/paradigms/trainings_on_meshes.py codec_tiny data=8 fsdp=8 data=2,fsdp=2,context=2
    python tests/paradigms/trainings_on_meshes.py worldgen_tiny --batch 1 context=8
    python tests/paradigms/trainings_on_meshes.py worldgen_tiny --save one.npz data=8
    python launch/local.py --processes 2 --devices 4 -- \\
        python tests/paradigms/trainings_on_meshes.py worldgen_tiny --reference one.npz fsdp=8

`flops` is that of a device times the number of devices, over that of one device alone with the
whole batch; `error` the largest difference of a gradient's entry over the largest entry of its
tensor. WorldRec's pictures cannot be made up: `worldrec_on_meshes.py` does the same for it.
"""

import argparse
import json
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from jwm_jax.distributed import MeshConfig, gather_to_host, initialize, make_mesh, put_batch
from jwm_jax.distributed.sharding import local_rows
from jwm_jax.training.config import find_config, override
from jwm_jax.training.preview import read_step
from jwm_jax.training.start import frozen_params, layout, starting_params
from jwm_jax.training.step import loss_and_gradients


def made_up(shapes, seed=0):
    """Numbers of the kinds that a batch holds: pictures, latents and conditions, codes."""
    random = np.random.default_rng(seed)

    def one(x):
        if x.dtype == np.uint8:
            return random.integers(0, 256, x.shape, np.uint8)
        if np.issubdtype(x.dtype, np.integer):
            return np.zeros(x.shape, x.dtype)
        return np.abs(random.normal(size=x.shape)).astype(x.dtype).clip(0, 1)

    return jax.tree.map(one, shapes)


def measure(config, batch, sizes):
    """((loss, gradients), `Program`) of a training on a mesh of the first devices."""
    task = config.task()
    mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
    with jax.set_mesh(mesh):
        place = layout(config, task, mesh)
        (phase,) = place.plan.phases
        frozen = frozen_params(config, place)
        params = starting_params(config, place, [phase.net])[phase.net]
        mine = local_rows(mesh, config.batch_size)
        rows = jax.tree.map(lambda x: x[None, mine] if x.ndim else x[None], batch)
        rows = jax.tree.map(lambda x: x[0], put_batch(rows, mesh, config.batch_size))

        def run(params, frozen, rows):
            value, _, grads = loss_and_gradients(phase, 1, params, frozen, rows, jax.random.key(0))
            return value, grads

        shardings = jax.tree.map(lambda x: x.sharding, place.params[phase.net])
        value, grads = jax.jit(run, out_shardings=(None, shardings))(params, frozen, rows)
        return gather_to_host((value, grads)), read_step(task, place)


def abstract_gradients(config):
    """Shapes of the gradients: those of the parameters that the first phase moves."""
    task = config.task()
    place = layout(config, task, make_mesh(MeshConfig(data=1), jax.local_devices()[:1]))
    return place.params[place.plan.phases[0].net]


def compare(config, sizes, alone):
    """What one mesh gives, beside one device's loss, gradients and operations."""
    batch = made_up(config.task().shapes())
    loss, grads, flops = alone
    began = time.monotonic()
    (split_loss, split_grads), program = measure(config, batch, sizes)
    errors = {}
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(split_grads), strict=True
    ):
        scale = np.abs(a).max()
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        errors[name] = float(np.abs(a - b).max() / scale) if scale else float(np.abs(b).max())
    worst = max(errors, key=errors.get)
    devices = int(np.prod(list(sizes.values())))
    if jax.process_index() == 0:
        print(program.table(), flush=True)
    return {
        "training": config.name,
        "batch": config.batch_size,
        "processes": jax.process_count(),
        "mesh": sizes,
        "loss": abs(float(split_loss - loss) / float(loss)),
        "error": errors[worst],
        "worst": worst,
        "flops": program.flops * devices / flops,
        "moves": sorted({(c.kind, *c.axes, c.moves) for c in program.collectives}),
        "seconds": round(time.monotonic() - began),
    }


def main(arguments):
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("training")
    parser.add_argument("meshes", nargs="+")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON")
    parser.add_argument("--save", metavar="FILE", help="keep what one device gives")
    parser.add_argument("--reference", metavar="FILE", help="what --save has kept")
    given = parser.parse_args(arguments)
    if "JWM_NUM_PROCESSES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", 8)
    initialize()
    changes = {"batch_size": given.batch}
    config = find_config(given.training)[0]
    if hasattr(config, "init_from"):
        changes["init_from"] = None
    changes |= {k: json.loads(v) for k, v in (text.split("=", 1) for text in given.set)}
    config = override(config, changes)
    if given.reference:
        with np.load(given.reference, allow_pickle=False) as kept:
            leaves = [kept[f"{i}"] for i in range(len(kept.files) - 2)]
            grads = jax.tree.unflatten(jax.tree.structure(abstract_gradients(config)), leaves)
            alone = kept["loss"], grads, float(kept["flops"])
    else:
        (loss, grads), program = measure(config, made_up(config.task().shapes()), {"data": 1})
        alone = loss, grads, program.flops
    if given.save:
        arrays = {f"{i}": leaf for i, leaf in enumerate(jax.tree.leaves(grads))}
        np.savez(given.save, loss=loss, flops=alone[2], **arrays)
    for text in given.meshes:
        sizes = {name: int(size) for name, size in (part.split("=") for part in text.split(","))}
        result = compare(config, sizes, alone)
        if jax.process_index() == 0:
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
