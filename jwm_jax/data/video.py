"""Video files without calibration, as frames at a model's picture size."""

import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jwm_jax.errors import DataError
from jwm_jax.scene.clip import fitted_size


def read_video(
    name: str,
    height: int,
    width: int | None = None,
    *,
    rate: float = math.inf,
    without: str,
) -> UInt8[np.ndarray, "t height w 3"]:
    """The frames of a video file, area-averaged to a number of rows.

    Args:
        name: Path of the file; "$NAME" is replaced by the environment variable.
        height: Rows.
        width: Columns, cut out of the middle; None keeps all, stretched to a multiple of 16.
        rate: About how many frames a second to keep, by leaving out all but every n-th; by default
            every frame.
        without: What leaves the video out, for the message where there is none.

    Raises:
        DataError: The file does not exist, cannot be decoded, or holds no frame.
    """
    import av

    path = Path(os.path.expandvars(name)).expanduser()
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
                    frames.append(_resized(frame.to_image(), height, width))
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(f"{path} is not a video that can be decoded ({error}).") from error
    if not frames:
        raise DataError(f"{path} holds no video frame.")
    return np.stack(frames)


def _resized(picture: Image.Image, height: int, width: int | None) -> np.ndarray:
    if width is None:
        columns = width = fitted_size(picture.height, picture.width, height, 16)[1]
    else:
        columns = max(width, round(picture.width * height / picture.height))
    left = (columns - width) // 2
    small = picture.resize((columns, height), Image.Resampling.BOX)
    return np.asarray(small)[:, left : left + width]
