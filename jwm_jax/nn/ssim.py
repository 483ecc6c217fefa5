"""Structural similarity, differentiable.

With mu, sigma^2 and sigma_xy the means, variances and covariance under an 11 x 11 Gaussian window
of deviation 1.5,

    SSIM = (2 mu_x mu_y + c1) (2 sigma_xy + c2)
           / ((mu_x^2 + mu_y^2 + c1) (sigma_x^2 + sigma_y^2 + c2)),

c1 = 0.01^2, c2 = 0.03^2 for values in [0, 1]; only windows that lie wholly inside the picture
count, and channels are averaged (Wang et al., 2004).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray

WINDOW = 11
DEVIATION = 1.5


def ssim_map(x: Float[Array, "*b h w c"], y: Float[Array, "*b h w c"]) -> Float[jax.Array, "..."]:
    """Similarity of every window and channel, [*b, h - 10, w - 10, c].

    Args:
        x: Pictures in [0, 1], at least 11 x 11.
        y: Pictures to compare with.
    """
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def ssim(x: Float[Array, "*b h w c"], y: Float[Array, "*b h w c"]) -> Float[jax.Array, ""]:
    """Mean structural similarity over everything."""
    return ssim_map(x, y).mean()


def _blur(image: jax.Array) -> jax.Array:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / DEVIATION) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    rows, columns = image.shape[-3] - WINDOW + 1, image.shape[-2] - WINDOW + 1
    image = sum(w * image[..., i : i + rows, :, :] for i, w in enumerate(weights))
    return sum(w * image[..., i : i + columns, :] for i, w in enumerate(weights))
