"""Real spherical harmonics up to degree 4, in the sign convention of 3D Gaussian Splatting.

Degree 1 is (-0.4886 y, 0.4886 z, -0.4886 x). Polynomials as in Sloan, "Efficient Spherical Harmonic
Evaluation" (JCGT 2013), the source that gsplat names as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jwm_kernels.gaussian_rasterizer import validation

Array = jax.Array | np.ndarray


def spherical_harmonics(
    degrees_to_use: int, dirs: Float[Array, "*n 3"], coeffs: Float[Array, "*n k d"]
) -> Float[Array, "*n d"]:
    """Sums basis functions times coefficients: no offset of 0.5 and no clamping.

    Args:
      degrees_to_use: 0 to 4; the first (degree + 1)^2 coefficients count.
      dirs: directions, normalised here; a zero direction counts as (0, 0, 0).
      coeffs: at least (degree + 1)^2 coefficients of D channels.

    Returns:
      Values of D channels.

    Raises:
      ValueError: the degree is not a whole number from 0 to 4, or the arrays do not fit it or each
        other.
    """
    validation.check_floating(dirs=dirs, coeffs=coeffs)
    validation.check_shape("dirs", dirs, (*coeffs.shape[:-2], 3))
    validation.check_harmonics("degrees_to_use", degrees_to_use, "coeffs", coeffs)
    return sum_of_harmonics(degrees_to_use, dirs, coeffs)


def sum_of_harmonics(degree, dirs, coeffs):
    """`spherical_harmonics` [..., D] of dirs [..., 3] and coeffs [..., K, D], which broadcast.

    Written number by number, so that everything fuses into loops over directions: no array has both
    the axes that only directions have and the axis of coefficients, neither here nor in the
    gradient. Splitting the coefficients instead of indexing them makes their gradient one
    concatenation.
    """
    channels = coeffs.shape[-1]
    flat = coeffs.reshape(*coeffs.shape[:-2], -1)
    parts = [part[..., 0] for part in lax.split(flat, [1] * flat.shape[-1], axis=flat.ndim - 1)]
    basis = _basis(degree, *_normalized(dirs))
    sums = [
        sum(value * parts[k * channels + channel] for k, value in enumerate(basis))
        for channel in range(channels)
    ]
    return jnp.stack(sums, -1)


def _normalized(dirs):
    largest = lax.stop_gradient(jnp.max(jnp.abs(dirs), -1))
    largest = jnp.where(largest > 0, largest, 1.0)
    x, y, z = (dirs[..., k] / largest for k in range(3))
    square = x * x + y * y + z * z
    inverse = lax.rsqrt(jnp.where(square > 0, square, 1.0))
    return x * inverse, y * inverse, z * inverse


def _basis(degree, x, y, z):
    basis = [jnp.full_like(x, 0.2820947917738781)]
    if degree >= 1:
        basis += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        z2 = z * z
        b0 = -1.092548430592079 * z
        c1, s1 = x * x - y * y, 2 * x * y
        basis += [
            0.5462742152960395 * s1,
            b0 * y,
            0.9461746957575601 * z2 - 0.3153915652525201,
            b0 * x,
            0.5462742152960395 * c1,
        ]
    if degree >= 3:
        c0 = -2.285228997322329 * z2 + 0.4570457994644658
        b1 = 1.445305721320277 * z
        c2, s2 = x * c1 - y * s1, x * s1 + y * c1
        basis += [
            -0.5900435899266435 * s2,
            b1 * s1,
            c0 * y,
            z * (1.865881662950577 * z2 - 1.119528997770346),
            c0 * x,
            b1 * c1,
            -0.5900435899266435 * c2,
        ]
    if degree >= 4:
        d0 = z * (-4.683325804901025 * z2 + 2.007139630671868)
        c1_4 = 3.31161143515146 * z2 - 0.47308734787878
        b2 = -1.770130769779931 * z
        c3, s3 = x * c2 - y * s2, x * s2 + y * c2
        z_degree_2 = 0.9461746957575601 * z2 - 0.3153915652525201
        z_degree_3 = z * (1.865881662950577 * z2 - 1.119528997770346)
        basis += [
            0.6258357354491763 * s3,
            b2 * s2,
            c1_4 * s1,
            d0 * y,
            1.984313483298443 * z * z_degree_3 - 1.006230589874905 * z_degree_2,
            d0 * x,
            c1_4 * c1,
            b2 * c2,
            0.6258357354491763 * c3,
        ]
    return basis
