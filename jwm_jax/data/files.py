"""Pictures, lidar scans and folders that may be missing, empty or broken: errors name them."""

import io
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image

from jwm_jax.errors import DataError
from jwm_jax.files import entries, expand_user
from jwm_jax.scene.cameras import Intrinsics

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Names that pictures end in, in lower case."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by EXIF orientation."""

_UNEVEN = 0.02
"""By how much the scales across and down may differ in a resize to whole numbers of pixels."""


def require_folder(path: str | os.PathLike, what: str) -> Path:
    """The folder at `path` (`~` expanded).

    Raises:
        DataError: It is missing, not a folder, or empty.
    """
    folder = expand_user(path)
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; expected {what}.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected the folder of {what}.")
    if not entries(folder):
        raise DataError(f"{folder} is empty; expected {what}.")
    return folder


def read_image(source: Path | io.BytesIO, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """A whole picture as 8-bit RGB, the way up that its EXIF orientation says.

    16-bit grey levels are scaled: 0 to 65535 become 0 to 255.

    Args:
        source: A file, or the bytes of one.
        name: What to call it in messages; the file's path if None.

    Raises:
        DataError: It is missing, cut short, no image, or of a kind without 8 or 16 bits a channel.
    """
    name = str(source) if name is None else name
    try:
        with Image.open(source) as picture:
            picture.load()
            picture = _upright(picture)
            if picture.mode.startswith("I;16"):
                grey = (np.asarray(picture) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if picture.mode in ("I", "F"):
                raise DataError(
                    f"{name}: this image has 32 bits a pixel, which have no known white; save it "
                    "with 8 or 16."
                )
            return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{name}: this image is missing.") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(
            f"{name}: this image cannot be decoded ({error}); it may be cut short. Copy it again."
        ) from None


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says, if it has one that can be read."""
    try:
        method = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except (SyntaxError, TypeError, ValueError, OSError, struct.error):
        return picture
    return picture if method is None else picture.transpose(method)


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


def numbered_files(folder: Path, suffixes: Sequence[str], what: str) -> dict[int, Path]:
    """Files that are named by their frame's number and nothing else, by that number.

    However many zeros stand in front. Of files of one frame that differ in nothing but the suffix,
    one is taken, the one whose suffix stands first.

    Args:
        folder: Where they lie.
        suffixes: In lower case; others are passed over.
        what: What they are, for messages.

    Raises:
        DataError: A name is no number, or the same number with other zeros in front.
    """
    files = [path for path in entries(folder) if path.suffix.lower() in suffixes]
    found: dict[int, Path] = {}
    for path in sorted(files, key=lambda path: suffixes.index(path.suffix.lower())):
        if not (path.stem.isascii() and path.stem.isdigit()):
            raise DataError(f"{path}: {what} are named by their frame's number alone: 0000000007.")
        twin = found.setdefault(int(path.stem), path)
        if twin.stem != path.stem:
            raise DataError(f"{path} and {twin.name} are the same frame; remove one of them.")
    return dict(sorted(found.items()))


def size_in(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[int, int]:
    """Width and height of the pictures that a file's calibration is for.

    Raises:
        DataError: They are no positive whole numbers.
    """
    size = float(arrays["width"]), float(arrays["height"])
    if not all(number >= 1 and number.is_integer() for number in size):
        raise DataError(f"{path}: width and height are {size}, expected whole numbers of pixels.")
    return int(size[0]), int(size[1])


def lens_of_pictures(
    K: Float[np.ndarray, "3 3"], size: tuple[int, int], pictures: np.ndarray, calibration: str
) -> tuple[Intrinsics, tuple[str, ...]]:
    """The lens of pictures that may have been resized since they were calibrated.

    Args:
        K: In pixels of the calibrated pictures, corner of the image at (0, 0).
        size: Width and height of those.
        pictures: [T, h, w, 3], of one view.
        calibration: Where the size stands, for the message.

    Returns:
        K scaled to the pictures where these look resized, with a sentence that says so; otherwise
        the lens as calibrated, which `check_clip` refuses where its size is not the pictures'.
    """
    lens = Intrinsics(K=K, width=size[0], height=size[1])
    height, width = pictures.shape[1:3]
    stretch = (width / size[0]) / (height / size[1])
    if (width, height) == size or abs(stretch - 1) > _UNEVEN:
        return lens, ()
    return lens.resized(height, width), (
        f"images are {width}x{height} pixels, but {calibration} says {size[0]}x{size[1]}: K was "
        "scaled, as for images that were resized. If they were cut out instead, correct the "
        "calibration.",
    )
