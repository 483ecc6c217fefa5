"""The one table from logical axis names to mesh axes, and how a shape becomes a partition spec.

Models name the axes of their parameters and activations and know nothing about meshes. A name maps
to zero, one or several mesh axes; a mesh axis that an earlier dimension of the same array took is
not used twice. An activation's dimension that the mesh axes do not divide is replicated; a
parameter's is an error (`undivided`) unless its name is one of `MAY_REPLICATE`, because a
replicated weight takes memory on every device and nobody notices.
"""

import math
from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "embed": ("fsdp", "context"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "head_dim": (),
    "layers": (),
    "conv_in": (),
    "conv_out": ("fsdp", "context"),
    "condition": (),
    "out": (),
    # activations
    "batch": ("data", "fsdp"),
    "rows": ("data", "fsdp", "context"),  # a batch whose rows have nothing that context could split
    "tokens": ("context",),
    "act_embed": (),
    "act_heads": ("tensor",),
    "gaussians": ("context",),
    "queries": ("context",),
    "views": (),
    "frames": (),
    # optimiser
    "matrices": ("data", "fsdp", "context", "tensor"),
}


MAY_REPLICATE = frozenset({"conv_out"})
"""Axes of parameters that stay whole where the mesh does not divide them: channels of convolutions,
which are few and small."""


def undivided(
    names: Sequence[str | None],
    shape: Sequence[int],
    axis_sizes: Mapping[str, int],
    units: Mapping[str, int],
) -> str | None:
    """Which dimension of a parameter its mesh axes do not divide, or None.

    Args:
        names: One logical name per dimension.
        shape: Sizes of the dimensions.
        axis_sizes: Mesh axis name -> number of devices along it.
        units: Logical name -> number of pieces that must stay whole, such as attention heads.

    Returns:
        "axis heads (12 pieces) over tensor 8", for a message.
    """
    for name, size in zip(names, shape, strict=True):
        if name is None or name in MAY_REPLICATE or size == 1:
            continue
        axes = {
            axis: axis_sizes.get(axis, 1) for axis in RULES[name] if axis_sizes.get(axis, 1) > 1
        }
        pieces = units.get(name, size)
        if pieces % math.prod(axes.values()):
            over = " x ".join(f"{axis} {extent}" for axis, extent in axes.items())
            return f"axis {name} ({pieces} {'pieces' if name in units else 'wide'}) over {over}"
    return None


def spec_for(
    names: Sequence[str | None], shape: Sequence[int], axis_sizes: Mapping[str, int]
) -> PartitionSpec:
    """The partition spec of an array.

    Args:
        names: One logical name per dimension; None means replicated.
        shape: Sizes of the dimensions.
        axis_sizes: Mesh axis name -> number of devices along it; absent axes count as 1.

    Returns:
        A spec with one entry per dimension.

    Raises:
        ValueError: When a name has no rule or the number of names is not the number of dimensions.
    """
    if len(names) != len(shape):
        raise ValueError(
            f"logical axes {tuple(names)} name {len(names)} dimensions, but the array has shape "
            f"{tuple(shape)}."
        )
    taken: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=True):
        if name is None:
            entries.append(None)
            continue
        if name not in RULES:
            raise ValueError(
                f"logical axis {name!r} has no rule; the known ones are {', '.join(RULES)} "
                "(jwm_jax/distributed/rules.py)."
            )
        axes: list[str] = []
        devices = 1
        for axis in RULES[name]:
            extent = axis_sizes.get(axis, 1)
            if extent > 1 and axis not in taken and size % (devices * extent) == 0:
                axes.append(axis)
                devices *= extent
        taken.update(axes)
        entries.append(None if not axes else axes[0] if len(axes) == 1 else tuple(axes))
    return PartitionSpec(*entries)
