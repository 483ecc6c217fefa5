"""Single pictures: compressed bytes, float to 8 bit, and a picture of an error."""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def to_uint8(pictures: np.ndarray) -> UInt8[np.ndarray, "*b h w 3"]:
    """uint8 pictures from uint8 ones, or from floating ones in [0, 1] (clipped, NaN black).

    Raises:
        ValueError: The last axis is not 3 colours.
    """
    pictures = np.asarray(pictures)
    if pictures.ndim < 3 or pictures.shape[-1] != 3:
        raise ValueError(f"expected pictures [..., h, w, 3], got shape {list(pictures.shape)}.")
    if pictures.dtype == np.uint8:
        return pictures
    finite = np.nan_to_num(pictures.astype(np.float32))
    return (np.clip(finite, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def picture_bytes(picture: np.ndarray, kind: str = "jpeg", quality: int = 88) -> bytes:
    """A picture [h, w, 3] as "jpeg", "png" or "webp"."""
    buffer = io.BytesIO()
    options = {} if kind == "png" else {"quality": quality}
    Image.fromarray(to_uint8(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def error_picture(
    prediction: np.ndarray, truth: np.ndarray, full_scale: float = 0.25
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Mean absolute colour difference as brightness: black is none, white is `full_scale`.

    Args:
        prediction: [..., h, w, 3], uint8 or in [0, 1].
        truth: The same shape.
        full_scale: Difference, of 1, at which the picture is white.
    """
    a, b = (to_uint8(p).astype(np.float32) / 255.0 for p in (prediction, truth))
    return heat(np.abs(a - b).mean(axis=-1) / full_scale)


def heat(value: Float[np.ndarray, "*b h w"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Values in [0, 1] as colours from black over violet and orange to white."""
    stops = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])
    position = np.clip(value, 0.0, 1.0) * (len(stops) - 1)
    low = np.minimum(position.astype(int), len(stops) - 2)
    weight = (position - low)[..., None]
    return (stops[low] * (1 - weight) + stops[low + 1] * weight).astype(np.uint8)
