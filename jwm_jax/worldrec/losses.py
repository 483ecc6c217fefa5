"""What WorldRec is trained on.

    L = l1 |x - y| + ssim (1 - SSIM(x, y)) + perceptual P(x, y) + lpips D(x, y) (rendered pictures)
      + depth |log d - log d_lidar| + sky BCE(sky, no depth)                    (context pictures)

P is any function of two pictures; here it is the mean absolute difference of image gradients at
several scales, which punishes blur as feature losses do. D is LPIPS (`jwm_jax.nn.lpips`). Absolute
values of pictures are rounded off at zero (`soft_abs`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jwm_jax.nn.lpips import lpips
from jwm_jax.nn.ssim import ssim
from jwm_jax.worldrec.split import total

SOFT = 1e-3
"""A quarter of a step of 8-bit pictures."""

PerceptualLoss = Callable[[jax.Array, jax.Array], jax.Array]
"""(rendered [n, h, w, 3], true [n, h, w, 3]) -> scalar, 0 for equal pictures."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms.

    Attributes:
        l1: Absolute error of rendered pictures.
        ssim: One minus structural similarity.
        perceptual: The perceptual term.
        lpips: LPIPS of rendered pictures; 0 does without its weights.
        depth: Absolute error of log depth where lidar knows it.
        sky: Cross-entropy of the sky probability where it is known.
    """

    l1: float = 1.0
    ssim: float = 0.2
    perceptual: float = 0.5
    lpips: float = 0.0
    depth: float = 0.2
    sky: float = 0.05


def soft_abs(x: Float[jax.Array, "*s"]) -> Float[jax.Array, "*s"]:
    """Charbonnier's sqrt(x^2 + `SOFT`^2) - `SOFT`: |x| whose slope does not jump at zero.

    Where flat surfaces are matched, errors are rounding; their signs would be the gradient.
    """
    return jnp.sqrt(x * x + SOFT**2) - SOFT


def gradient_loss(
    image: Float[jax.Array, "n h w 3"], truth: Float[jax.Array, "n h w 3"], scales: int = 3
) -> Float[jax.Array, ""]:
    """Mean absolute difference of horizontal and vertical differences, at halved sizes too."""
    error, total = image - truth, 0.0
    for scale in range(scales):
        total += sum(soft_abs(jnp.diff(error, axis=axis)).mean() for axis in (1, 2))
        if scale + 1 < scales:
            n, h, w, c = error.shape
            error = error[:, : h // 2 * 2, : w // 2 * 2]
            error = error.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return total / scales


def picture_loss(
    weights: LossWeights,
    image: Float[jax.Array, "n h w 3"],
    truth: Float[jax.Array, "n h w 3"],
    perceptual: PerceptualLoss = gradient_loss,
    judge: Any = None,
) -> tuple[Float[jax.Array, ""], dict[str, jax.Array]]:
    """Loss of rendered pictures and its parts.

    Args:
        weights: Of the terms.
        image: Rendered.
        truth: In [0, 1].
        perceptual: P.
        judge: Parameters of `lpips`; needed where its weight is not 0.
    """
    error = image - truth
    similarity = ssim(image, truth)
    loss = weights.l1 * soft_abs(error).mean() + weights.ssim * (1.0 - similarity)
    loss += weights.perceptual * perceptual(image, truth)
    clipped = jnp.clip(image, 0.0, 1.0) - truth
    per_picture = jnp.square(clipped).mean((1, 2, 3))
    psnr = -10.0 * jnp.log10(per_picture + 1e-10).mean()
    parts = {"l1": jnp.abs(error).mean(), "ssim": similarity, "psnr": psnr}
    if weights.lpips:
        parts["lpips"] = lpips(judge, jnp.clip(image, 0.0, 1.0), truth).mean()
        loss += weights.lpips * parts["lpips"]
    return loss, parts


def depth_loss(
    log_depth: Float[jax.Array, "p h w"],
    measured: Float[jax.Array, "p h w"],
    axis: str | None = None,
) -> Float[jax.Array, ""]:
    """Mean absolute error of log depth over a scene's pixels with a measurement; 0 without any.

    Args:
        log_depth: Natural logarithm of metres.
        measured: Metres, 0 where nothing is known.
        axis: Mesh axis that the scene's pictures are split over, see `split`.

    Returns:
        What this device's pictures contribute to the mean.
    """
    known = measured > 0
    error = jnp.abs(log_depth - jnp.log(jnp.where(known, measured, 1.0)))
    return jnp.where(known, error, 0.0).sum() / jnp.maximum(total(known.sum(), axis), 1)


def sky_loss(
    logit: Float[jax.Array, "p h w"],
    is_sky: Bool[jax.Array, "p h w"],
    known: Bool[jax.Array, "p h w"],
    axis: str | None = None,
) -> Float[jax.Array, ""]:
    """Cross-entropy of the sky logits over a scene's pixels whose class is known; 0 without any.

    Args:
        logit: Of sky.
        is_sky: Whether it is.
        known: Whether that is known.
        axis: Mesh axis that the scene's pictures are split over, see `split`.

    Returns:
        What this device's pictures contribute to the mean.
    """
    entropy = jnp.where(is_sky, jax.nn.softplus(-logit), jax.nn.softplus(logit))
    return jnp.where(known, entropy, 0.0).sum() / jnp.maximum(total(known.sum(), axis), 1)
