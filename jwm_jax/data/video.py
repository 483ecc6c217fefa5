"""Video files without calibration, as frames at a model's picture size.

A camera that was held upright stores its pictures lying and, in the display matrix, how a player
turns them: with x to the right and y down, (x, y) goes to (a x + c y, b x + d y).
"""

import math
import os
import struct
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jwm_jax.errors import DataError
from jwm_jax.files import expand_user
from jwm_jax.scene.clip import fitted_size

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


def read_video(
    name: str,
    height: int,
    width: int | None = None,
    *,
    rate: float = math.inf,
    without: str,
) -> UInt8[np.ndarray, "t height w 3"]:
    """The frames of a video file, upright, area-averaged to a number of rows.

    Args:
        name: Path of the file; "$NAME" is replaced by the environment variable.
        height: Rows.
        width: Columns, cut out of the middle; None keeps all, stretched to a multiple of 16.
        rate: About how many frames a second to keep, by leaving out all but every n-th; by default
            every frame.
        without: What leaves the video out, for the message where there is none.

    Raises:
        DataError: The file does not exist, cannot be decoded, holds no frame, or is to be turned
            by less than a quarter.
    """
    import av

    path = expand_user(os.path.expandvars(name))
    if not path.is_file():
        raise DataError(
            f"video {path} does not exist; leave it out with {without} or set JWM_DATA."
        )
    frames = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stride = max(1, round(float(stream.average_rate or 10) / rate))
            for index, frame in enumerate(container.decode(stream)):
                if index % stride == 0:
                    frames.append(_resized(_upright(frame, path), height, width))
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(f"{path} is not a video that can be decoded ({error}).") from error
    if not frames:
        raise DataError(f"{path} holds no video frame.")
    return np.stack(frames)


def _upright(frame, path: Path) -> Image.Image:
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


def _resized(picture: Image.Image, height: int, width: int | None) -> np.ndarray:
    if width is None:
        columns = width = fitted_size(picture.height, picture.width, height, 16)[1]
    else:
        columns = max(width, round(picture.width * height / picture.height))
    left = (columns - width) // 2
    small = picture.resize((columns, height), Image.Resampling.BOX)
    return np.asarray(small)[:, left : left + width]
