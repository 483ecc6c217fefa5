"""Attention on a mesh: the tokens of every frame are split over the axis "context".

Arrays are [batch, frames, tokens, heads, head_dim] with the logical axes `LAYOUT`. Because tokens
of every frame are split, and not the frames, all devices do the same work under every mask over
frames, causal and teacher-forced ones included. Two ways through it:

    Ulysses (arXiv 2309.14509)   an all-to-all gathers all tokens of heads / n heads on each device,
        attention runs there as on one device, and an all-to-all takes the result back
    ring (arXiv 2310.01889)      keys and values travel round the devices by collective-permute
        while each device keeps its queries and a running softmax

The ring serves where n does not divide a device's heads. Everything runs in one `shard_map`, over
batch and heads too, because kernels are opaque to the partitioner. Outside a mesh, or on one whose
axes the arrays do not use, these functions are plain attention.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float

from jwm_jax.distributed.ring import ring_attention
from jwm_jax.distributed.rules import spec_for
from jwm_jax.nn.attention import Implementation, attention
from jwm_jax.nn.masks import Full, KeyLengths, Mask, Padded

Framed = Float[jax.Array, "b f s heads d"]
FramedKeys = Float[jax.Array, "b kf s heads d"]
LAYOUT = ("batch", "frames", "tokens", "act_heads", None)
AXIS = "context"


def framed_attention(
    queries: Framed,
    keys: FramedKeys,
    values: FramedKeys,
    mask: Mask = Full(),  # noqa: B008, a frozen value
    *,
    implementation: Implementation = "auto",
) -> Framed:
    """Attention over frames of tokens, split over the mesh that is set with `jax.set_mesh`.

    Args:
        queries: [batch, frames, tokens, heads, head_dim].
        keys: [batch, frames of keys, tokens, heads, head_dim], the same tokens a frame.
        values: as the keys.
        mask: over these frames; `FrameLengths` instead of `KeyLengths`.
        implementation: as for `attention`; the ring computes blockwise in XLA whatever it says.

    Returns:
        As the queries, laid out as they are.

    Raises:
        ValueError: for `KeyLengths`, or when the context axis does not divide a frame's tokens.
    """
    if isinstance(mask.mask if isinstance(mask, Padded) else mask, KeyLengths):
        raise ValueError(
            "KeyLengths counts tokens, which are split over devices; use FrameLengths, which "
            "counts frames."
        )
    sizes = _automatic_axes()
    flat = partial(_flat_attention, implementation=implementation)
    if all(size == 1 for size in sizes.values()):
        return flat(queries, keys, values, mask)
    ways, tokens = sizes.get(AXIS, 1), queries.shape[2]
    if tokens % ways:
        raise ValueError(
            f"the {tokens} tokens of a frame do not divide over the {ways} devices of the mesh "
            f"axis {AXIS}; pad them to a multiple of {ways} and say so with Padded."
        )
    spec = spec_for(LAYOUT, queries.shape, sizes)
    local_heads = queries.shape[3] // math.prod(sizes[name] for name in _names(spec[3]))
    if ways == 1:
        pattern = flat
    elif local_heads % ways == 0:
        pattern = partial(_ulysses, flat)
    else:
        pattern = partial(ring_attention, axis=AXIS, ways=ways)
    return _on_mesh(pattern, (queries, keys, values), (spec,) * 3, mask, sizes)


def cross_attention(
    queries: Framed,
    keys: Float[jax.Array, "b k heads d"],
    values: Float[jax.Array, "b k heads d"],
    mask: Mask = Full(),  # noqa: B008, a frozen value
    *,
    implementation: Implementation = "auto",
) -> Framed:
    """Attention of frames of tokens to a short sequence that every device holds whole.

    Args:
        queries: [batch, frames, tokens, heads, head_dim], split as for `framed_attention`.
        keys: [batch, keys, heads, head_dim], split over batch and heads only.
        values: as the keys.
        mask: `Full`, or `KeyLengths` where the sequences end early.
        implementation: as for `attention`.

    Returns:
        As the queries.
    """
    sizes = _automatic_axes()

    def pattern(queries, keys, values, mask):
        shape = queries.shape
        queries = queries.reshape(shape[0], -1, *shape[3:])
        return attention(queries, keys, values, mask, implementation=implementation).reshape(shape)

    if all(size == 1 for size in sizes.values()):
        return pattern(queries, keys, values, mask)
    spec = spec_for(LAYOUT, queries.shape, sizes)
    key_spec = PartitionSpec(spec[0], None, spec[3], None)
    return _on_mesh(pattern, (queries, keys, values), (spec, key_spec, key_spec), mask, sizes)


def _flat_attention(
    queries: Framed, keys: FramedKeys, values: FramedKeys, mask: Mask, implementation: str
) -> Framed:
    flat = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (queries, keys, values))
    return attention(*flat, mask, implementation=implementation).reshape(queries.shape)


def _ulysses(pattern: Any, queries: Framed, keys: FramedKeys, values: FramedKeys, mask: Mask):
    """From tokens split to heads split and back."""
    swap = partial(jax.lax.all_to_all, axis_name=AXIS, tiled=True)
    gathered = (swap(x, split_axis=3, concat_axis=2) for x in (queries, keys, values))
    return swap(pattern(*gathered, mask), split_axis=2, concat_axis=3)


def _on_mesh(
    pattern: Any,
    arrays: Sequence[jax.Array],
    specs: Sequence[PartitionSpec],
    mask: Mask,
    sizes: dict[str, int],
) -> jax.Array:
    """Run a pattern on each device's part; lengths of the batch's rows are split with them.

    Axes of size 1 are named with the batch: an input that leaves an axis out is taken as replicated
    along it, and its gradient would be summed over it.
    """
    rows = specs[0][0]
    single = tuple(name for name, size in sizes.items() if size == 1)
    specs = [PartitionSpec((*_names(spec[0]), *single), *spec[1:]) for spec in specs]

    def of_lengths(lengths: Any) -> PartitionSpec:
        return PartitionSpec(rows) if getattr(lengths, "ndim", 0) else PartitionSpec()

    run = jax.shard_map(
        pattern,
        in_specs=(*specs, jax.tree.map(of_lengths, mask)),
        out_specs=specs[0],
        axis_names=set(sizes),
        check_vma=False,
    )
    return run(*arrays, mask)


def _automatic_axes() -> dict[str, int]:
    """Axes of the mesh in force that no surrounding `shard_map` has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto}


def _names(entry: Any) -> tuple[str, ...]:
    """Mesh axes of one entry of a partition spec."""
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)
