"""Pixels at which float32 may decide otherwise than float64, found in NumPy.

Three decisions are discrete: whether a splat's alpha reaches the threshold (and whether it is
limited), whether a pixel ends, and which of two splats of nearly equal depth is in front. Where one
of them hangs on the last bits, float32 may take the other side, and the pixel changes by what that
splat, or the exchange of the two, contributes.
"""

import numpy as np

from jwm_kernels.gaussian_rasterizer.constants import ALPHA_MIN, TRANSMITTANCE_MIN

LOG_MARGIN = 1e-4
"""Distance from a threshold, in the logarithm of alpha or of the transmittance."""

DEPTH_MARGIN = float(np.finfo(np.float32).eps)
"""Distance of two depths, as a fraction of them."""

BLOCK = 8
"""Side in pixels of the blocks that are looked at together."""


def flip_band(meta: dict, max_alpha: float) -> np.ndarray:
    """Marks the pixels.

    Args:
      meta: of `rasterization` in float64, for one batch member.
      max_alpha: limit of a splat's alpha.

    Returns:
      mask [C, H, W].
    """
    names = ("means2d", "radii", "depths", "conics", "opacities")
    views = zip(*(np.asarray(meta[name], np.float64) for name in names), strict=True)
    band = np.zeros((int(meta["n_cameras"]), int(meta["height"]), int(meta["width"])), bool)
    for image, (means, radii, depths, conics, opacities) in zip(band, views, strict=True):
        order = np.argsort(depths, kind="stable")
        order = order[np.all(radii[order] > 0, -1)]
        splats = [values[order] for values in (means, depths, conics, opacities)]
        low, high = (means - radii)[order], (means + radii)[order]
        for y in range(0, image.shape[0], BLOCK):
            for x in range(0, image.shape[1], BLOCK):
                pixels = image[y : y + BLOCK, x : x + BLOCK]
                end = np.array([x + pixels.shape[1], y + pixels.shape[0]])
                near = np.all((high > [x, y]) & (low < end), -1)
                rows, columns = np.indices(pixels.shape).reshape(2, -1) + 0.5
                listed = [values[near] for values in splats]
                pixels[...] = _may_flip(x + columns, y + rows, *listed, max_alpha).reshape(
                    pixels.shape
                )
    return band


def _may_flip(x, y, means, depths, conics, opacities, max_alpha):
    """[P] whether pixel centres x, y [P] may flip, for L splats from front to back."""
    dx, dy = x - means[:, :1], y - means[:, 1:]
    a, b, c = conics[:, 0:1], conics[:, 1:2], conics[:, 2:3]
    power = np.log(opacities)[:, None] - 0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy
    alpha = np.where(power >= np.log(ALPHA_MIN), np.minimum(np.exp(power), max_alpha), 0.0)
    after = np.cumprod(1 - alpha, 0)
    before = np.concatenate([np.ones_like(after[:1]), after[:-1]])
    flips = np.abs(power - np.log(ALPHA_MIN)) < LOG_MARGIN
    flips |= np.abs(power - np.log(max_alpha)) < LOG_MARGIN
    flips |= np.abs(after - TRANSMITTANCE_MIN) < LOG_MARGIN * TRANSMITTANCE_MIN
    passed = np.where(alpha > 0, depths[:, None], -np.inf)
    last = np.concatenate([np.full_like(after[:1], -np.inf), passed[:-1]])
    last = np.maximum.accumulate(last, 0)
    flips |= (alpha > 0) & (depths[:, None] - last < DEPTH_MARGIN * depths[:, None])
    return np.any(flips & (before > TRANSMITTANCE_MIN), 0)
