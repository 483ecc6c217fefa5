"""Drives in: one reader a format, the procedural streets, checks. See README.md in this folder.

`load_clip("FORMAT:WHERE")` is the way in; `READERS` says which formats there are. Readers are
imported when first used.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, NamedTuple

from jwm_jax.errors import UsageError

if TYPE_CHECKING:
    from jwm_jax.scene.clip import Clip


class Reader(NamedTuple):
    """Where a format's reader lives.

    Attributes:
        module: Imported when the format is asked for.
        function: Takes what follows the colon of a spec and returns a Clip.
        example: A spec, for messages and help.
    """

    module: str
    function: str
    example: str


READERS = {
    "kitti": Reader("jwm_jax.data.kitti", "load_kitti", "kitti:PATH"),
    "nuscenes": Reader("jwm_jax.data.nuscenes", "load_nuscenes", "nuscenes:PATH"),
    "folder": Reader("jwm_jax.data.folder", "load_folder", "folder:PATH"),
    "video": Reader("jwm_jax.data.video", "load_video", "video:PATH"),
    "dataset": Reader("jwm_jax.data.tfds_clips", "load_dataset_clip", "dataset:PATH"),
    "procedural": Reader("jwm_jax.data.streets.clip", "load_procedural", "procedural:easy:SEED"),
}
"""Formats that `load_clip` reads. A new one is a module with a function, and a line here."""

_NOT_IN_THIS_BUILD = ("av2", "waymo", "pandaset", "comma2k19")


def load_clip(spec: str, check: bool = True) -> "Clip":
    """Read a drive.

    Args:
        spec: `FORMAT:WHERE`, such as `kitti:/data/2011_09_26` or `procedural:easy:0`.
        check: Refuse a clip whose contents are broken (`checks.validate`). False returns it as it
            is, for tools that explain what is wrong.

    Returns:
        The clip; its world is the ego frame of its first frame.

    Raises:
        UsageError: The format is unknown or nothing follows the colon.
        DataError: The data is missing, empty or broken.
    """
    reader, where = _find_reader(spec)
    clip = getattr(importlib.import_module(reader.module), reader.function)(where)
    if check:
        from jwm_jax.data.checks import validate

        validate(clip)
    return clip


def known_formats() -> str:
    """The specs that `load_clip` understands, for messages."""
    return ", ".join(reader.example for reader in READERS.values())


def _find_reader(spec: str) -> tuple[Reader, str]:
    name, colon, where = spec.partition(":")
    if name in _NOT_IN_THIS_BUILD and colon:
        raise UsageError(
            f"{spec!r}: this build does not read {name}; it reads {', '.join(READERS)}. "
            "Convert the drive to a plain folder of images with cameras.json and use folder:PATH "
            "(jwm_jax/data/README.md says how)."
        )
    if not colon:
        raise UsageError(
            f"{spec!r} names no format: expected FORMAT:WHERE, one of {known_formats()}."
        )
    if name not in READERS:
        close = difflib.get_close_matches(name.lower(), [*READERS, *_NOT_IN_THIS_BUILD], n=1)
        hint = f"did you mean {close[0]}:{where}? " if close else ""
        raise UsageError(f"{spec!r}: unknown format {name!r}; {hint}Known: {known_formats()}.")
    if not where.strip():
        raise UsageError(f"{spec!r} says no place: expected {READERS[name].example}.")
    return READERS[name], where
