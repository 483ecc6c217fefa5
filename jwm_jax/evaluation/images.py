"""Metrics of pictures and videos in [0, 1]: PSNR, SSIM as `jwm_jax.nn.ssim` defines it, energy, and
how frames differ at the borders of chunks."""

import numpy as np
from jaxtyping import Float

from jwm_jax.nn.ssim import ssim as _ssim
from jwm_jax.scene.pytree import Array


def psnr(image: Float[Array, "*shape"], truth: Float[Array, "*shape"]) -> float:
    """Peak signal-to-noise ratio in dB over all pixels, for a peak of 1; at most 100.

    Args:
        image: Clipped to [0, 1] first, as a file would be.
        truth: In [0, 1].
    """
    error = np.clip(np.asarray(image, np.float64), 0.0, 1.0) - np.asarray(truth, np.float64)
    return float(-10.0 * np.log10(max(np.mean(error**2), 1e-10)))


def ssim(image: Float[Array, "*b h w c"], truth: Float[Array, "*b h w c"]) -> float:
    """Mean structural similarity; `image` is clipped to [0, 1] first.

    Args:
        image: Pictures of at least 11 x 11 pixels.
        truth: In [0, 1].
    """
    return float(_ssim(np.clip(np.asarray(image), 0.0, 1.0), np.asarray(truth)))


def energy(images: Float[Array, "*b h w 3"]) -> Float[np.ndarray, "*b"]:
    """Mean squared difference between pictures and their 3x3 binomial blur: how sharp they are.

    Args:
        images: At least 3 x 3 pixels, of which the outermost do not count.
    """
    images = np.asarray(images, np.float64)
    rows = (images[..., :-2, :, :] + 2 * images[..., 1:-1, :, :] + images[..., 2:, :, :]) / 4
    blurred = (rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]) / 4
    return np.mean((images[..., 1:-1, 1:-1, :] - blurred) ** 2, axis=(-3, -2, -1))


def border_ratio(frames: Float[np.ndarray, "f h w 3"], chunk: int = 4) -> float:
    """Mean absolute difference between frames at the borders of chunks over that within them.

    Args:
        frames: Whole chunks, from the first generated frame on.
        chunk: Frames of a chunk.
    """
    steps = np.abs(np.diff(np.asarray(frames, np.float64), axis=0)).mean((1, 2, 3))
    at_border = np.arange(1, len(frames)) % chunk == 0
    return float(steps[at_border].mean() / max(steps[~at_border].mean(), 1e-9))
