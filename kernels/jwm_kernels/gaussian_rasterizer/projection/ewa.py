"""Cameras of the EWA projection: the pixel of a mean and the Jacobian there.

Every function takes camera coordinates x, y, z and the columns of W R S (arrays [*batch, C, N]) and
returns the pixel (u, v) and the two rows of J W R S, each as three arrays.

Source: Zwicker et al., EWA Splatting (2002); clamping and the fisheye camera as in gsplat.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jwm_kernels.gaussian_rasterizer.projection.camera_types import Distortion, RollingShutterType

FRUSTUM_MARGIN = 0.3
"""x/z and y/z are clamped in the Jacobian to the image border plus this part of tan(fov/2)."""

FISHEYE_AXIS = 1e-7
"""Metres (or square metres) that keep the fisheye camera regular on its axis, as in gsplat."""


def _pinhole(x, y, z, axes, fx, fy, cx, cy, width, height):
    inverse_z = 1.0 / z
    slope_x, slope_y = x * inverse_z, y * inverse_z
    margin_x = FRUSTUM_MARGIN * 0.5 * width / fx
    margin_y = FRUSTUM_MARGIN * 0.5 * height / fy
    tx = jnp.clip(slope_x, -(cx / fx + margin_x), (width - cx) / fx + margin_x)
    ty = jnp.clip(slope_y, -(cy / fy + margin_y), (height - cy) / fy + margin_y)
    row0 = [fx * inverse_z * (axes[0][k] - tx * axes[2][k]) for k in range(3)]
    row1 = [fy * inverse_z * (axes[1][k] - ty * axes[2][k]) for k in range(3)]
    return fx * slope_x + cx, fy * slope_y + cy, row0, row1


def _ortho(x, y, z, axes, fx, fy, cx, cy, width, height):
    row0 = [fx * axes[0][k] + 0 * z for k in range(3)]
    row1 = [fy * axes[1][k] + 0 * z for k in range(3)]
    return fx * x + cx, fy * y + cy, row0, row1


def _fisheye(x, y, z, axes, fx, fy, cx, cy, width, height):
    """Equidistant: the distance from the principal point is the angle to the axis times focal."""
    square = x * x + y * y
    off_axis = square > 0
    length = jnp.where(off_axis, jnp.sqrt(jnp.where(off_axis, square, 1.0)), 0.0) + FISHEYE_AXIS
    scale = jnp.arctan2(length, z + FISHEYE_AXIS) / length
    x2, y2 = x * x + FISHEYE_AXIS, y * y
    inverse = 1 / (x2 + y2 + z * z)
    across = jnp.arctan2(length, z) / length / (x2 + y2)
    along = z * inverse / (x2 + y2)
    mixed = x * y * (along - across)

    def row(focal, d_x, d_y, d_z):
        return [focal * (d_x * axes[0][k] + d_y * axes[1][k] + d_z * axes[2][k]) for k in range(3)]

    row0 = row(fx, x2 * along + y2 * across, mixed, -x * inverse)
    row1 = row(fy, mixed, y2 * along + x2 * across, -y * inverse)
    return fx * x * scale + cx, fy * y * scale + cy, row0, row1


JACOBIANS: dict[str, Callable] = {"pinhole": _pinhole, "ortho": _ortho, "fisheye": _fisheye}
"""camera_model -> function of (x, y, z, axes, fx, fy, cx, cy, width, height)."""


def needs_unscented(
    camera_model: str, distortion: Distortion | None, rolling_shutter: RollingShutterType
) -> bool:
    """Whether a camera is beyond EWA, so that only the unscented transform can project it."""
    distorted = distortion is not None and any(part is not None for part in distortion)
    moving = rolling_shutter is not RollingShutterType.GLOBAL
    return camera_model not in JACOBIANS or distorted or moving
