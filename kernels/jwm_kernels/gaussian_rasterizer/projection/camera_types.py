"""What describes a camera beyond its intrinsics; the names are gsplat's.

Arrays in these types are differentiable inputs like any other and may be traced by `jax.jit`; enums
and `UnscentedTransformParameters` are static.
"""

import dataclasses
import enum
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray


class RollingShutterType(enum.Enum):
    """Which line of the image is read first; the first is seen from `viewmats`."""

    ROLLING_TOP_TO_BOTTOM = 0
    ROLLING_LEFT_TO_RIGHT = 1
    ROLLING_BOTTOM_TO_TOP = 2
    ROLLING_RIGHT_TO_LEFT = 3
    GLOBAL = 4


class FThetaPolynomialType(enum.Enum):
    """Which of the two f-theta polynomials is exact; the other one starts Newton's method."""

    PIXELDIST_TO_ANGLE = 0
    ANGLE_TO_PIXELDIST = 1


@dataclasses.dataclass(frozen=True)
class UnscentedTransformParameters:
    """Spread of the seven sigma points, and when a Gaussian counts as visible."""

    alpha: float = 0.1
    """Sigma points lie alpha sqrt(3 + kappa) standard deviations from the mean."""
    beta: float = 2.0
    """Prior knowledge of the distribution, 2 for a Gaussian; at least alpha^2."""
    kappa: float = 0.0
    """Secondary spread, over -3."""
    in_image_margin_factor: float = 0.1
    """A sigma point is valid in the image and this part of its size around it."""
    require_all_sigma_points_valid: bool = False
    """Every sigma point must be valid; otherwise one suffices."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "kappa", "in_image_margin_factor"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not self.in_image_margin_factor >= 0:
            raise ValueError(
                "ut_params: expected in_image_margin_factor >= 0, "
                f"got {self.in_image_margin_factor}"
            )
        if not (self.alpha > 0 and self.kappa > -3 and self.beta >= self.alpha**2):
            raise ValueError(
                "ut_params: expected alpha > 0, kappa > -3 and beta >= alpha^2, "
                f"got alpha {self.alpha}, kappa {self.kappa}, beta {self.beta}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FThetaCameraDistortionParameters:
    """F-theta lens: distance from the principal point as a polynomial of the angle to the axis.

    Shared by all cameras (shapes below) or one for each ([*batch, C, 6] and so on). Focal lengths
    in `Ks` are not used. As in gsplat the principal point counts from the centre of the first
    pixel, so 0.5 is added to that of `Ks`. Numbers may be arrays or, as in gsplat, lists; JAX also
    puts placeholders in their place, hence the open types.
    """

    reference_poly: FThetaPolynomialType = dataclasses.field(metadata={"static": True})
    """The polynomial that is exact."""
    pixeldist_to_angle_poly: Any
    """[6] radians of a distance in pixels, constant term first."""
    angle_to_pixeldist_poly: Any
    """[6] pixels of an angle in radians, constant term first."""
    max_angle: Any
    """[] angle in radians beyond which nothing is seen."""
    linear_cde: Any
    """[3] (c, d, e) of the matrix [[c, d], [e, 1]] that multiplies the offset in the image."""


class Distortion(NamedTuple):
    """Coefficients of a lens.

    Pinhole cameras take the first three (OpenCV's rational, tangential and thin prism terms),
    fisheye cameras `radial_coeffs` with four values, f-theta cameras `ftheta_coeffs`.
    """

    radial_coeffs: Float[Array, "*batch c k"] | None = None
    """[*batch, C, 4 or 6] k1.. in OpenCV's order; the missing ones of a pinhole camera are 0."""
    tangential_coeffs: Float[Array, "*batch c 2"] | None = None
    """[*batch, C, 2] p1, p2."""
    thin_prism_coeffs: Float[Array, "*batch c 4"] | None = None
    """[*batch, C, 4] s1 to s4."""
    ftheta_coeffs: FThetaCameraDistortionParameters | None = None
    """See there."""
