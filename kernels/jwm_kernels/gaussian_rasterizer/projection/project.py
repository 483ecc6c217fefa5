"""Projection of 3D Gaussians to the screen, in plain differentiable JAX.

Pinhole, orthographic and undistorted fisheye cameras are projected by EWA splatting; distortion, an
f-theta lens or a rolling shutter calls for the unscented transform (`unscented.py`). Both give the
mean and two rows of numbers whose Gram matrix is the screen covariance, and share the rest.

EWA: with W the 3x3 rotation of the view matrix, R the rotation and S the scales of a Gaussian, and
J the Jacobian of the camera at the mean, the covariance on the screen is

    Sigma2 = (J W R S)(J W R S)^T + eps2d I = [[r0.r0, r0.r1], [r0.r1, r1.r1]] + eps2d I

where r0, r1 are the two rows of J W R S. Its determinant is evaluated without cancellation as
sum_{i<j} (r0_i r1_j - r0_j r1_i)^2 + eps2d (r0.r0 + r1.r1) + eps2d^2.

A splat reaches a pixel where o exp(-d^T Sigma2^-1 d / 2) >= 1/255, so its half-widths on the screen
are sqrt(2 ln(255 o)) sqrt(diag Sigma2) (the bounding box of that ellipse).

Everything is written component by component: the arrays that are processed are [..., C, N], never
[..., N, 3, 3], which fuses into one loop on every platform and needs no matrix unit.

Sources: Zwicker et al., EWA Splatting (2002); Kerbl et al., 3D Gaussian Splatting (2023);
Yu et al., Mip-Splatting (2024) for the compensation; gsplat for names and clamping.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.constants import (
    ALPHA_MIN,
    COORDINATE_MAX,
    DEPTH_MIN,
    DET_MIN,
    LOG_ALPHA_SLACK,
    VARIANCE_MAX,
)
from jwm_kernels.gaussian_rasterizer.projection.camera_types import (
    Distortion,
    RollingShutterType,
    UnscentedTransformParameters,
)
from jwm_kernels.gaussian_rasterizer.projection.ewa import JACOBIANS, needs_unscented
from jwm_kernels.gaussian_rasterizer.projection.unscented import (
    cross,
    move_camera,
    project_sigma_points,
)
from jwm_kernels.gaussian_rasterizer.table import interleave

Array = jax.Array | np.ndarray

COMPENSATION_MIN = 0.005
"""Floor of the antialiasing factor, as in gsplat."""

UNSCENTED_BLUR = 1e-6
"""Variance in px^2 that gsplat adds after the unscented transform, on top of `eps2d`."""


class Projection(NamedTuple):
    """Splats on the screen of every camera; leading axes `*batch`, then cameras, then Gaussians.

    Where `visible` is False the other fields hold finite values without meaning.
    """

    means2d: Float[Array, "*batch c n 2"]
    """Pixels, (0, 0) is the top left corner of the image."""
    depths: Float[Array, "*batch c n"]
    """Camera z in metres."""
    covars2d: Float[Array, "*batch c n 3"]
    """xx, xy, yy in px^2, `eps2d` included."""
    dets: Float[Array, "*batch c n"]
    """Determinants of covars2d."""
    opacities: Float[Array, "*batch c n"]
    """Opacities, multiplied by the compensation in antialiased mode."""
    compensations: Float[Array, "*batch c n"]
    """sqrt(det without blur / det with blur), floored at 0.005."""
    extents: Float[Array, "*batch c n 2"]
    """Half-widths in pixels of the box outside which alpha < 1/255; carries no gradient."""
    visible: Bool[Array, "*batch c n"]

    @property
    def conics(self) -> Float[Array, "*batch c n 3"]:
        """Inverse covariances as (a, b, c) of a x^2 + 2 b x y + c y^2, gsplat's form."""
        xx, xy, yy = jnp.moveaxis(self.covars2d, -1, 0)
        return jnp.stack([yy, -xy, xx], -1) / self.dets[..., None]

    @property
    def radii(self):
        """int32 [*batch, C, N, 2], half-widths rounded up, 0 where not visible (gsplat's radii)."""
        whole = jnp.ceil(jnp.minimum(self.extents, 1e9)).astype(jnp.int32)
        return jnp.where(self.visible[..., None], whole, 0)


def project(
    means: Float[Array, "*batch n 3"],
    quats: Float[Array, "*batch n 4"] | None,
    scales: Float[Array, "*batch n 3"] | None,
    opacities: Float[Array, "*batch n"],
    viewmats: Float[Array, "*batch c 4 4"],
    Ks: Float[Array, "*batch c 3 3"],
    width: int,
    height: int,
    *,
    covars: Float[Array, "*batch n 3 3"] | None = None,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    antialiased: bool = False,
    camera_model: str = "pinhole",
    distortion: Distortion | None = None,
    rolling_shutter: RollingShutterType = RollingShutterType.GLOBAL,
    viewmats_rs: Float[Array, "*batch c 4 4"] | None = None,
    with_ut: bool | None = None,
    ut_params: UnscentedTransformParameters | None = None,
) -> Projection:
    """Projects Gaussians into every camera.

    A Gaussian with a value that is not finite is invisible and has zero gradient, and so is every
    Gaussian for a camera that is not usable (see `usable_cameras`); a zero quaternion counts as the
    identity, and the sign of a scale does not matter.

    Args:
      means: centres in world metres.
      quats: rotations wxyz, normalised here.
      scales: standard deviations in metres.
      opacities: in [0, 1].
      viewmats: camera from world, OpenCV axes; with a rolling shutter at the first line.
      Ks: intrinsics in pixels (pixels per metre for `ortho`).
      width: image width in pixels.
      height: image height in pixels.
      covars: covariances in square metres, in place of quats and scales, which may then be None.
        Symmetrised here; not for the unscented transform.
      near_plane: nearest visible depth in metres, exclusive.
      far_plane: farthest visible depth in metres, exclusive.
      radius_clip: splats whose half-widths are both at most this many pixels are dropped.
      eps2d: added to the diagonal of the screen covariance, px^2.
      antialiased: multiplies the opacities by the compensation.
      camera_model: "pinhole", "ortho", "fisheye" or "ftheta".
      distortion: of the lens; required by "ftheta".
      rolling_shutter: order in which lines are read.
      viewmats_rs: camera from world at the last line read, where there is a rolling shutter.
      with_ut: projects by the unscented transform; default: only where EWA cannot.
      ut_params: parameters of that transform; None for the defaults.

    Returns:
      `Projection` with axes [*batch, C, N]. Depths under a rolling shutter are those in the middle
      of the frame.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    batch, _, cameras = validation.check_splats(
        means, quats, scales, opacities, viewmats, Ks, covars
    )
    validation.check_sizes(width=width, height=height)
    validation.check_limits(near_plane, far_plane, radius_clip, eps2d)
    validation.check_camera(
        camera_model, distortion, rolling_shutter, viewmats_rs, with_ut, ut_params, covars,
        (*batch, cameras),
    )  # fmt: skip
    if with_ut is None:
        with_ut = needs_unscented(camera_model, distortion, rolling_shutter)
    working = usable_cameras(viewmats, Ks, viewmats_rs, distortion)
    viewmats, Ks, viewmats_rs, distortion = without_broken_cameras(
        working, viewmats, Ks, viewmats_rs, distortion
    )
    usable = usable_gaussians(means, quats, scales, opacities, covars)
    means, opacities = jnp.where(usable[..., None], means, 0.0), jnp.where(usable, opacities, 0.0)
    if covars is None:
        axes, gram = _scaled_axes(*_without_broken(usable, quats, scales)), _gram
    else:
        axes, gram = _round_axes(jnp.where(usable[..., None, None], covars, 0.0))

    def view(i, j):
        return viewmats[..., i, j][..., None]

    mean = [means[..., None, :, k] for k in range(3)]
    camera = [sum(view(i, j) * mean[j] for j in range(3)) + view(i, 3) for i in range(3)]

    z = camera[2] if viewmats_rs is None else move_camera(camera, viewmats, viewmats_rs, 0.5)[2]
    seen = working[..., None] & (z > max(near_plane, DEPTH_MIN)) & (z < far_plane)
    for component in camera:
        seen &= jnp.abs(component) < COORDINATE_MAX
    seen = lax.stop_gradient(seen)
    x, y = (jnp.where(seen, component, 0.0) for component in camera[:2])
    z = jnp.where(seen, z, 1.0)

    axes = [
        [sum(view(i, j) * axes[j][k][..., None, :] for j in range(3)) for k in range(3)]
        for i in range(3)
    ]
    x, y, z, axes = lax.optimization_barrier((x, y, z, axes))
    if with_ut:
        start_z = z if viewmats_rs is None else jnp.where(seen, camera[2], 1.0)
        axes = [[jnp.where(seen, part, 0.0) for part in row] for row in axes]
        u, v, row0, row1, valid = project_sigma_points(
            [x, y, start_z], axes, viewmats, viewmats_rs, Ks, width, height, camera_model,
            distortion, rolling_shutter, ut_params or UnscentedTransformParameters(),
        )  # fmt: skip
        seen, blur = seen & valid, UNSCENTED_BLUR
    else:
        fx, fy, cx, cy = (Ks[..., i, j][..., None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        u, v, row0, row1 = JACOBIANS[camera_model](x, y, z, axes, fx, fy, cx, cy, width, height)
        blur = 0.0

    u, v, row0, row1 = lax.optimization_barrier((u, v, row0, row1))
    square0, square1 = _dot(row0, row0), _dot(row1, row1)
    sane = seen & (square0 < VARIANCE_MAX) & (square1 < VARIANCE_MAX)
    row0 = [jnp.where(sane, component, 0.0) for component in row0]
    row1 = [jnp.where(sane, component, 0.0) for component in row1]
    xx, xy, yy, sharp_det = gram(row0, row1)
    det = sharp_det + eps2d * (xx + yy) + eps2d * eps2d
    sane = lax.stop_gradient(sane & (det > DET_MIN) & (xx >= 0) & (yy >= 0))
    det = jnp.where(sane, det, 1.0)
    compensation = jnp.sqrt(jnp.maximum(sharp_det / det, COMPENSATION_MIN**2))
    det = jnp.where(sane, det + blur * (xx + yy + 2 * eps2d + blur), 1.0)
    xx = jnp.where(sane, xx + eps2d + blur, 1.0)
    yy = jnp.where(sane, yy + eps2d + blur, 1.0)
    xy = jnp.where(sane, xy, 0.0)

    opacity = jnp.broadcast_to(opacities[..., None, :], z.shape)
    if antialiased:
        opacity = opacity * compensation
    o, uc, vc, var_x, var_y = lax.stop_gradient((opacity, u, v, xx, yy))
    reach = jnp.log(jnp.maximum(o / ALPHA_MIN, 1.0)) + LOG_ALPHA_SLACK
    half_x, half_y = jnp.sqrt(2 * reach * var_x), jnp.sqrt(2 * reach * var_y)
    visible = sane & (o >= ALPHA_MIN)
    visible &= (uc + half_x > 0) & (uc - half_x < width)
    visible &= (vc + half_y > 0) & (vc - half_y < height)
    visible &= (half_x > radius_clip) | (half_y > radius_clip)
    projection = Projection(
        means2d=interleave([u, v]),
        depths=z,
        covars2d=interleave([xx, xy, yy]),
        dets=det,
        opacities=opacity,
        compensations=compensation,
        extents=interleave([half_x, half_y]),
        visible=visible,
    )
    return lax.optimization_barrier(projection)


def quat_scale_to_covar(
    quats: Float[Array, "*n 4"], scales: Float[Array, "*n 3"]
) -> Float[Array, "*n 3 3"]:
    """Covariance R S S R^T of Gaussians with rotations `quats` (wxyz, any length) and `scales`."""
    axes = _scaled_axes(quats, scales)
    rows = [jnp.stack([_dot(axes[i], axes[j]) for j in range(3)], -1) for i in range(3)]
    return jnp.stack(rows, -2)


def usable_gaussians(
    means: Float[Array, "*batch n 3"],
    quats: Float[Array, "*batch n 4"] | None,
    scales: Float[Array, "*batch n 3"] | None,
    opacities: Float[Array, "*batch n"],
    covars: Float[Array, "*batch n 3 3"] | None = None,
) -> Bool[Array, "*batch n"]:
    """Which Gaussians hold neither NaN nor infinity nor absurd magnitudes.

    Quats and scales do not count where there are covars.
    """
    usable = jnp.abs(opacities) < COORDINATE_MAX
    for values in (means, quats, scales) if covars is None else (means, covars):
        axes = tuple(range(opacities.ndim, values.ndim))
        usable &= jnp.all(jnp.abs(values) < COORDINATE_MAX, axes)
    return usable


def usable_cameras(
    viewmats: Float[Array, "*batch c 4 4"],
    Ks: Float[Array, "*batch c 3 3"],
    viewmats_rs: Float[Array, "*batch c 4 4"] | None = None,
    distortion: Distortion | None = None,
) -> Bool[Array, "*batch c"]:
    """Which cameras hold neither NaN nor infinity nor absurd magnitudes nor a focal length of 0.

    The numbers of an f-theta lens do not count.
    """
    usable = (Ks[..., 0, 0] != 0) & (Ks[..., 1, 1] != 0)
    for values in (viewmats, Ks, viewmats_rs, *_coefficients(distortion)):
        if values is not None:
            axes = tuple(range(usable.ndim, values.ndim))
            usable &= jnp.all(jnp.abs(values) < COORDINATE_MAX, axes)
    return usable


def without_broken_cameras(usable, viewmats, Ks, viewmats_rs, distortion):
    """Puts the identity in place of poses and intrinsics that are not usable, 0 for lenses."""

    def mend(values, instead):
        mask = usable[(..., *[None] * (values.ndim - usable.ndim))]
        return jnp.where(mask, values, jnp.asarray(instead, values.dtype))

    viewmats, Ks = mend(viewmats, np.eye(4)), mend(Ks, np.eye(3))
    if viewmats_rs is not None:
        viewmats_rs = mend(viewmats_rs, np.eye(4))
    if distortion is not None:
        mended = (None if part is None else mend(part, 0.0) for part in _coefficients(distortion))
        distortion = Distortion(*mended, distortion.ftheta_coeffs)
    return viewmats, Ks, viewmats_rs, distortion


def _coefficients(distortion):
    """The three arrays of a lens with one row a camera."""
    return () if distortion is None else distortion[:3]


def check_projection(projection: Projection) -> tuple[int, ...]:
    """Checks that the fields of a projection fit together.

    Returns:
      the axes [*batch, C, N].

    Raises:
      ValueError: names the field, what was expected and what came.
    """
    validation.check_type("projection", projection, Projection)
    validation.check_floating(**{"projection.depths": projection.depths})
    leading = tuple(projection.depths.shape)
    if len(leading) < 2:
        raise ValueError(f"projection.depths: expected shape [*batch, C, N], got {leading}")
    tails = {"means2d": (2,), "covars2d": (3,), "extents": (2,)}
    for name, values in projection._asdict().items():
        check = validation.check_shape if name == "visible" else validation.check_array
        check(f"projection.{name}", values, (*leading, *tails.get(name, ())))
    return leading


def _without_broken(usable, quats, scales):
    """Replaces what is not usable, and the rotation zero, by the identity."""
    column = usable[..., None]
    identity = jnp.asarray([1.0, 0.0, 0.0, 0.0], quats.dtype)
    rotated = column & jnp.any(quats != 0, -1, keepdims=True)
    return jnp.where(rotated, quats, identity), jnp.where(column, scales, 1.0)


def _scaled_axes(quats, scales):
    """R S as a 3x3 nested list of [..., N] arrays."""
    w, x, y, z = (quats[..., k] for k in range(4))
    largest = lax.stop_gradient(jnp.max(jnp.abs(quats), -1))
    largest = jnp.where(largest > 0, largest, 1.0)
    w, x, y, z = w / largest, x / largest, y / largest, z / largest
    square = w * w + x * x + y * y + z * z
    two = 2.0 / jnp.where(square > 0, square, 1.0)
    rotation = [
        [1 - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)],
        [two * (x * y + w * z), 1 - two * (x * x + z * z), two * (y * z - w * x)],
        [two * (x * z - w * y), two * (y * z + w * x), 1 - two * (x * x + y * y)],
    ]
    return [[rotation[i][k] * scales[..., k] for k in range(3)] for i in range(3)]


def _round_axes(covars):
    """Axes of round Gaussians, and how `_gram` is corrected for what they are not.

    With s^2 the trace of a covariance, it is s S s where the entries of S are at most 1. To go on
    with s I instead of a root of it, and to put S into the middle of the products in the end, needs
    no factorisation and has a finite gradient even where the covariance is singular.
    """
    covars = (covars + jnp.swapaxes(covars, -1, -2)) / 2
    trace = lax.stop_gradient(covars[..., 0, 0] + covars[..., 1, 1] + covars[..., 2, 2])
    trace = jnp.where(trace > 0, trace, 1.0)
    size = jnp.sqrt(trace)
    axes = [[size * float(i == k) for k in range(3)] for i in range(3)]
    inner = covars / trace[..., None, None]
    inner = [[inner[..., None, :, i, k] for k in range(3)] for i in range(3)]

    def gram(a, b):
        inner_a, inner_b = ([_dot(row, v) for row in inner] for v in (a, b))
        normal = cross(a, b)
        adjugate = [cross(inner[(i + 1) % 3], inner[(i + 2) % 3]) for i in range(3)]
        determinant = _dot(normal, [_dot(row, normal) for row in adjugate])
        return _dot(a, inner_a), _dot(a, inner_b), _dot(b, inner_b), determinant

    return axes, gram


def _gram(a, b):
    """a.a, a.b, b.b and (a.a)(b.b) - (a.b)^2, this as a sum of squares (Lagrange's identity)."""
    pairs = itertools.combinations(range(len(a)), 2)
    determinant = sum((a[i] * b[j] - a[j] * b[i]) ** 2 for i, j in pairs)
    return _dot(a, a), _dot(a, b), _dot(b, b), determinant


def _dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))
