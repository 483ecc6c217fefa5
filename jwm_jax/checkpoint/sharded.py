"""A model's weights straight onto a mesh: no host ever holds the whole model.

Names, shapes and kinds of numbers are compared first, from the file's header alone. Then every
array is made from a callback that reads, of a memory map, the slice that one device holds.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.checkpoint.model_dir import (
    check_shapes,
    flatten,
    read_header,
    resolve_model,
    unflatten,
)
from jwm_jax.checkpoint.weights import weights_files
from jwm_jax.errors import DataError


def load_sharded(
    name_or_dir: str | os.PathLike[str],
    kind: str,
    wanted: Mapping[str, Any],
    stages: tuple[str, ...] = (),
    may_lack: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Read the parameters of a model directory onto the devices that want them.

    Args:
        name_or_dir: Shipped size or folder.
        kind: Kind that is expected.
        wanted: Nested dict of ShapeDtypeStructs with shardings; their dtypes are what the arrays
            become, whatever the file holds.
        stages: Stages of training that are accepted; empty accepts all and unknown ones.
        may_lack: Dotted names that begin so may be missing in the file.

    Returns:
        Nested dict of arrays on the mesh, without what the file may lack and does.

    Raises:
        UsageError: When there is no such model.
        DataError: When a file is missing or broken, the model is of another kind, version or stage,
            or tensors are missing, surplus or of another shape, all of which are named.
    """
    with _opened(name_or_dir, kind, wanted, stages, may_lack) as (views, flat):
        return unflatten({name: _placed(views[name], flat[name]) for name in flat})


def check_model(
    name_or_dir: str | os.PathLike[str],
    kind: str,
    wanted: Mapping[str, Any],
    stages: tuple[str, ...] = (),
    may_lack: tuple[str, ...] = (),
) -> None:
    """Refuse a model that `load_sharded` would refuse, without reading any tensor.

    Raises:
        UsageError: As there.
        DataError: As there.
    """
    with _opened(name_or_dir, kind, wanted, stages, may_lack):
        pass


@contextmanager
def _opened(
    name_or_dir: str | os.PathLike[str],
    kind: str,
    wanted: Mapping[str, Any],
    stages: tuple[str, ...],
    may_lack: tuple[str, ...],
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The tensors of a model's file, not read yet, and those that are wanted, by dotted name."""
    from safetensors import SafetensorError, safe_open

    folder = resolve_model(name_or_dir, kind)
    read_header(folder, kind, stages)
    paths, flat = weights_files(folder), flatten(wanted)
    try:
        with ExitStack() as opened:
            views = {}
            for path in paths:
                file = opened.enter_context(safe_open(path, framework="numpy"))
                views |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            if may_lack:
                lacking = {n for n in flat if n.startswith(may_lack) and n not in views}
                flat = {name: value for name, value in flat.items() if name not in lacking}
            _check(views, flat, str(paths[0] if len(paths) == 1 else folder))
            yield views, flat
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy the model again.") from error


def _check(views: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    came = {name: tuple(view.get_shape()) for name, view in views.items()}
    check_shapes(came, {name: tuple(value.shape) for name, value in wanted.items()}, source)
    for name, value in wanted.items():
        stored = views[name].get_dtype()
        if ("F" in stored) != jnp.issubdtype(value.dtype, jnp.floating):
            raise DataError(f"{source}: tensor {name} is {stored} but should be {value.dtype}.")


def _placed(view: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The array of one tensor; devices that hold the same slice share one reading of it."""
    shape = tuple(wanted.shape)
    read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(i.indices(n)[:2] for i, n in zip(index, shape, strict=True))
        if bounds not in read:
            whole = all(bound == (0, n) for bound, n in zip(bounds, shape, strict=True))
            read[bounds] = np.asarray(view[() if whole else index]).astype(wanted.dtype, copy=False)
        return read[bounds]

    return jax.make_array_from_callback(shape, wanted.sharding, part)
