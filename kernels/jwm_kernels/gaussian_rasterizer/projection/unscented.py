"""Projection of Gaussians through any camera by the unscented transform.

Seven sigma points, the mean m and m +- alpha sqrt(3 + kappa) sigma_k e_k along the principal axes,
are projected exactly, each at the time at which a rolling shutter reads its pixel. With p_0 the
pixel of the mean, d_i the pixels of the other six minus p_0 and w = 1 / (2 alpha^2 (3 + kappa)),
gsplat's weighted moments (whose weights of the mean are near -100) are the same as

    mean = p_0 + delta,   delta = w sum_i d_i
    Sigma2 = w sum_i d_i d_i^T + (beta - alpha^2) delta delta^T

which have no large terms of opposite sign, and which are a sum of squares: seven rows where the EWA
projection has three.

A rolling shutter moves the camera by exp(t Omega) about its start, Omega = log(R_end R_start^T),
and its translation linearly, which is gsplat's slerp and lerp. The time t of a point is found by
iteration and carries no gradient, because time is constant within a line of the image.

Sources: Julier and Uhlmann, Unscented Filtering (2004); Wu et al., 3DGUT (CVPR 2025); gsplat for
the parameters and for what is visible.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float

from jwm_kernels.gaussian_rasterizer.projection.camera_types import (
    Distortion,
    RollingShutterType,
    UnscentedTransformParameters,
)
from jwm_kernels.gaussian_rasterizer.projection.lenses import make_lens

Array = jax.Array | np.ndarray
Point = list[Float[Array, "..."]]

OFFSET_MAX = 1e9
"""A Gaussian with a sigma point this many pixels from its mean is not drawn."""

SHUTTER_ITERATIONS = 10
"""Fixed-point iterations for the time of a sigma point, as in gsplat."""

_TIME_MAX = 100.0


def project_sigma_points(
    centre: Point,
    axes: list[Point],
    viewmats: Float[Array, "*batch c 4 4"],
    viewmats_rs: Float[Array, "*batch c 4 4"] | None,
    Ks: Float[Array, "*batch c 3 3"],
    width: int,
    height: int,
    camera_model: str,
    distortion: Distortion | None,
    rolling_shutter: RollingShutterType,
    parameters: UnscentedTransformParameters,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Point, Point, Bool[Array, "..."]]:
    """Mean and covariance of Gaussians on the screen.

    Args:
      centre: camera coordinates x, y, z of the means at the start of the frame, [*batch, C, N].
      axes: axes[i][k] is coordinate i of principal axis k, a standard deviation long.
      viewmats: camera from world at the start of the frame.
      viewmats_rs: camera from world at its end; None without rolling shutter.
      Ks: intrinsics.
      width: image width in pixels.
      height: image height in pixels.
      camera_model: a key of `LENSES`.
      distortion: coefficients of the lens.
      rolling_shutter: order of the lines.
      parameters: of the transform.

    Returns:
      u, v of the mean in pixels; the seven parts of the two rows whose Gram matrix is the screen
      covariance; whether the Gaussian is visible by its sigma points. All are finite.
    """
    spread = parameters.alpha * math.sqrt(3 + parameters.kappa)
    points = []
    for i in range(3):
        steps = [spread * axes[i][k] for k in range(3)]
        first = jnp.zeros_like(steps[0])
        points.append(centre[i] + jnp.stack([first, *steps, *(-step for step in steps)]))

    def project(points, cameras, times):
        viewmats, viewmats_rs, Ks, distortion = cameras
        lens = make_lens(
            camera_model, Ks, width, height, distortion, parameters.in_image_margin_factor
        )
        if viewmats_rs is not None:
            points = move_camera(points, viewmats, viewmats_rs, times)
        return lens(*points)

    cameras = (viewmats, viewmats_rs, Ks, distortion)
    times, reached = None, True
    if viewmats_rs is not None:
        still_points, still_cameras = lax.stop_gradient((points, cameras))

        def still(times):
            u, v, valid = project(still_points, still_cameras, times)
            cx, cy = still_cameras[2][..., 0, 2][..., None], still_cameras[2][..., 1, 2][..., None]
            return _line_time(u + cx, v + cy, width, height, rolling_shutter), valid

        times, reached = _reading_times(still, jnp.zeros_like(still_points[2]))
    u, v, valid = project(points, cameras, times)
    valid &= reached
    every = parameters.require_all_sigma_points_valid
    visible = jnp.all(valid, 0) if every else jnp.any(valid, 0)

    offset_u, offset_v = u[1:] - u[0], v[1:] - v[0]
    sane = jnp.all((jnp.abs(offset_u) < OFFSET_MAX) & (jnp.abs(offset_v) < OFFSET_MAX), 0)
    offset_u, offset_v = jnp.where(sane, offset_u, 0.0), jnp.where(sane, offset_v, 0.0)
    weight = 1 / (2 * spread * spread)
    delta_u, delta_v = weight * jnp.sum(offset_u, 0), weight * jnp.sum(offset_v, 0)
    root, root_delta = math.sqrt(weight), math.sqrt(parameters.beta - parameters.alpha**2)
    row0 = [root * offset_u[i] for i in range(6)] + [root_delta * delta_u]
    row1 = [root * offset_v[i] for i in range(6)] + [root_delta * delta_v]
    u = jnp.where(sane, u[0], 0.0) + delta_u + Ks[..., 0, 2][..., None]
    v = jnp.where(sane, v[0], 0.0) + delta_v + Ks[..., 1, 2][..., None]
    return u, v, row0, row1, visible & sane


def move_camera(
    points: Point,
    viewmats: Float[Array, "*batch c 4 4"],
    viewmats_rs: Float[Array, "*batch c 4 4"],
    times: Float[Array, "..."] | float,
) -> Point:
    """Camera coordinates at another time of the frame.

    Args:
      points: camera coordinates x, y, z at the start of the frame, [..., *batch, C, N].
      viewmats: camera from world at the start.
      viewmats_rs: camera from world at the end.
      times: 0 at the start, 1 at the end.

    Returns:
      camera coordinates x, y, z.
    """
    omega, shift, angle = _motion(viewmats, viewmats_rs)
    start = [viewmats[..., i, 3][..., None] for i in range(3)]
    half_turns = angle * times / np.pi
    first = times * jnp.sinc(half_turns)
    second = 0.5 * (times * jnp.sinc(half_turns / 2)) ** 2
    rotated = [point - origin for point, origin in zip(points, start, strict=True)]
    once = cross(omega, rotated)
    twice = cross(omega, once)
    return [points[i] + first * once[i] + second * twice[i] + times * shift[i] for i in range(3)]


def _motion(viewmats, viewmats_rs):
    """Rotation vector Omega, translation and angle |Omega| from the start to the end of a frame."""
    start, end = viewmats[..., :3, :3], viewmats_rs[..., :3, :3]

    def turn(i, j):
        return jnp.sum(end[..., i, :] * start[..., j, :], -1)[..., None]

    sines = [0.5 * (turn(i, j) - turn(j, i)) for i, j in ((2, 1), (0, 2), (1, 0))]
    square = sum(sine * sine for sine in sines)
    turns = square > 1e-18
    sine = jnp.sqrt(jnp.where(turns, square, 1.0))
    cosine = 0.5 * (turn(0, 0) + turn(1, 1) + turn(2, 2) - 1)
    factor = jnp.where(turns, jnp.arctan2(sine, cosine) / sine, 1.0)
    shift = [(viewmats_rs[..., i, 3] - viewmats[..., i, 3])[..., None] for i in range(3)]
    return [factor * part for part in sines], shift, jnp.where(turns, factor * sine, 0.0)


def _reading_times(project, zero):
    """When each sigma point is read, and whether it is in the image at the start or at the end.

    A point that is in neither stays where it is at the end.
    """
    starts, valid_start = project(zero)
    ends, valid_end = project(zero + 1)
    reached = valid_start | valid_end
    first = jnp.where(valid_start, starts, ends)
    times = lax.fori_loop(1, SHUTTER_ITERATIONS, lambda _, times: project(times)[0], first)
    return jnp.where(reached, times, 1.0), reached


def _line_time(u, v, width, height, rolling_shutter):
    """Time of the line of a pixel, 0 for the first and 1 for the last one read."""
    downwards = rolling_shutter in (
        RollingShutterType.ROLLING_TOP_TO_BOTTOM,
        RollingShutterType.ROLLING_BOTTOM_TO_TOP,
    )
    place, size = (v, height) if downwards else (u, width)
    if size == 1:
        return jnp.full_like(place, 0.5)
    forwards = rolling_shutter in (
        RollingShutterType.ROLLING_TOP_TO_BOTTOM,
        RollingShutterType.ROLLING_LEFT_TO_RIGHT,
    )
    line = jnp.floor(place) if forwards else size - jnp.ceil(place)
    return jnp.clip(line / (size - 1), -_TIME_MAX, _TIME_MAX)


def cross(a: Point, b: Point) -> Point:
    """Cross product of vectors given by their three coordinates."""
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
