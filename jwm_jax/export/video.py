"""Video files: H.264 in MP4, or an animated picture where there is no encoder.

Files appear whole or not at all: they are written beside their place and renamed.
"""

import io
import math
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jwm_jax.errors import UsageError
from jwm_jax.export.pictures import to_uint8
from jwm_jax.files import write_whole

MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".png": "image/png",
}
"""Suffixes that can be written; .webp, .gif and .png are animated pictures."""

SLOWEST, FASTEST = 1 / 60, 1000.0
"""Frames a second that these formats can hold."""

FASTEST_GIF = 100.0
"""The same of .gif, which counts hundredths of a second."""


def write_video(
    path: str | os.PathLike, frames: np.ndarray | Sequence[np.ndarray], rate: SupportsFloat
) -> Path:
    """Write frames as a video.

    Args:
        path: Ends in .mp4, .webp, .gif or .png. An .mp4 becomes a .webp where PyAV has no H.264
            encoder.
        frames: [F, h, w, 3], uint8 or floating in [0, 1]; odd sizes are padded by one pixel.
        rate: Frames a second, any kind of number from `SLOWEST` to `FASTEST`.

    Returns:
        The path written, which differs from `path` in the suffix if there was no encoder.

    Raises:
        UsageError: The suffix is unknown, or the rate is none that a video can have.
        ResourceError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in MEDIA_TYPES:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(MEDIA_TYPES)}.")
    content, suffix = encode_video(frames, rate, path.suffix.lower())
    path = path.with_suffix(suffix)
    write_whole(path, content)
    return path


def encode_video(
    frames: np.ndarray | Sequence[np.ndarray], rate: SupportsFloat, suffix: str = ".mp4"
) -> tuple[bytes, str]:
    """The bytes of a video file and its suffix (".webp" where there is no H.264 encoder).

    Raises:
        UsageError: The rate is none that a video can have.
    """
    frames = to_uint8(np.stack(list(frames)))
    rate = _possible(rate, FASTEST_GIF if suffix == ".gif" else FASTEST)
    if suffix == ".mp4":
        if has_h264():
            return _mp4(_even(frames), rate), ".mp4"
        suffix = ".webp"
    return _animated(frames, rate, suffix), suffix


def _possible(rate: SupportsFloat, fastest: float) -> float:
    try:
        number = float(rate)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not SLOWEST <= number <= fastest:
        raise UsageError(
            f"expected a positive number of frames a second from 1/60 to {fastest:.0f}, got {rate}."
        )
    return number


def has_h264() -> bool:
    """Whether PyAV can write H.264."""
    try:
        import av

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError):
        return False
    return True


def _even(frames: UInt8[np.ndarray, "f h w 3"]):
    """Frames of even height and width: H.264's chroma is at half resolution."""
    height, width = frames.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _mp4(frames: np.ndarray, rate: float) -> bytes:
    """H.264, index first ("faststart", for which the muxer needs a real file)."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "18", "preset": "medium"}
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return path.read_bytes()


def _animated(frames: np.ndarray, rate: float, suffix: str) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    options = {"quality": 85} if suffix == ".webp" else {}
    buffer = io.BytesIO()
    first.save(
        buffer,
        suffix[1:],
        save_all=True,
        append_images=rest,
        duration=max(1, round(1000 / rate)),
        loop=0,
        **options,
    )
    return buffer.getvalue()
