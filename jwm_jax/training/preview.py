"""What a run would put on every device, found from shapes alone: nothing is computed or written."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from jwm_jax.distributed.sharding import is_box, unnamed_leaves
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.start import Layout, layout
from jwm_jax.training.task import Task


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
        device), then totals.
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
    lines.append(f"mesh: {axes}; {mesh.size} device(s)")
    return lines


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
