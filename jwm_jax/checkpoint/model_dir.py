"""A model directory: `config.json`, `params.safetensors`, `card.md`.

config.json holds {format_version, kind, size, config}; the parameters are flat with dotted names;
the card says in prose what the model is and what it was trained on. Loading compares every name and
shape with what the config asks for, because a wrong file must never load silently.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jwm_jax.checkpoint.dataclass_json import from_dict, to_dict
from jwm_jax.errors import DataError, UsageError

FORMAT_VERSION = 1
KINDS = ("worldrec", "worldgen", "codec")
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one dict with dotted names; a name may not contain a dot itself."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if "." in name:
            raise ValueError(f"parameter name {name!r} contains a dot.")
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *parents, name = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def check_params(params: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Compare names and shapes of parameters with those a model needs.

    Args:
        params: Nested dict of arrays that came.
        expected: Nested dict of arrays or ShapeDtypeStructs, as `jax.eval_shape` of the unboxed
            init gives it.
        source: Where the parameters came from, for the message.

    Raises:
        DataError: Naming the first tensor that is missing, surplus or of another shape.
    """
    came = {name: tuple(value.shape) for name, value in flatten(params).items()}
    need = {name: tuple(value.shape) for name, value in flatten(expected).items()}
    for name in sorted(need.keys() | came.keys()):
        if name not in came:
            raise DataError(
                f"{source}: tensor {name} with shape {need[name]} is missing; this is a checkpoint "
                "of another model or size."
            )
        if name not in need:
            raise DataError(
                f"{source}: tensor {name} with shape {came[name]} is not part of the model; this "
                "is a checkpoint of another model or size."
            )
        if came[name] != need[name]:
            raise DataError(
                f"{source}: tensor {name} should have shape {need[name]} but has {came[name]}; "
                "this is a checkpoint of another size."
            )


def save_model(
    directory: str | os.PathLike[str],
    kind: str,
    size: str,
    config: Any,
    params: Mapping[str, Any],
    card: str,
    *,
    half: bool = False,
) -> Path:
    """Write a model directory; every file appears whole or not at all.

    Args:
        directory: Folder to write; made when it is missing, files of the same names are replaced.
        kind: One of `KINDS`.
        size: "tiny", "small", ...
        config: The model's frozen dataclass.
        params: Nested dict of arrays.
        card: Markdown text of card.md.
        half: Store float32 tensors as float16 (half the bytes); they load as float32.

    Returns:
        The folder.

    Raises:
        ValueError: For an unknown kind, or a value that is not finite in the stored type.
    """
    from safetensors.numpy import save

    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    tensors = {}
    for name, value in flatten(params).items():
        array = np.asarray(value)
        if half and array.dtype == np.float32:
            with np.errstate(over="ignore"):
                array = array.astype(np.float16)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"tensor {name} is not finite as {array.dtype}; nothing was written.")
        tensors[name] = np.asarray(array, order="C")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "size": size,
        "config": to_dict(config),
    }
    temporary = directory / "params.safetensors.tmp"
    temporary.write_bytes(save(tensors))
    temporary.replace(directory / "params.safetensors")
    _write_text(directory / "card.md", card.rstrip() + "\n")
    _write_text(directory / "config.json", json.dumps(header, indent=2) + "\n")
    return directory


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def resolve_model(name_or_dir: str | os.PathLike[str], kind: str) -> Path:
    """The folder of a shipped size ("tiny") or of a path.

    Args:
        name_or_dir: Name of a size whose weights ship with the package, or a folder.
        kind: One of `KINDS`.

    Returns:
        A folder that exists.

    Raises:
        UsageError: When neither a shipped model nor a folder has that name.
    """
    folder = Path(name_or_dir).expanduser()
    shipped = WEIGHTS / f"{kind}-{name_or_dir}"
    if folder.name == str(name_or_dir) and (shipped / "config.json").is_file():
        return shipped
    if folder.is_dir():
        return folder
    names = sorted(path.name.removeprefix(f"{kind}-") for path in WEIGHTS.glob(f"{kind}-*"))
    raise UsageError(
        f"no {kind} model {str(name_or_dir)!r}: it is neither a folder nor a shipped size "
        f"(shipped: {', '.join(names) or 'none'})."
    )


def load_config(name_or_dir: str | os.PathLike[str], kind: str, config_class: type) -> Any:
    """Read the config of a model directory.

    Args:
        name_or_dir: Shipped size or folder.
        kind: Kind that is expected.
        config_class: The model's frozen dataclass.

    Returns:
        An instance of it.

    Raises:
        UsageError: When there is no such model.
        DataError: When config.json is missing or broken, or of another kind or version.
    """
    folder = resolve_model(name_or_dir, kind)
    where = f"{folder / 'config.json'}: config"
    values = read_header(folder, kind)["config"]
    try:
        return from_dict(config_class, values, where)
    except ValueError as error:
        message = str(error)
        raise DataError(message if where in message else f"{where}: {message}") from error


def load_params(name_or_dir: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read the parameters of a model directory.

    Args:
        name_or_dir: Shipped size or folder.
        kind: Kind that is expected.

    Returns:
        Nested dict of numpy arrays, float16 widened to float32.

    Raises:
        UsageError: When there is no such model.
        DataError: When a file is missing or broken, or the model is of another kind or version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = resolve_model(name_or_dir, kind)
    read_header(folder, kind)
    path = folder / "params.safetensors"
    try:
        flat = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy the model again.") from error
    wide = {
        name: value.astype(np.float32) if value.dtype == np.float16 else value
        for name, value in flat.items()
    }
    return unflatten(wide)


def weights_digest(name_or_dir: str | os.PathLike[str], kind: str) -> str:
    """SHA-256 of a model's stored weights, as hexadecimal digits.

    Args:
        name_or_dir: Shipped size or folder.
        kind: Kind that is expected.

    Raises:
        UsageError: When there is no such model.
        DataError: When its weights cannot be read.
    """
    path = resolve_model(name_or_dir, kind) / "params.safetensors"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); copy the model again.") from error


def read_header(folder: Path, kind: str) -> dict[str, Any]:
    """Read and check config.json of a model directory.

    Args:
        folder: The model directory.
        kind: Kind that is expected.

    Returns:
        {format_version, kind, size, config}.

    Raises:
        DataError: When it is missing or broken, or of another kind or version.
    """
    path = folder / "config.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} is not a model directory: it has no config.json.") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(header, dict) or not {"format_version", "kind", "config"} <= set(header):
        raise DataError(
            f"{path} is not the config of a model directory: it needs format_version, kind, size "
            "and config."
        )
    if header["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {header['format_version']}, this program reads "
            f"{FORMAT_VERSION}; use a matching version of jwm_jax."
        )
    if header["kind"] != kind:
        raise DataError(f"{folder} holds a {header['kind']} model, but a {kind} was asked for.")
    return header
