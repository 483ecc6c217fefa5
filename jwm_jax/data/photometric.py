"""Changes of pictures that leave geometry alone: what other cameras would have made of a drive.

One draw serves all pictures of an example, as one camera took them: exposure and white balance
multiply, a small blur and JPEG of low quality come on some examples only.
"""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

BLUR = np.asarray([0.25, 0.5, 0.25], np.float32)
"""Binomial kernel, along rows and columns."""

QUALITY = (30, 80)
"""JPEG qualities that are drawn from."""


@dataclass(frozen=True)
class Photometric:
    """How much pictures are changed; zeros leave them as they are.

    Attributes:
        exposure: Largest change of brightness, as a factor's logarithm.
        white_balance: Largest change of each channel against the others, likewise.
        blur: Share of the examples that are blurred, by up to the whole of `BLUR`.
        jpeg: Share of the examples that went through JPEG.
    """

    exposure: float = 0.25
    white_balance: float = 0.08
    blur: float = 0.15
    jpeg: float = 0.2


UNCHANGED = Photometric(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Change:
    """One draw, see `draw_change`; called with pictures, it changes them.

    Attributes:
        gains: Factor on each channel.
        blur: Weight of the blurred picture.
        quality: Of JPEG, 0 for none.
    """

    gains: tuple[float, float, float]
    blur: float
    quality: int

    def __call__(self, images: Float[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
        """Changed pictures in [0, 1], float32."""
        images = np.clip(images * np.asarray(self.gains, np.float32), 0.0, 1.0)
        if self.blur:
            images = images + np.float32(self.blur) * (_blurred(images) - images)
        if self.quality:
            flat = np.round(images.reshape(-1, *images.shape[-3:]) * 255.0).astype(np.uint8)
            images = np.stack([_through_jpeg(i, self.quality) for i in flat]).reshape(images.shape)
        return images


def draw_change(config: Photometric, rng: np.random.Generator) -> Change:
    """Draws a change; the draws are as many whatever comes out."""
    exposure = rng.uniform(-1, 1) * config.exposure
    balance = rng.uniform(-1, 1, 3) * config.white_balance
    blurred, strength, packed, quality = rng.uniform(size=4)
    low, high = QUALITY
    return Change(
        tuple(np.exp(exposure + balance - balance.mean()).tolist()),
        float(strength) if blurred < config.blur else 0.0,
        int(low + quality * (high - low)) if packed < config.jpeg else 0,
    )


def _blurred(images: np.ndarray) -> np.ndarray:
    for axis in (-3, -2):
        pads = [(0, 0)] * images.ndim
        pads[axis] = (1, 1)
        padded = np.moveaxis(np.pad(images, pads, mode="edge"), axis, 0)
        images = BLUR[0] * padded[:-2] + BLUR[1] * padded[1:-1] + BLUR[2] * padded[2:]
        images = np.moveaxis(images, 0, axis)
    return images


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / np.float32(255.0)
