"""What a run would put on every device and ask of it, found from shapes alone: nothing is computed.

The step is compiled as training would compile it, for this machine's devices or for a TPU slice
that is not there (`distributed.topology`), and the compiled program is read.
"""

import math
import time
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from jwm_jax.distributed.compiled import Program, read_compiled
from jwm_jax.distributed.sharding import batch_sharding, is_box, unnamed_leaves
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.start import Layout, layout
from jwm_jax.training.task import Task


def compile_step(task: Task, place: Layout) -> Any:
    """The training step, compiled from shapes.

    Args:
        task: The paradigm.
        place: Where everything lives.

    Returns:
        `jax.stages.Compiled`, with the state donated as in training.
    """
    count = task.schedule.batches(place.plan.phases)
    rows = batch_sharding(place.mesh, axis=1)

    def stacked(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding: NamedSharding = rows if x.ndim else place.replicated
        return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=sharding)

    step = jax.jit(
        partial(task.schedule, place.plan),
        out_shardings=(place.state_shardings(), place.replicated),
        donate_argnums=0,
    )
    batch = jax.tree.map(stacked, task.shapes())
    with jax.set_mesh(place.mesh):
        return step.lower(place.abstract_state(), place.frozen(), batch).compile()


def read_step(task: Task, place: Layout) -> Program:
    """Products, collectives and memory of the compiled training step on each device."""
    return read_compiled(compile_step(task, place), place.mesh, place.params)


def _mega(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.2f} MB"


def preview(config: ExperimentConfig, task: Task, mesh: Mesh) -> list[str]:
    """Describe parameters, their layout and the state's memory on a mesh.

    Args:
        config: The experiment.
        task: Has the parameters' init.
        mesh: The mesh.

    Returns:
        Lines to print: one per parameter (name, shape, logical axes, partition spec, bytes on a
        device), totals, and what the compiled step costs a device.
    """
    place = layout(config, task, mesh)
    lines = []
    for name, net in place.nets.items():
        lines += _parameters(place, name)
        if net.frozen:
            lines.append(
                f"{name} (frozen): {_mega(_per_device(place.params[name]))} on each device"
            )
            continue
        for part in ("params", "ema", "opt"):
            share = _per_device(getattr(place.states[name], part))
            lines.append(f"{part}: {_mega(share)} on each device")
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines.append(f"mesh: {axes}; {mesh.size} x {mesh.devices.flat[0].device_kind}")
    began = time.monotonic()
    program = read_step(task, place)
    lines.append(f"one step, compiled in {time.monotonic() - began:.0f} s:")
    return [*lines, program.table()]


def _parameters(place: Layout, name: str) -> list[str]:
    """A line a parameter of one network, and what they come to."""
    rows = []
    leaves = jax.tree_util.tree_flatten_with_path(place.boxed[name], is_leaf=is_box)[0]
    shapes = jax.tree.leaves(place.params[name])
    for (path, leaf), value in zip(leaves, shapes, strict=True):
        names = tuple(leaf.names) if is_box(leaf) else ()
        rows.append(
            (
                jax.tree_util.keystr(path, simple=True, separator="."),
                "x".join(str(size) for size in value.shape),
                ",".join(str(name) for name in names),
                str(tuple(value.sharding.spec)),
                _mega(_per_device(value)),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    count = sum(math.prod(value.shape) for value in shapes)
    label = f"{name}: " if len(place.nets) > 1 else ""
    lines.append(f"{label}{count:,} parameters in {len(shapes)} tensors")
    unnamed = unnamed_leaves(place.boxed[name])
    if unnamed:
        lines.append(f"without logical axes (replicated): {', '.join(unnamed)}")
    return lines


def _per_device(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
