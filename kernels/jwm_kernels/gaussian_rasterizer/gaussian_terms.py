"""A Gaussian at pixels and the gradient of one pixel, as plain formulas for the bodies of kernels.

Columns of the table are A, s, C, ln o; with v = dy + s dx

    ln alpha = ln o + A dx^2 + C v^2

All arrays are of any shapes that fit each other.
"""

import jax.numpy as jnp

from jwm_kernels.gaussian_rasterizer.constants import ALPHA_MIN, TRANSMITTANCE_MIN


def quadratic_columns(covars2d, dets):
    """A = -1/(2 xx), s = -xy/xx and C = -xx/(2 det) of covariances on the screen.

    Args:
      covars2d: [..., 3] xx, xy and yy in px^2.
      dets: [...] determinants in px^4.

    Returns:
      A and C in 1/px^2, and s, each [...], in the order A, s, C.
    """
    xx, xy = covars2d[..., 0], covars2d[..., 1]
    return -0.5 / xx, -xy / xx, -0.5 * xx / dets


def log_alpha(dx, dy, a, slope, c, log_opacity):
    """Logarithm of a Gaussian's alpha at pixels.

    Args:
      dx: pixel centre minus mean across, in pixels.
      dy: pixel centre minus mean down.
      a: column A, 1/px^2.
      slope: column s.
      c: column C, 1/px^2.
      log_opacity: column ln o.

    Returns:
      ln alpha and v.
    """
    v = dy + slope * dx
    return log_opacity + a * dx * dx + c * v * v, v


def limited_alpha(raw, max_alpha):
    """The alpha with which a Gaussian counts: none under the threshold, at most `max_alpha`.

    Args:
      raw: exp(ln alpha), from `log_alpha`.
      max_alpha: limit, under 1.

    Returns:
      alpha, and where it has a gradient: neither under the threshold nor at the limit.
    """
    reached = raw >= ALPHA_MIN
    return jnp.where(reached, jnp.minimum(raw, max_alpha), 0.0), reached & (raw < max_alpha)


def counted_weight(alpha, before, after):
    """Whether a Gaussian counts at pixels that end before T <= 1e-4, and its weight there.

    Args:
      alpha: from `limited_alpha`.
      before: transmittance before the Gaussian.
      after: before * (1 - alpha), also where the pixel has ended.

    Returns:
      mask of the pixels where it counts, and alpha * before there, else 0.
    """
    counted = after > TRANSMITTANCE_MIN
    return counted, jnp.where(counted, alpha * before, 0.0)


def total_to_blend(out, transmittance, grad_out, grad_transmittance):
    """out . g_out + T g_T [T, P], from which the walk of a backward subtracts splat by splat.

    Args:
      out: [T, D, P] blended features.
      transmittance: [T, P] what is left.
      grad_out: [T, D, P] gradient of the loss.
      grad_transmittance: [T, P] gradient of the loss.

    Returns:
      [T, P].
    """
    return jnp.sum(out * grad_out, 1) + transmittance * grad_transmittance


def log_alpha_gradient(alpha, mask, before, value, remaining):
    """Gradient of the loss with respect to ln alpha.

    Args:
      alpha: from `limited_alpha`.
      mask: where the Gaussian counts and its alpha has a gradient.
      before: transmittance before it.
      value: f . g_out of its features.
      remaining: `total_to_blend` less what is blended up to and with this Gaussian.

    Returns:
      the gradient, 0 outside the mask.
    """
    return jnp.where(mask, alpha * (before * value - remaining / (1 - alpha)), 0.0)


def geometry_terms(grad, dx, v, a, slope, c):
    """What each pixel adds to the gradient of the six geometric columns.

    Args:
      grad: gradient of the loss with respect to ln alpha at each pixel.
      dx: as in `log_alpha`.
      v: from `log_alpha`.
      a: column A.
      slope: column s.
      c: column C.

    Returns:
      six terms, for mean x, mean y, A, s, C and ln o.
    """
    grad_v = 2 * c * v * grad
    return (
        -2 * a * dx * grad - slope * grad_v,
        -grad_v,
        grad * dx * dx,
        grad_v * dx,
        grad * v * v,
        grad,
    )
