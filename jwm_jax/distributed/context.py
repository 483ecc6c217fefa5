"""Attention on a mesh: the tokens of every frame are split over the axis "context".

Arrays are [batch, frames, tokens, heads, head_dim] with the logical axes `LAYOUT`. Because tokens
of every frame are split, and not the frames, all devices do the same work under every mask over
frames, causal and teacher-forced ones included. Three ways through it:

    Ulysses (arXiv 2309.14509)   an all-to-all gathers all tokens of heads / n heads on each device,
        attention runs there as on one device, and an all-to-all takes the result back
    shared heads                 with n a multiple of the heads, several devices take one head and a
        part of each frame's queries; everything is gathered, and each takes its share of it
    ring (arXiv 2310.01889)      keys and values travel round the devices by collective-permute
        while each device keeps its queries and a running softmax

The ring serves where neither of n and a device's heads divides the other. Everything runs in one
`shard_map`, over batch and heads too, because kernels are opaque to the partitioner. Outside a
mesh, or on one whose axes the arrays do not use, these functions are plain attention.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float

from jwm_jax.distributed.ring import ring_attention
from jwm_jax.distributed.rules import spec_for
from jwm_jax.nn.attention import Implementation, attention
from jwm_jax.nn.masks import Full, KeyLengths, Mask, Padded

Framed = Float[jax.Array, "b f s heads d"]
FramedKeys = Float[jax.Array, "b kf ks heads d"]
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
    elif ways % local_heads == 0:
        pattern = partial(_shared_heads, flat, ways)
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


def _shared_heads(
    pattern: Any, ways: int, queries: Framed, keys: FramedKeys, values: FramedKeys, mask: Mask
) -> Framed:
    """Device i takes head i // share, and part i % share of the queries of every frame."""
    share, me = ways // queries.shape[3], jax.lax.axis_index(AXIS)
    gathered = (jax.lax.all_gather(x, AXIS, axis=2, tiled=True) for x in (queries, keys, values))
    queries, keys, values = (
        jax.lax.dynamic_slice_in_dim(x, me // share, 1, axis=3) for x in gathered
    )
    tokens = there = queries.shape[2]
    queries = jax.lax.dynamic_slice_in_dim(
        queries, me % share * (tokens // share), tokens // share, axis=2
    )
    if isinstance(mask, Padded):
        there, mask = mask.valid, mask.mask
        keys, values = keys[:, :, :there], values[:, :, :there]
    out = jax.lax.all_gather(pattern(queries, keys, values, mask), AXIS)
    out = rearrange(out, "(heads share) b f s 1 d -> b f (share s) heads d", share=share)
    out = jnp.where(jnp.arange(tokens)[:, None, None] < there, out, 0.0)
    return jax.lax.dynamic_slice_in_dim(out, me * (tokens // ways), tokens // ways, axis=2)


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
