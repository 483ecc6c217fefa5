"""The files of a model's weights: safetensors, one file or several, and never a pickle.

Weights of more than `SHARD_BYTES` are several files, `model-00001-of-00003.safetensors` and so on,
with `model.safetensors.index.json`, which says where each tensor is, as Hugging Face lays them out;
others are `params.safetensors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jwm_jax.checkpoint.safetensors_stream import write_tensors
from jwm_jax.errors import DataError
from jwm_jax.files import entries, make_folder, write_whole

PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
"""Suffixes, in lower case, of files that are never opened."""
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Most bytes of a file of weights, unless a single tensor has more."""


def refuse_pickle(path: Path) -> None:
    """Refuse a file of a format that can run any program when it is read.

    Args:
        path: Need not exist.

    Raises:
        DataError: Its name or its first bytes are those of a pickle or a zipped pickle.
    """
    named = path.suffix.lower() in PICKLES and not path.is_dir()
    if named or (path.is_file() and _begins_like_a_pickle(path)):
        raise DataError(
            f"{path} is a pickle file, which can run any program when it is opened, so it is not "
            "opened; convert it to safetensors with the program that made it."
        )


def _begins_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # of safetensors, whose first eight bytes are a length
        return False
    return start[:4] == b"PK\x03\x04" or (
        start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    )


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory, in order.

    Raises:
        DataError: One is missing, or a pickle is there instead.
    """
    single, index = folder / "params.safetensors", folder / INDEX
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = _indexed(index)
    else:
        for other in entries(folder):
            refuse_pickle(other)
        raise DataError(f"{single} is missing; copy the model again.")
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is missing; copy the model again.")
        refuse_pickle(path)
    return files


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, all of them beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        beside = names and all(Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} cannot be read ({error}); copy the model again.") from error
    if not beside or not all(name.endswith(".safetensors") for name in names):
        raise DataError(f"{index} should name .safetensors files beside it, but names {names}.")
    return [index.parent / name for name in names]


def write_weights(
    folder: Path, flat: Mapping[str, Any], *, half: bool, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes tensors into as many files as they need, one tensor in memory at a time.

    Files of an earlier save are removed once the new ones are whole, and never mixed with them.

    Args:
        folder: Of the model, made if it is missing.
        flat: Dotted name -> array.
        half: Store float32 tensors as float16.
        shard_bytes: Most bytes of a file.

    Raises:
        ResourceError: A file cannot be written.
        ValueError: A value is not finite in the stored type; nothing was written.
    """
    types = {name: _stored_type(value, half) for name, value in flat.items()}
    for name, value in flat.items():
        if not _finite(value, types[name]):
            raise ValueError(f"tensor {name} is not finite as {types[name]}; nothing was written.")
    make_folder(folder)
    header = {name: (types[name], tuple(value.shape)) for name, value in flat.items()}
    sizes = {
        n: d.itemsize * int(np.prod(shape, dtype=np.int64)) for n, (d, shape) in header.items()
    }
    shards: list[list[str]] = [[]]
    for name in sorted(flat):
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + sizes[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    earlier = [*folder.glob("model*-of-*.safetensors"), folder / "params.safetensors"]
    files = _free_names(len(shards), {path.name for path in earlier})
    for file, names in zip(files, shards, strict=True):
        values = (np.asarray(flat[name]).astype(types[name], copy=False) for name in names)
        write_tensors(folder / file, {name: header[name] for name in names}, values)
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: f for f, names in zip(files, shards, strict=True) for name in names},
    }
    if len(shards) == 1:
        earlier.append(folder / INDEX)
    else:
        write_whole(folder / INDEX, json.dumps(index, indent=1) + "\n")
    for path in earlier:
        if path.name not in files:
            path.unlink(missing_ok=True)


def _free_names(count: int, taken: set[str]) -> list[str]:
    """Names of a model's files; shards never take those of an earlier save, which stays whole until
    the new index is there."""
    if count == 1:
        return ["params.safetensors"]
    stem, number = "model", 1
    while any(name.startswith(f"{stem}-") for name in taken):
        number += 1
        stem = f"model{number}"
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _stored_type(value: Any, half: bool) -> np.dtype:
    dtype = np.dtype(value.dtype)
    return np.dtype(np.float16) if half and dtype == np.float32 else dtype


def _finite(value: Any, dtype: np.dtype) -> bool:
    if dtype.kind != "f":
        return True
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(value).astype(dtype, copy=False)).all())
