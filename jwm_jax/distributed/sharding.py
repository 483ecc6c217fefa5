"""From named parameters to arrays on a mesh: abstract init, shardings, sharded init, batches.

The order is shape first: `eval_shape` of the boxed init gives names and shapes without memory, the
rules turn them into shardings, and one jitted init writes every parameter where it belongs, so that
no device and no host ever holds a whole model that does not fit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from jwm_jax.distributed.rules import RULES, spec_for, undivided
from jwm_jax.errors import UsageError


def is_box(leaf: Any) -> bool:
    """Whether a tree node is a flax box around a parameter, which carries its axis names."""
    return isinstance(leaf, meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """Take the parameters out of their boxes, without placing any constraint on them."""
    return jax.tree.map(
        lambda leaf: leaf.unbox(apply_constraint=False) if is_box(leaf) else leaf,
        tree,
        is_leaf=is_box,
    )


def axis_names(boxed: Any) -> Any:
    """Logical axis names of every leaf: a tuple of names, or None for a leaf without a box."""
    return jax.tree.map(
        lambda leaf: tuple(leaf.names) if is_box(leaf) else None, boxed, is_leaf=is_box
    )


def unnamed_leaves(boxed: Any) -> list[str]:
    """Dotted paths of the parameters that carry no axis names; a model should have none."""
    leaves = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in leaves
        if not is_box(leaf)
    ]


def tree_shardings(boxed: Any, mesh: Mesh, units: Mapping[str, int] | None = None) -> Any:
    """Shardings of a boxed tree of arrays or ShapeDtypeStructs; a leaf without a box is replicated.

    Args:
        boxed: Tree whose parameters sit in flax boxes with logical axis names.
        mesh: The mesh.
        units: Logical name -> number of pieces of that axis that must stay whole (heads).

    Returns:
        The tree of `NamedSharding`, with the structure of `unbox(boxed)`.

    Raises:
        UsageError: When the mesh does not divide a parameter, see `rules.undivided`.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        if not is_box(leaf):
            return NamedSharding(mesh, PartitionSpec())
        shape = leaf.unbox(apply_constraint=False).shape
        wrong = undivided(leaf.names, shape, mesh.shape, units or {})
        if wrong is not None:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UsageError(
                f"the mesh does not divide parameter {name} {tuple(shape)}: {wrong}; choose other "
                "--mesh sizes or another width."
            )
        return NamedSharding(mesh, spec_for(leaf.names, shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_box)


def init_sharded(init: Callable[[Any], Any], key: Any, mesh: Mesh) -> tuple[Any, Any]:
    """Run a boxed init so that every array is born on the devices it belongs to.

    Args:
        init: key -> tree with boxed parameters (and optimiser moments made from them).
        key: Typed random key.
        mesh: The mesh.

    Returns:
        The unboxed tree on the mesh, and its tree of shardings.
    """
    shardings = tree_shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(lambda key: unbox(init(key)), out_shardings=shardings)(key), shardings


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Sharding of a batch along `axis` over the mesh axes of the logical name "batch"."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, RULES["batch"]))


def local_rows(mesh: Mesh, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """Rows of a global batch that this process has to supply.

    They need not lie next to each other: on a torus of chips the mesh's axes run along those of the
    torus, whatever process a chip belongs to.

    Args:
        mesh: The mesh.
        batch_size: Rows of the global batch.

    Returns:
        Their numbers, rising; all of them in a single process, and for a mesh without this
        process's devices (`topology_mesh`).

    Raises:
        UsageError: When the batch does not divide over the mesh.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise UsageError(
            f"batch_size {batch_size} does not divide over the {ways} devices of the mesh axes "
            f"data x fsdp; make it a multiple of {ways} or make --mesh.data smaller."
        )
    mine = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = {row for (index,) in mine for row in range(*index.indices(batch_size))}
    return np.asarray(sorted(rows), np.int64)


def put_batch(local: Any, mesh: Mesh, batch_size: int) -> Any:
    """Make global arrays from the rows that this process loaded for the updates of one step.

    Args:
        local: Tree of numpy arrays: [updates, rows of `local_rows(mesh, batch_size)`, ...], or
            [updates] for scalars, which are replicated.
        mesh: The mesh.
        batch_size: Rows of the global batch of an update.

    Returns:
        The tree of global `jax.Array`, rows split over data x fsdp.

    Raises:
        ValueError: When an array does not have the rows of this process.
    """
    rows = local_rows(mesh, batch_size)
    sharding = batch_sharding(mesh, axis=1)
    replicated = NamedSharding(mesh, PartitionSpec())

    def put(path: Any, value: Any) -> jax.Array:
        value = np.asarray(value)
        if value.ndim == 1:
            return jax.make_array_from_process_local_data(replicated, value, value.shape)
        if value.shape[1] != len(rows):
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has {value.shape[1]} rows, but this process "
                f"supplies {len(rows)} of {batch_size}."
            )

        def share(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[1].indices(batch_size)
            first = np.searchsorted(rows, start)
            return value[(index[0], slice(first, first + stop - start), *index[2:])]

        shape = (value.shape[0], batch_size, *value.shape[2:])
        return jax.make_array_from_callback(shape, sharding, share)

    return jax.tree_util.tree_map_with_path(put, local)


def put_rows(tree: Any, rows: int) -> Any:
    """Spread host arrays over the mesh set with `jax.set_mesh`, each device its share of the rows.

    Args:
        tree: Tree of numpy arrays, the same on every process; all lead with `rows` rows.
        rows: Their number.

    Returns:
        Global arrays; the tree itself where there is no mesh or it does not divide the rows.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty or rows % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return tree
    mine = local_rows(mesh, rows)
    placed = put_batch(jax.tree.map(lambda x: np.asarray(x)[None, mine], tree), mesh, rows)
    return jax.tree.map(lambda x: x[0], placed)


def automatic_axes() -> dict[str, int]:
    """Axes and sizes of the mesh set with `jax.set_mesh` that no `shard_map` has made manual."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {
        axis: size
        for axis, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }


def constrain(x: Any, names: Sequence[str | None]) -> Any:
    """Ask for the layout of an activation by logical names; does nothing outside a mesh.

    Mesh axes that a surrounding `shard_map` has made manual are left alone.

    Args:
        x: Array.
        names: One logical name (or None) per dimension.

    Returns:
        `x`, with a sharding constraint when a mesh is set with `jax.set_mesh`.
    """
    automatic = automatic_axes()
    if not automatic:
        return x
    spec = spec_for(names, x.shape, automatic)
    if all(entry is None for entry in spec):
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def gathered(parameter: Any, names: Sequence[str | None]) -> Any:
    """A parameter whole, as it is used; its gradient is scattered again.

    Weights are stored split over fsdp and context, where activations are split by rows and tokens.
    Left alone, XLA may move activations instead, where it takes them for smaller.

    Args:
        parameter: Array.
        names: Its logical axes.

    Returns:
        The parameter, split over no other axes than "tensor".
    """
    automatic = automatic_axes()
    if not automatic:
        return parameter
    stored = spec_for(names, parameter.shape, automatic)
    used = spec_for(names, parameter.shape, {k: v for k, v in automatic.items() if k == "tensor"})
    if stored == used:
        return parameter

    @jax.custom_vjp
    def whole(x):
        return jax.lax.with_sharding_constraint(x, used)

    def forward(x):
        return whole(x), None

    def backward(_, cotangent):
        return (jax.lax.with_sharding_constraint(cotangent, stored),)

    whole.defvjp(forward, backward)
    return whole(parameter)


def pin(x: Any, names: Sequence[str | None]) -> Any:
    """Like `constrain`, but also insists on dimensions that are not split.

    What `constrain` leaves open XLA may split as later operations like it; a pinned array keeps its
    layout, and resharding happens after it.
    """
    automatic = automatic_axes()
    if not automatic:
        return x
    return jax.lax.with_sharding_constraint(x, spec_for(names, x.shape, automatic))


def gather_to_host(tree: Any) -> Any:
    """Copy a tree of arrays to numpy on every process, whatever their shardings.

    Args:
        tree: Tree of arrays.

    Returns:
        The tree of numpy arrays with global shapes.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
