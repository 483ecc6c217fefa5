"""A Gaussian at pixels and the gradient of one pixel, as plain formulas for the bodies of kernels.

Columns of the table are A, s, C, ln o; with v = dy + s dx

    ln alpha = ln o + A dx^2 + C v^2
"""


def log_alpha(dx, dy, a, slope, c, log_opacity):
    """Logarithm of a Gaussian's alpha at pixels.

    Args:
      dx: pixel centre minus mean across, in pixels; any shape that fits the others.
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
