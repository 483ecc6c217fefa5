"""Camera models as functions of points: camera coordinates to pixels, for the unscented transform.

With a = x/z, b = y/z, r^2 = a^2 + b^2 and theta the angle to the optical axis:

    pinhole   (a, b)
    OpenCV    (a, b) D + (2 p1 a b + p2 (r^2 + 2 a^2) + r^2 (s1 + s2 r^2),
                          p1 (r^2 + 2 b^2) + 2 p2 a b + r^2 (s3 + s4 r^2)),
              D = (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6)
    fisheye   (x, y) / |(x, y)| theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)
    f-theta   [[c, d], [e, 1]] (x, y) / |(x, y)| f(theta), in pixels

each times the focal lengths (not f-theta), plus the principal point. What gsplat 1.6 calls valid is
valid here, and points that are not valid get the pixels that gsplat gives them, since they enter
the moments of the transform.

Source: OpenCV's calib3d documentation; gsplat for the limits of validity.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float

from jwm_kernels.gaussian_rasterizer.constants import DEPTH_MIN
from jwm_kernels.gaussian_rasterizer.projection.camera_types import Distortion, FThetaPolynomialType

Array = jax.Array | np.ndarray

RADIAL_FACTOR_MIN = 0.8
"""An OpenCV pinhole point is valid where the radial factor D exceeds this."""

FAR_AWAY = 1e10
"""Pixel of a point whose distortion is beyond the range of numbers; it is never visible."""

_SLOPE_MAX = 1e3
_NEWTON_STEPS = 3
_AXIS_RADIUS = 1e-10

Pixels = tuple[Float[Array, "..."], Float[Array, "..."], Bool[Array, "..."]]


def make_lens(
    camera_model: str,
    Ks: Float[Array, "*batch c 3 3"],
    width: int,
    height: int,
    distortion: Distortion | None,
    margin_factor: float,
) -> Callable[..., Pixels]:
    """Prepares the projection of points.

    Args:
      camera_model: a key of `LENSES`.
      Ks: intrinsics in pixels.
      width: image width in pixels.
      height: image height in pixels.
      distortion: coefficients that fit the camera model.
      margin_factor: a point is valid up to this part of the image's size outside it.

    Returns:
      function of camera coordinates x, y, z (arrays [..., *batch, C, N]) that gives u, v in pixels
      from the principal point (cx, cy) of `Ks`, and whether the point is valid. All are finite.
    """
    fx, fy, cx, cy = (Ks[..., i, j][..., None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    project = LENSES[camera_model](fx, fy, cx, cy, width, height, distortion or Distortion())

    def lens(x, y, z):
        u, v, valid = project(x, y, z)
        margin_x, margin_y = margin_factor * width, margin_factor * height
        valid &= (u + cx >= -margin_x) & (u + cx < width + margin_x)
        valid &= (v + cy >= -margin_y) & (v + cy < height + margin_y)
        return u, v, valid

    return lens


def _pinhole(fx, fy, cx, cy, width, height, distortion):
    if any(coefficients is not None for coefficients in distortion):
        return _opencv_pinhole(fx, fy, distortion)

    def project(x, y, z):
        front = z > 0
        inverse = 1 / jnp.where(front, jnp.maximum(z, DEPTH_MIN), 1.0)
        u, v = jnp.where(front, fx * x * inverse, -cx), jnp.where(front, fy * y * inverse, -cy)
        return u, v, front

    return project


def _ortho(fx, fy, cx, cy, width, height, distortion):
    def project(x, y, z):
        front = z > 0
        return jnp.where(front, fx * x, -cx), jnp.where(front, fy * y, -cy), front

    return project


def _opencv_pinhole(fx, fy, distortion):
    def coefficients(values, count):
        if values is None:
            return [0.0] * count
        given = _split(values, fx.dtype)
        return given + [0.0] * (count - len(given))

    k1, k2, k3, k4, k5, k6 = coefficients(distortion.radial_coeffs, 6)
    p1, p2 = coefficients(distortion.tangential_coeffs, 2)
    s1, s2, s3, s4 = coefficients(distortion.thin_prism_coeffs, 4)

    def denominator(a, b):
        r2 = a * a + b * b
        return r2, 1 + r2 * (k4 + r2 * (k5 + r2 * k6))

    def project(x, y, z):
        z_safe = jnp.where(jnp.abs(z) > DEPTH_MIN, z, DEPTH_MIN)
        a, b = x / z_safe, y / z_safe
        sane = (jnp.abs(a) < _SLOPE_MAX) & (jnp.abs(b) < _SLOPE_MAX)
        sane &= jnp.abs(denominator(a, b)[1]) > 1e-3
        a, b = jnp.where(sane, a, 0.0), jnp.where(sane, b, 0.0)
        r2, below = denominator(a, b)
        factor = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / below
        u = a * factor + 2 * p1 * a * b + p2 * (r2 + 2 * a * a) + r2 * (s1 + r2 * s2)
        v = b * factor + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b + r2 * (s3 + r2 * s4)
        valid = sane & (z > 0) & (factor > RADIAL_FACTOR_MIN)
        return jnp.where(sane, fx * u, FAR_AWAY), jnp.where(sane, fy * v, FAR_AWAY), valid

    return project


def _fisheye(fx, fy, cx, cy, width, height, distortion):
    if distortion.radial_coeffs is None:
        coefficients = [jnp.zeros_like(fx)] * 4
    else:
        coefficients = _split(distortion.radial_coeffs, fx.dtype)
    radius = jnp.hypot(jnp.maximum(width - cx, cx), jnp.maximum(height - cy, cy))
    corner = jnp.maximum(radius / fx, radius / fy)
    limit = lax.stop_gradient(jnp.minimum(_first_turning_angle(coefficients), corner))
    k1, k2, k3, k4 = coefficients

    def project(x, y, z):
        length = _length(x, y)
        angle = jnp.arctan2(length, z)
        theta = jnp.minimum(angle, limit)
        square = theta * theta
        series = 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
        scale = theta * series / length
        return fx * scale * x, fy * scale * y, (angle < limit) & (scale > 0)

    return project


def _ftheta(fx, fy, cx, cy, width, height, distortion):
    lens = distortion.ftheta_coeffs
    forward = _split(lens.angle_to_pixeldist_poly, fx.dtype)
    inverse = _split(lens.pixeldist_to_angle_poly, fx.dtype)
    c, d, e = _split(lens.linear_cde, fx.dtype)
    limit = jnp.asarray(lens.max_angle, fx.dtype)[..., None]

    def project(x, y, z):
        length = _length(x, y)
        angle = jnp.arctan2(length, z)
        theta = jnp.minimum(angle, limit)
        distance = _polynomial(forward, theta)
        if lens.reference_poly is FThetaPolynomialType.PIXELDIST_TO_ANGLE:
            distance = _solve(inverse, theta, distance)
        u, v = distance * (x / length), distance * (y / length)
        return c * u + d * v + 0.5, e * u + v + 0.5, angle <= limit

    return project


LENSES: dict[str, Callable] = {
    "pinhole": _pinhole,
    "ortho": _ortho,
    "fisheye": _fisheye,
    "ftheta": _ftheta,
}
"""camera_model -> function of (fx, fy, cx, cy, width, height, distortion) that gives a function of
(x, y, z): pixel offsets and validity."""


def _split(values, dtype):
    """The last axis of coefficients as a list of arrays with an axis of length 1 for Gaussians."""
    values = jnp.asarray(values, dtype)
    return [values[..., k][..., None] for k in range(values.shape[-1])]


def _length(x, y):
    """|(x, y)|, and a tiny positive constant without gradient on the axis."""
    square = x * x + y * y
    return jnp.sqrt(jnp.where(square > _AXIS_RADIUS**2, square, _AXIS_RADIUS**2))


def _polynomial(coefficients, x):
    value = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _solve(coefficients, target, start):
    """x with polynomial(x) = target, by Newton's method.

    Only the last step is differentiated: at the solution its derivative is that of the inverse
    function, in the target as well as in the coefficients.
    """
    slopes = [k * coefficient for k, coefficient in enumerate(coefficients)][1:]

    def step(x):
        slope = _polynomial(slopes, x)
        slope = jnp.where(jnp.abs(slope) > 1e-9, slope, 1e-9)
        return jnp.clip(x - (_polynomial(coefficients, x) - target) / slope, -1e6, 1e6)

    for _ in range(_NEWTON_STEPS - 1):
        start = step(start)
    return step(lax.stop_gradient(start))


def _first_turning_angle(coefficients, samples=256, bisections=40):
    """First angle in (0, pi] where theta (1 + k1 theta^2 + ...) stops growing; infinity if none."""
    coefficients = lax.stop_gradient(coefficients)
    slopes = [jnp.ones_like(coefficients[0])]
    slopes += [(2 * k + 3) * coefficient for k, coefficient in enumerate(coefficients)]

    def falls(theta):
        return _polynomial(slopes, theta * theta) <= 0

    grid = jnp.linspace(0, np.pi, samples + 1, dtype=slopes[0].dtype)
    falling = falls(grid)
    first = jnp.argmax(falling, -1)[..., None]

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        below = falls(middle)
        return jnp.where(below, low, middle), jnp.where(below, middle, high)

    interval = (grid[jnp.maximum(first - 1, 0)], grid[first])
    high = lax.fori_loop(0, bisections, halve, interval)[1]
    return jnp.where(jnp.any(falling, -1, keepdims=True), high, jnp.inf)
