"""What a run would put on every device, found from shapes alone: nothing is computed or written."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from jwm_jax.distributed.sharding import is_box, tree_shardings, unnamed_leaves
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.state import create_state
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
    key = jax.random.key(config.seed)
    boxed = jax.eval_shape(lambda k: create_state(task.init(k), config.optimizer, k), key)
    rows = []
    leaves = jax.tree_util.tree_flatten_with_path(boxed.params, is_leaf=is_box)[0]
    specs = jax.tree.leaves(tree_shardings(boxed.params, mesh))
    for (path, leaf), sharding in zip(leaves, specs, strict=True):
        value = leaf.unbox(apply_constraint=False) if is_box(leaf) else leaf
        names = tuple(leaf.names) if is_box(leaf) else ()
        rows.append(
            (
                jax.tree_util.keystr(path, simple=True, separator="."),
                "x".join(str(size) for size in value.shape),
                ",".join(str(name) for name in names),
                str(tuple(sharding.spec)),
                _mega(_bytes_per_device(value, sharding)),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(boxed.params)]
    lines.append(f"{sum(sizes):,} parameters in {len(sizes)} tensors")
    for part in ("params", "ema", "opt_state"):
        tree = getattr(boxed, part)
        lines.append(f"{part}: {_mega(_total_per_device(tree, mesh))} on each device")
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines.append(f"mesh: {axes}; {mesh.size} device(s)")
    unnamed = unnamed_leaves(boxed.params)
    if unnamed:
        lines.append(f"without logical axes (replicated): {', '.join(unnamed)}")
    return lines


def _bytes_per_device(value: Any, sharding: Any) -> int:
    return math.prod(sharding.shard_shape(value.shape)) * value.dtype.itemsize


def _total_per_device(tree: Any, mesh: Mesh) -> int:
    values = [
        leaf.unbox(apply_constraint=False) if is_box(leaf) else leaf
        for leaf in jax.tree.leaves(tree, is_leaf=is_box)
    ]
    shardings = jax.tree.leaves(tree_shardings(tree, mesh))
    return sum(_bytes_per_device(v, s) for v, s in zip(values, shardings, strict=True))
