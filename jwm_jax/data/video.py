"""Plain videos as clips: `video:PATH?fov=70`, one view, no poses.

A camera that was held upright stores its pictures lying and, in the display matrix, how a player
turns them: with x to the right and y down, (x, y) goes to (a x + c y, b x + d y).
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jwm_jax.data.folder import looking_ahead
from jwm_jax.data.specs import number, split_options, whole_number
from jwm_jax.errors import DataError
from jwm_jax.files import expand_user
from jwm_jax.scene.cameras import Intrinsics
from jwm_jax.scene.clip import Clip

FIELD_OF_VIEW = 70.0
"""Degrees from the left to the right edge that a video is taken to have: a common dash camera."""

MOST_BYTES = 4 << 30
"""Largest video that is held in memory."""

_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""What brings a picture upright, by a, b, c, d of the display matrix."""


def load_video(where: str) -> Clip:
    """A video of one's own as a clip of one view, upright, in its own size.

    Nobody says where its camera was. The clip is not `posed`; the camera is taken to look ahead
    from where `folder:` puts one, undistorted, with `FIELD_OF_VIEW` unless another is given. Times
    are those of the file, a variable rate included.

    Args:
        where: "PATH", or "PATH?fov=70&start=12.5&frames=100": the horizontal field of view in
            degrees, the second of the file to begin at, and how many frames to read.

    Returns:
        The clip.

    Raises:
        UsageError: An option is unknown or out of range.
        DataError: The file does not exist, cannot be decoded, holds no frame there, is to be turned
            by less than a quarter, or would take more than `MOST_BYTES`.
    """
    path, options = _options(where)
    times, pictures = [], []
    for time, picture in _frames(path, options["start"]):
        times.append(time)
        pictures.append(picture)
        if len(pictures) * picture.nbytes > MOST_BYTES:
            raise DataError(
                f"{path} has more than {len(pictures)} frames, over {MOST_BYTES >> 30} GiB of "
                f"pictures; read a part of it: video:{path}?start=0&frames={len(pictures) // 2}."
            )
        if len(pictures) == options["frames"]:
            break
    if not pictures:
        after = f" after second {options['start']:g}" if options["start"] else ""
        raise DataError(f"{path} holds no video frame{after}.")
    height, width = pictures[0].shape[:2]
    focal = width / 2 / math.tan(math.radians(options["fov"]) / 2)
    lens = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    standing = np.tile(np.eye(4), (len(times), 1, 1))
    guess = "" if "fov=" in where else f" and to see {FIELD_OF_VIEW:g} degrees (?fov= says others)"
    return Clip(
        images=(np.stack(pictures),),
        times=np.asarray(times, np.float64)[:, None],
        world_from_ego=standing,
        world_from_camera=(standing @ looking_ahead())[:, None],
        cameras=(Intrinsics(lens, width, height),),
        view_names=("front",),
        name=path.stem,
        notes=(f"a video has no poses; its camera is taken to look ahead{guess}.",),
        posed=False,
    )


def _options(where: str) -> tuple[Path, dict[str, float]]:
    """The file, and the value of every option."""
    readers = {"fov": number(1.0, 170.0), "start": number(0.0), "frames": whole_number(1)}
    name, given = split_options("clip", where, readers)
    options = {"fov": FIELD_OF_VIEW, "start": 0.0, "frames": math.inf} | given
    name = name.removeprefix("video:")
    path = expand_user(name)
    if not path.is_file():
        raise DataError(f"video {path} does not exist.")
    return path, options


def _frames(path: Path, start: float) -> Iterator[tuple[float, np.ndarray]]:
    """Seconds of the file and upright picture of every frame from a time on."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            step = 1.0 / float(stream.average_rate or 10)
            for index, frame in enumerate(container.decode(stream)):
                time = index * step if frame.time is None else float(frame.time)
                if time >= start - step / 2:
                    yield time, np.asarray(_upright(frame, path))
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(f"{path} is not a video that can be decoded ({error}).") from error


def _upright(frame: Any, path: Path) -> Image.Image:
    """The picture of a PyAV frame, turned by its display matrix."""
    from av.sidedata.sidedata import Type

    picture, matrix = frame.to_image(), frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return picture
    a, b, _, c, d = struct.unpack("9i", bytes(matrix))[:5]
    largest = max(map(abs, (a, b, c, d)), default=0) or 1
    turn = tuple(round(x / largest, 2) for x in (a, b, c, d))
    if turn in ((1, 0, 0, 1), (0, 0, 0, 0)):
        return picture
    if turn not in _TURNS:
        raise DataError(
            f"{path} is to be shown turned by {frame.rotation} degrees; turn it upright first, or "
            "by whole quarters."
        )
    return picture.transpose(_TURNS[turn])
