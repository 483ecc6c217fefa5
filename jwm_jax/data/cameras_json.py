"""cameras.json: its keys, and reading values out of it with errors that name them."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jwm_jax.errors import DataError
from jwm_jax.reading import read_json

FORMAT_VERSION = 1

KEYS = {
    "the file": (
        "version",
        "name",
        "views",
        "world_from_ego",
        "times",
        "rate",
        "lidar",
        "tracks",
        "map",
        "style",
    ),
    "view": (
        "name",
        "images",
        "K",
        "distortion",
        "ego_from_camera",
        "world_from_camera",
        "times",
        "depth",
    ),
    "tracks": ("times", "ids", "category", "size", "center", "quat", "valid"),
    "map line": ("kind", "points"),
}
"""Every key that is read, by where it stands."""

_SIZE = "the size is that of the image files; give K in pixels of these"
_LENS = "images must be rectified, and K is the whole lens"
_INSTEAD = {
    **dict.fromkeys(("fps", "hz", "framerate", "frequency"), "use 'rate', frames a second"),
    **dict.fromkeys(
        ("timestamps", "timestamp", "time", "stamps", "t"), "use 'times', in seconds, one a frame"
    ),
    **dict.fromkeys(("width", "height", "w", "h", "size", "resolution"), _SIZE),
    **dict.fromkeys(
        ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "distcoeffs", "xi", "skew"), _LENS
    ),
    **dict.fromkeys(("cameramodel", "model", "lens"), _LENS),
    **dict.fromkeys(("fx", "fy", "cx", "cy", "flx", "fly", "intrinsics", "intrinsic"), "use 'K'"),
    **dict.fromkeys(
        ("transformmatrix", "cameratoworld", "c2w", "pose", "poses", "extrinsics"),
        "use 'world_from_camera', OpenCV axes (right, down, forward)",
    ),
    "frames": "use 'views', each with its 'images'",
    "cameras": "use 'views'",
}
"""What to write instead of keys of similar files, in lower case without _ and -."""


def read_description(path: Path) -> dict:
    """The content of cameras.json, every key of which is one that is read.

    Raises:
        DataError: The file is missing, no JSON, of another version, or has a key that nothing
            reads.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: the calibration is missing; jwm_jax/data/README.md describes cameras.json."
        )
    description = read_json(path)
    if not isinstance(description, dict):
        raise DataError(f"{path}: expected an object with the key 'views'.")
    version = description.get("version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: version is {version}, expected {FORMAT_VERSION}.")
    _known(description, "the file", "", path)
    for view in _entries(description.get("views")):
        _known(view, "view", f" of view {view.get('name')!r}", path)
    _known(description.get("tracks"), "tracks", " of tracks", path)
    for number, line in enumerate(_entries(description.get("map"))):
        _known(line, "map line", f" of map line {number}", path)
    return description


def _entries(values: Any) -> list[dict]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def _known(entry: Any, place: str, where: str, path: Path) -> None:
    """Refuse keys that nothing reads; what begins with _ is a remark of the author's."""
    keys: Iterable[str] = entry if isinstance(entry, dict) else ()
    for key in keys:
        if key in KEYS[place] or key.startswith("_"):
            continue
        known = ", ".join(KEYS[place])
        close = difflib.get_close_matches(key.lower(), KEYS[place], n=1)
        elsewhere = [p for p, names in KEYS.items() if key in names]
        hint = _INSTEAD.get(key.lower().replace("_", "").replace("-", ""))
        if hint is None and close:
            hint = f"perhaps {close[0]!r} is meant"
        if hint is None and elsewhere:
            hint = f"it is a key of {elsewhere[0]}"
        raise DataError(
            f"{path}: nothing reads the key {key!r}{where}; {hint or 'take it out'}. Known there "
            f"are {known}, and remarks, which begin with _."
        )


def require(entry: Any, key: str, kind: type, path: Path) -> Any:
    """The value of a key.

    Raises:
        DataError: It is missing or of another kind.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        got = "nothing" if value is None else type(value).__name__
        raise DataError(f"{path}: expected {key!r} to be a {kind.__name__}, got {got}.")
    return value


def numbers(value: Any, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """A float64 array of a shape; None in the shape allows any length.

    Raises:
        DataError: The value is no such array.
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    fits = array.ndim == len(shape) and all(
        want in (None, got) for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        words = "x".join("any" if n is None else str(n) for n in shape)
        raise DataError(f"{where}: expected {words} numbers, got shape {list(array.shape)}.")
    return array
