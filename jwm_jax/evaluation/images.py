"""Metrics between pictures in [0, 1]: PSNR, and SSIM as `jwm_jax.nn.ssim` defines it."""

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
