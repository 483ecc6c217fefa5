"""A model directory: `config.json`, `params.safetensors`, `card.md`.

config.json holds {format_version, kind, size, config}, and for a generator `stage`, one of
`STAGES`. A directory that does not name its stage serves wherever no stage is asked for, and
nowhere else: whoever knows the stage may add it to the file by hand. The parameters are flat with
dotted names; the card says in prose what the model is and what it was trained on. Loading compares
every name and shape with what the config asks for, because a wrong file must never load silently.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jwm_jax.checkpoint.dataclass_json import from_dict, to_dict
from jwm_jax.checkpoint.weights import SHARD_BYTES, refuse_pickle, weights_files, write_weights
from jwm_jax.errors import DataError, UsageError
from jwm_jax.files import expand_user, write_whole

FORMAT_VERSION = 1
KINDS = ("worldrec", "worldgen", "codec")
STAGES = ("bidirectional", "causal", "few_step")
"""Of a worldgen model's training: whole clips at once, then chunk by chunk, then in few steps."""
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
        DataError: Naming every tensor that is missing, surplus or of another shape.
    """
    came = {name: tuple(value.shape) for name, value in flatten(params).items()}
    need = {name: tuple(value.shape) for name, value in flatten(expected).items()}
    check_shapes(came, need, source)


def check_shapes(
    came: Mapping[str, tuple[int, ...]], need: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """The same for shapes by dotted name.

    Raises:
        DataError: Naming every tensor that is missing, surplus or of another shape.
    """
    faults, names_differ = [], False
    for name in sorted(need.keys() | came.keys()):
        if name not in came:
            faults.append(f"tensor {name} with shape {need[name]} is missing")
            names_differ = True
        elif name not in need:
            faults.append(f"tensor {name} with shape {came[name]} is not part of the model")
            names_differ = True
        elif came[name] != need[name]:
            faults.append(f"tensor {name} should have shape {need[name]} but has {came[name]}")
    if faults:
        other = "another model or size" if names_differ else "another size"
        raise DataError(f"{source}: {'; '.join(faults)}; this is a checkpoint of {other}.")


def save_model(
    directory: str | os.PathLike[str],
    kind: str,
    size: str,
    config: Any,
    params: Mapping[str, Any],
    card: str,
    *,
    half: bool = False,
    stage: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model directory; every file appears whole or not at all, config.json last.

    Args:
        directory: Folder to write; made when it is missing, files of the same names are replaced.
        kind: One of `KINDS`.
        size: "tiny", "small", ...
        config: The model's frozen dataclass.
        params: Nested dict of arrays.
        card: Markdown text of card.md.
        half: Store float32 tensors as float16 (half the bytes); they load as float32.
        stage: Of a worldgen model's training, one of `STAGES`; None where it is unknown.
        shard_bytes: Most bytes of a file of weights.

    Returns:
        The folder.

    Raises:
        ResourceError: When a file cannot be written.
        ValueError: For an unknown kind or stage, or a value that is not finite in the stored type.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if stage is not None and (kind != "worldgen" or stage not in STAGES):
        raise ValueError(f"a {kind} model has no stage {stage!r}; worldgen has {STAGES}.")
    directory = Path(directory)
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "size": size,
        **({} if stage is None else {"stage": stage}),
        "config": to_dict(config),
    }
    write_weights(directory, flatten(params), half=half, shard_bytes=shard_bytes)
    write_whole(directory / "card.md", card.rstrip() + "\n")
    write_whole(directory / "config.json", json.dumps(header, indent=2) + "\n")
    return directory


def resolve_model(name_or_dir: str | os.PathLike[str], kind: str) -> Path:
    """The folder of a shipped size ("tiny") or of a path.

    Args:
        name_or_dir: Name of a size whose weights ship with the package, or a folder.
        kind: One of `KINDS`.

    Returns:
        A folder that exists.

    Raises:
        UsageError: When neither a shipped model nor a folder has that name.
        DataError: When it is a pickle file.
    """
    folder = expand_user(name_or_dir)
    refuse_pickle(folder)
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


def load_params(
    name_or_dir: str | os.PathLike[str], kind: str, stages: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Read the parameters of a model directory.

    Args:
        name_or_dir: Shipped size or folder.
        kind: Kind that is expected.
        stages: Stages of training that are accepted; empty accepts all and unknown ones.

    Returns:
        Nested dict of numpy arrays, float16 widened to float32.

    Raises:
        UsageError: When there is no such model.
        DataError: When a file is missing or broken, or the model is of another kind or version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = resolve_model(name_or_dir, kind)
    read_header(folder, kind, stages)
    flat = {}
    for path in weights_files(folder):
        try:
            flat |= load_file(path)
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
    digest = hashlib.sha256()
    for path in weights_files(resolve_model(name_or_dir, kind)):
        try:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error}); copy the model again.") from error
    return digest.hexdigest()


def read_header(folder: Path, kind: str, stages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read and check config.json of a model directory.

    Args:
        folder: The model directory.
        kind: Kind that is expected.
        stages: Stages of training that are accepted; empty accepts all and unknown ones.

    Returns:
        {format_version, kind, size, config}, perhaps stage.

    Raises:
        DataError: When it is missing or broken, or of another kind, version or stage.
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
    stage = header.get("stage")
    if stage is not None and stage not in STAGES:
        raise DataError(f"{path} has stage {stage!r}; expected one of {', '.join(STAGES)}.")
    if stages and stage not in stages:
        wanted = " or ".join(stages)
        if stage is None:
            raise DataError(
                f'{path} names no "stage" of training, but {wanted} is needed; if the weights are '
                f'of that stage, add "stage": "{stages[0]}" to the file.'
            )
        raise DataError(
            f"{folder} holds weights of the stage {stage}, but {wanted} is needed; name a model of "
            "that stage, or train it first."
        )
    return header
