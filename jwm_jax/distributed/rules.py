"""The one table from logical axis names to mesh axes, and how a shape becomes a partition spec.

Models name the axes of their parameters and activations and know nothing about meshes. A name maps
to zero, one or several mesh axes. A dimension that the mesh axes do not divide is replicated, and a
mesh axis that an earlier dimension of the same array took is not used twice.
"""

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
    "tokens": ("context",),
    "act_embed": (),
    "act_heads": ("tensor",),
    "gaussians": ("context",),
    "queries": ("context",),
    "views": (),
    "frames": (),
}


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
