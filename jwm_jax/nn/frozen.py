"""Files of frozen networks' weights: where they are, and what they hold."""

import os
from pathlib import Path

import numpy as np

from jwm_jax.errors import DataError


def find_weights(path: str | os.PathLike[str]) -> Path | None:
    """The file, or None where there is none; `$NAME` is replaced by the environment variable."""
    file = Path(os.path.expandvars(os.fspath(path))).expanduser()
    return file if file.is_file() else None


def read_weights(path: str | os.PathLike[str], network: str) -> tuple[Path, dict[str, np.ndarray]]:
    """The file and its tensors by name.

    Args:
        path: A safetensors file, see `find_weights`.
        network: Whose weights they are, for messages.

    Raises:
        DataError: There is no such file, or it is none.
    """
    from safetensors.numpy import load_file

    file = find_weights(path)
    if file is None:
        raise DataError(
            f"{network} needs the weights {path}, and there is no such file; set JWM_DATA to the "
            "folder that holds them, or name the file."
        )
    try:
        return file, load_file(file)
    except Exception as error:  # safetensors raises types of its own
        raise DataError(f"{file} is not a readable safetensors file: {error}") from error
