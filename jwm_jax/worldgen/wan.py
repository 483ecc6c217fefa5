"""Wan 2.1's transformer weights, as published and as diffusers names them, to ours and back.

The same numbers in another order: a linear map's kernel is the transpose of its weight, the patch
embedding is a linear map of a patch's (row, column, channel), layers are stacked, and a head's
channels are permuted because its rotary pairs are (i, i + k/2) here and (2i, 2i + 1) there. That
holds for queries and keys of self-attention and the weights of their norms; values and
cross-attention have no positions. Nothing is computed, so a round trip returns every bit.

Files are read and written tensor by tensor. Pickle files are refused, for unpickling runs code.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from einops import rearrange

from jwm_jax.checkpoint.model_dir import flatten, unflatten
from jwm_jax.checkpoint.safetensors_stream import write_tensors
from jwm_jax.checkpoint.weights import refuse_pickle
from jwm_jax.errors import DataError, UsageError
from jwm_jax.worldgen.config import SIZES, WorldGenConfig
from jwm_jax.worldgen.forward import abstract_params

Naming = Literal["original", "diffusers"]
Shape = tuple[int, ...]

HEAD_DIM = 128
"""Width of a head in every published size, whose files do not say it."""

ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}


def load(
    path: str | os.PathLike[str], num_heads: int | None = None, dtype: Any = np.float32
) -> tuple[WorldGenConfig, dict[str, Any]]:
    """Reads Wan's transformer.

    Args:
        path: a .safetensors file in either naming.
        num_heads: attention heads; heads are 128 wide if not given, as in every published size.
        dtype: type of the parameters; None keeps the file's.

    Returns:
        The configuration, without any of our conditions, and its parameters as numpy arrays.

    Raises:
        UsageError: there is no such file.
        DataError: it is a pickle, broken or not Wan 2.1's, naming every missing, surplus and
            mis-shaped tensor.
    """
    with _open(path) as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        config = config_of(shapes, str(path), num_heads)
        tensors = list(_tensors(config, _naming(shapes)))
        _compare(str(path), {tensor.name: tensor.shape for tensor in tensors}, shapes)
        flat: dict[str, np.ndarray] = {}
        for tensor in tensors:
            value = tensor.to_ours(np.asarray(file.get_tensor(tensor.name)), config)
            value = value.astype(dtype or value.dtype, copy=False)
            if tensor.layer is None:
                flat[tensor.ours] = np.ascontiguousarray(value)
                continue
            if tensor.ours not in flat:
                flat[tensor.ours] = np.empty((config.num_layers, *value.shape), value.dtype)
            flat[tensor.ours][tensor.layer] = value
    return config, unflatten(flat)


def save(
    config: WorldGenConfig,
    params: Mapping[str, Any],
    path: str | os.PathLike[str],
    naming: Naming = "original",
    dtype: Any = None,
) -> Path:
    """Writes Wan's transformer.

    Args:
        config: of a network that Wan 2.1 can be.
        params: its parameters.
        path: a .safetensors file, replaced if it is there.
        naming: of the tensors: as published ("original") or as in diffusers.
        dtype: of the tensors; the parameters' own if not given.

    Returns:
        The file.

    Raises:
        UsageError: the path is not a .safetensors file, or the network has parts that Wan 2.1 does
            not have, naming them.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: weights are written as .safetensors.")
    flat = flatten(params)
    surplus = sorted(set(flat) - {*_outer(naming).values(), *_stacked(naming).values()})
    if surplus or config.prediction != "velocity":
        parts = ", ".join(surplus) or f"prediction = {config.prediction!r}"
        raise UsageError(
            f"{path} was not written: this network has parts that Wan 2.1 does not have ({parts})."
        )
    tensors = list(_tensors(config, naming))

    def values() -> Iterator[np.ndarray]:
        for tensor in tensors:
            own = flat[tensor.ours]
            value = np.asarray(own if tensor.layer is None else own[tensor.layer])
            value = tensor.to_theirs(value, config)
            yield value.astype(dtype or value.dtype, copy=False)

    header = {t.name: (np.dtype(dtype or flat[t.ours].dtype), t.shape) for t in tensors}
    return write_tensors(path, header, values())


def diffusers_config(config: WorldGenConfig) -> dict[str, Any]:
    """What diffusers' WanTransformer3DModel is built from, for the config.json beside its weights.

    Args:
        config: of a network that `save` accepts.
    """
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": [1, config.patch, config.patch],
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.dim // config.num_heads,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }


def grow(
    config: WorldGenConfig, params: Mapping[str, Any], fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """Weights of a smaller network inside those of one with more parts, which start as they are.

    Wan's weights in a network with our conditions beside do what they did, because ours start at
    zero.

    Args:
        config: of the larger network, for the message.
        params: weights of the smaller network.
        fresh: initial parameters of the larger one.

    Raises:
        DataError: naming every tensor that the larger network lacks or has in another shape.
    """
    given, flat = flatten(params), flatten(fresh)
    wrong = [
        name for name, value in given.items() if name not in flat or flat[name].shape != value.shape
    ]
    if wrong:
        raise DataError(
            f"these weights do not fit into a network of dim {config.dim} with {config.num_layers} "
            f"layers: {', '.join(wrong)} is absent there or of another shape."
        )
    return unflatten({**flat, **given})


def config_of(
    shapes: Mapping[str, Shape], source: str, num_heads: int | None = None
) -> WorldGenConfig:
    """The configuration that a file's shapes tell.

    Args:
        shapes: tensor name to shape, in either naming.
        source: names the file in messages.
        num_heads: attention heads; heads are 128 wide if not given.

    Raises:
        DataError: too little of Wan 2.1's transformer is there to tell.
        UsageError: the width is not a multiple of the heads.
    """
    naming = _naming(shapes)
    names = {ours: name for name, ours in _outer(naming).items()}
    ffn = "blocks.0.ffn.net.0.proj.weight" if naming == "diffusers" else "blocks.0.ffn.0.weight"
    needed = [
        names[f"{part}.kernel"]
        for part in ("embeddings.patch_embedding", "embeddings.time_1", "text.up")
    ]
    absent = [name for name in [*needed, ffn] if name not in shapes]
    if absent or len(shapes[needed[0]]) != 5:
        raise DataError(
            f"{source} is not Wan 2.1's transformer: {', '.join(absent) or needed[0]} "
            f"{'is missing' if absent else 'is not the kernel of a 3D convolution'}."
        )
    dim, channels, _, patch, _ = shapes[needed[0]]
    heads = dim // HEAD_DIM if num_heads is None else num_heads
    if heads < 1 or dim % heads or dim // heads % 2:
        raise UsageError(
            f"{source}: {dim} channels do not split into heads of {HEAD_DIM}; say num_heads."
            if num_heads is None
            else f"{source}: {dim} channels do not split into {heads} heads of even width."
        )
    layers = [int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")]
    return replace(
        SIZES["base"],
        dim=dim,
        num_layers=1 + max(layers),
        num_heads=heads,
        ffn_dim=shapes[ffn][0],
        freq_dim=shapes[needed[1]][1],
        patch=patch,
        latent_channels=channels,
        text_dim=shapes[needed[2]][1],
        conditions=(),
        previous_input=False,
        cross_view_every=0,
        rebase=False,
    )


@dataclass(frozen=True)
class _Tensor:
    """One tensor of a file and where it goes.

    Attributes:
        name: theirs.
        ours: dotted name of our parameter.
        layer: index on its first axis; None outside the blocks.
        shape: theirs.
    """

    name: str
    ours: str
    layer: int | None
    shape: Shape

    @property
    def turns(self) -> bool:
        """Whether its last axis, here, holds rotary pairs of self-attention."""
        return self.ours.split(".")[1:3] in (
            ["self_attention", name] for name in ("q", "k", "norm_q", "norm_k")
        )

    def to_ours(self, value: np.ndarray, config: WorldGenConfig) -> np.ndarray:
        """The value in our order."""
        if self.ours == "embeddings.patch_embedding.kernel":
            return rearrange(value, "d c 1 p q -> (p q c) d")
        if self.ours.endswith("modulation"):
            return value[0]
        if self.ours.endswith("kernel"):
            value = value.T
        if self.turns:
            pattern = "... (heads pairs two) -> ... (heads two pairs)"
            value = rearrange(value, pattern, heads=config.num_heads, two=2)
        return value

    def to_theirs(self, value: np.ndarray, config: WorldGenConfig) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.ours == "embeddings.patch_embedding.kernel":
            sizes = {"p": config.patch, "q": config.patch}
            return rearrange(value, "(p q c) d -> d c 1 p q", **sizes)
        if self.ours.endswith("modulation"):
            return value[None]
        if self.turns:
            pattern = "... (heads two pairs) -> ... (heads pairs two)"
            value = rearrange(value, pattern, heads=config.num_heads, two=2)
        return value.T if self.ours.endswith("kernel") else value


def _tensors(config: WorldGenConfig, naming: Naming) -> Iterator[_Tensor]:
    """Every tensor of a file."""
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(abstract_params(config)).items()}

    def theirs(ours: str, shape: Shape) -> Shape:
        if ours == "embeddings.patch_embedding.kernel":
            return (shape[1], config.latent_channels, 1, config.patch, config.patch)
        if ours.endswith("modulation"):
            return (1, *shape)
        return shape[::-1] if ours.endswith("kernel") else shape

    for name, ours in _outer(naming).items():
        yield _Tensor(name, ours, None, theirs(ours, shapes[ours]))
    for layer in range(config.num_layers):
        for name, ours in _stacked(naming).items():
            yield _Tensor(f"blocks.{layer}.{name}", ours, layer, theirs(ours, shapes[ours][1:]))


def _open(path: str | os.PathLike[str]) -> Any:
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise UsageError(f"no file {path}.")
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it again.") from error


def _naming(shapes: Mapping[str, Shape]) -> Naming:
    theirs = any(name == "proj_out.weight" or ".attn1." in name for name in shapes)
    return "diffusers" if theirs else "original"


def _compare(source: str, need: Mapping[str, Shape], came: Mapping[str, Shape]) -> None:
    """Raises DataError with every difference."""
    wrong = [
        f"missing {name} {need[name]}"
        if name not in came
        else f"unknown {name} {came[name]}"
        if name not in need
        else f"{name} is {came[name]} instead of {need[name]}"
        for name in sorted(need.keys() | came.keys())
        if need.get(name) != came.get(name)
    ]
    if wrong:
        raise DataError(f"{source} is not Wan 2.1's transformer of this size: {'; '.join(wrong)}.")


def _outer(naming: Naming) -> dict[str, str]:
    """Names outside the blocks, theirs to ours."""
    original = {
        "patch_embedding": "embeddings.patch_embedding",
        "time_embedding.0": "embeddings.time_1",
        "time_embedding.2": "embeddings.time_2",
        "time_projection.1": "embeddings.time_projection",
        "text_embedding.0": "text.up",
        "text_embedding.2": "text.down",
        "head.head": "head.out",
    }
    diffusers = {
        "patch_embedding": "embeddings.patch_embedding",
        "condition_embedder.time_embedder.linear_1": "embeddings.time_1",
        "condition_embedder.time_embedder.linear_2": "embeddings.time_2",
        "condition_embedder.time_proj": "embeddings.time_projection",
        "condition_embedder.text_embedder.linear_1": "text.up",
        "condition_embedder.text_embedder.linear_2": "text.down",
        "proj_out": "head.out",
    }
    maps = {"original": original, "diffusers": diffusers}[naming]
    names = {f"{theirs}.weight": f"{ours}.kernel" for theirs, ours in maps.items()}
    names |= {f"{theirs}.bias": f"{ours}.bias" for theirs, ours in maps.items()}
    table = {"original": "head.modulation", "diffusers": "scale_shift_table"}[naming]
    return {**names, table: "head.modulation"}


def _stacked(naming: Naming) -> dict[str, str]:
    """Names inside a block, theirs to ours with its stack."""
    names = {}
    crossing = {"original": ("self_attn", "cross_attn"), "diffusers": ("attn1", "attn2")}[naming]
    for place, own in zip(("self", "cross"), crossing, strict=True):
        for letter, long in ATTENTION.items():
            context = place == "cross" and letter in "kv"
            room = "text_attention" if context else f"{place}_attention"
            ours = f"{room}.{'out' if letter == 'o' else letter}"
            theirs = f"{own}.{letter if naming == 'original' else long}"
            names |= {f"{theirs}.weight": f"{ours}.kernel", f"{theirs}.bias": f"{ours}.bias"}
            if letter in "qk":
                names[f"{own}.norm_{letter}.weight"] = f"{room}.norm_{letter}.weight"
    ffn = {"original": ("ffn.0", "ffn.2"), "diffusers": ("ffn.net.0.proj", "ffn.net.2")}[naming]
    for theirs, ours in zip(ffn, ("ffn.up", "ffn.down"), strict=True):
        names |= {f"{theirs}.weight": f"{ours}.kernel", f"{theirs}.bias": f"{ours}.bias"}
    norm = {"original": "norm3", "diffusers": "norm2"}[naming]
    names |= {f"{norm}.weight": "cross_norm.scale", f"{norm}.bias": "cross_norm.bias"}
    table = {"original": "modulation", "diffusers": "scale_shift_table"}[naming]
    return {theirs: f"layers.{ours}" for theirs, ours in {**names, table: "modulation"}.items()}
