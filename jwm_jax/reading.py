"""Text, JSON and arrays from files that may be missing, broken or another program's.

Whatever is wrong becomes a `DataError` that names the file. Lists of files come without litter and
in the order of the numbers in their names.
"""

import codecs
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jwm_jax.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, which Windows' editors and shells put in front of text."""

MOST_BYTES = 16 << 30
"""Most bytes of the arrays of an .npz, unpacked."""

Shapes = Mapping[str, str]
"""What each array is: a word of `_KINDS`, if it is no real numbers, and a word an axis, a length or
a letter for a length that arrays share. "whole n" is a list of whole numbers, "" a single number.
"""

_KINDS = {
    "": ("biuf", "numbers"),
    "whole": ("iu", "whole numbers"),
    "truth": ("b", "truth values"),
    "text": ("US", "text"),
}


def read_text(path: Path, errors: str = "strict") -> str:
    """A text file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Args:
        path: Of the file.
        errors: What becomes of bytes that are no text, as in `bytes.decode`.

    Raises:
        DataError: The file is missing, or no text.
    """
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
        return content.decode(encoding, errors)
    except FileNotFoundError:
        raise DataError(f"{path}: this file is missing.") from None
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}).") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: The file is missing, no JSON, or gives a key twice.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not valid JSON ({error}).") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return content


def read_arrays(path: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, those that are required checked by `require_shapes`.

    Raises:
        DataError: The file is missing or broken, or lacks a required array, or one has not the
            shape and kind it has to have.
    """
    if not path.is_file():
        raise DataError(f"{path}: this file is missing.")
    _refuse_what_swells(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds
        raise DataError(f"{path}: cannot be read as .npz ({error}); it may be cut short.") from None
    require_shapes(arrays, shapes, str(path))
    return arrays


def _refuse_what_swells(path: Path) -> None:
    """Refuse an archive whose directory says that it unpacks to more than `MOST_BYTES`."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return  # whoever reads it says what is wrong
    if size > MOST_BYTES:
        raise DataError(
            f"{path} unpacks to {size / 1e9:.1f} GB, over the {MOST_BYTES >> 30} GiB that an .npz "
            "may have."
        )


def require_shapes(arrays: Mapping[str, np.ndarray], shapes: Shapes, where: str) -> None:
    """Check that arrays are there, and are of the kind and the shape that fits the others.

    Nothing is broadcast: where several arrays share a length, one of length 1 does not stand for
    all. Values are not looked at.

    Args:
        arrays: By name; others than those asked for are ignored.
        shapes: Such as {"K": "v 3 3", "times": "v", "names": "text v"}.
        where: The file, for messages.

    Raises:
        DataError: An array is missing, of another kind, or of another shape.
    """
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise DataError(f"{where}: lacks the arrays {', '.join(missing)}.")
    lengths: dict[str, tuple[int, str]] = {}
    for name, words in shapes.items():
        array, axes = np.asarray(arrays[name]), words.split()
        kind = axes.pop(0) if axes and axes[0] in _KINDS else ""
        letters, what = _KINDS[kind]
        if array.dtype.kind not in letters:
            raise DataError(f"{where}: {name} holds {array.dtype}, expected {what}.")
        for axis, length in zip(axes, array.shape, strict=False):
            lengths.setdefault(axis, (int(axis) if axis.isdigit() else length, name))
        wanted = [lengths.get(axis, (axis, name)) for axis in axes]
        if list(array.shape) != [length for length, _ in wanted]:
            expected = ", ".join(
                str(length) if axis.isdigit() or first == name else f"{length} (as many as {first})"
                for axis, (length, first) in zip(axes, wanted, strict=True)
            )
            raise DataError(
                f"{where}: {name} has shape {list(array.shape)}, expected "
                f"{f'[{expected}]' if axes else 'a single value'}."
            )


def natural_order(paths: Iterable[Path], root: Path) -> list[Path]:
    """Paths by the numbers in their names: frame_2 before frame_10, 007 before 12.

    Args:
        paths: Files below the root.
        root: What comes above it does not count.

    Raises:
        DataError: Two names differ in nothing but leading zeros or the suffix; or the names hold
            decimal fractions of unequal length, such as 1.5 and 1.25, which could be read as
            1 then 5 and 25 as well, and the two orders differ.
    """
    named = {path.relative_to(root).as_posix(): path for path in paths}
    order = sorted(named, key=lambda name: (_by_number(name, _WHOLE), name))
    stems = {name: name.removesuffix(named[name].suffix) for name in order}
    seen: dict[tuple, str] = {}
    for name in order:
        twin = seen.setdefault(_by_number(stems[name], _WHOLE), name)
        if twin != name:
            raise DataError(f"{root}: {twin} and {name} have the same number; remove one of them.")
    by_value = sorted(order, key=lambda name: _by_number(stems[name], _DECIMAL))
    for a, b in zip(order, by_value, strict=True):
        if a != b:
            raise DataError(
                f"{root}: whether {a} or {b} comes first cannot be told from the numbers in their "
                "names; give all the same number of digits behind the point."
            )
    return [named[name] for name in order]


_WHOLE, _DECIMAL = re.compile(r"([0-9]+)"), re.compile(r"([0-9]+(?:\.[0-9]+)?)")


def _by_number(name: str, number: re.Pattern) -> tuple[str | float | int, ...]:
    """Text and numbers of a name by turns, so that two of them compare."""
    parts: list = number.split(name)
    parts[1::2] = [float(p) if "." in p else int(p) for p in parts[1::2]]
    return tuple(parts)
