"""Reading files that may be missing, empty or broken, with errors that name them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jwm_jax.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""What a plain folder of images may hold."""


def require_folder(path: str | os.PathLike, what: str) -> Path:
    """The folder at `path` (`~` expanded).

    Raises:
        DataError: It is missing, not a folder, or empty.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; expected {what}.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected the folder of {what}.")
    if next(folder.iterdir(), None) is None:
        raise DataError(f"{folder} is empty; expected {what}.")
    return folder


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A whole image file as RGB.

    Raises:
        DataError: The file is missing, cut short, or no image.
    """
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: this image is missing.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: this image cannot be decoded ({error}); it may be cut short. Copy it again."
        ) from None


def read_images(paths: Sequence[Path], view: str) -> UInt8[np.ndarray, "t h w 3"]:
    """The images of one view.

    Raises:
        DataError: There is none, one is broken, or they differ in size.
    """
    if not paths:
        raise DataError(f"view {view!r} has no images.")
    first = read_image(paths[0])
    images = np.empty((len(paths), *first.shape), np.uint8)
    for index, path in enumerate(paths):
        image = first if index == 0 else read_image(path)
        if image.shape != first.shape:
            raise DataError(
                f"{path}: is {image.shape[1]}x{image.shape[0]} pixels, but the first image of view "
                f"{view!r} ({paths[0].name}) is {first.shape[1]}x{first.shape[0]}; the images of "
                "one view must have one size."
            )
        images[index] = image
    return images


def read_arrays(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
        DataError: The file is missing or broken, or lacks a required array.
    """
    if not path.is_file():
        raise DataError(f"{path}: this file is missing.")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds
        raise DataError(f"{path}: cannot be read as .npz ({error}).") from None
    missing = [name for name in required if name not in arrays]
    if missing:
        raise DataError(f"{path}: lacks the arrays {', '.join(missing)}.")
    return arrays


def read_points(path: Path, columns: int) -> np.ndarray:
    """Lidar points of a flat float32 file, [P, columns].

    Raises:
        DataError: The file is missing or its length is no multiple of a point's.
    """
    if not path.is_file():
        raise DataError(f"{path}: this lidar scan is missing.")
    values = np.fromfile(path, np.float32)
    if values.size % columns or path.stat().st_size % 4:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes are not a whole number of points of {columns} "
            "float32 each; the file may be cut short."
        )
    return values.reshape(-1, columns)
