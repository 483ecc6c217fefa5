"""Rigid transforms and rotations, for numpy and JAX arrays alike.

`a_from_b` is the 4x4 matrix that takes coordinates in frame b to frame a. Quaternions are
(w, x, y, z) and need not be normalised on input. Leading axes broadcast.
"""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.scene.pytree import Array


def array_module(*arrays: object) -> ModuleType:
    """`jax.numpy` if any argument is a JAX array, else `numpy`."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def quat_normalize(quat: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Unit quaternion; a zero quaternion becomes the identity."""
    xp = array_module(quat)
    square = xp.sum(quat * quat, axis=-1, keepdims=True)
    identity = xp.asarray([1.0, 0.0, 0.0, 0.0], quat.dtype)
    valid = square > 1e-20
    return xp.where(valid, quat / xp.sqrt(xp.where(valid, square, 1.0)), identity)


def quat_multiply(a: Float[Array, "*b 4"], b: Float[Array, "*#b 4"]) -> Float[Array, "*c 4"]:
    """Hamilton product: the rotation b followed by the rotation a."""
    xp = array_module(a, b)
    aw, ax, ay, az = (a[..., i] for i in range(4))
    bw, bx, by, bz = (b[..., i] for i in range(4))
    return xp.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def quat_to_matrix(quat: Float[Array, "*b 4"]) -> Float[Array, "*b 3 3"]:
    """Rotation matrix of a quaternion (normalised inside)."""
    xp = array_module(quat)
    q = quat_normalize(quat)
    w, x, y, z = (q[..., i] for i in range(4))
    rows = [
        xp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=-1),
        xp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=-1),
        xp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=-1),
    ]
    return xp.stack(rows, axis=-2)


def matrix_to_quat(matrix: Float[Array, "*b 3 3"]) -> Float[Array, "*b 4"]:
    """Quaternion with w >= 0 of a rotation matrix.

    Each of the four rows below is the quaternion times four times one of its components; the one
    with the largest component is the best conditioned (Markley, 2008).
    """
    xp = array_module(matrix)
    m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    trace = m[0][0] + m[1][1] + m[2][2]
    one = xp.ones_like(trace)
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    squares = [one + 2 * m[i][i] - trace for i in range(3)]
    rows = xp.stack(
        [
            xp.stack([one + trace, wx, wy, wz], axis=-1),
            xp.stack([wx, squares[0], xy, xz], axis=-1),
            xp.stack([wy, xy, squares[1], yz], axis=-1),
            xp.stack([wz, xz, yz, squares[2]], axis=-1),
        ],
        axis=-2,
    )
    largest = xp.argmax(xp.stack([one + trace, *squares], axis=-1), axis=-1)
    quat = xp.take_along_axis(rows, largest[..., None, None], axis=-2)[..., 0, :]
    quat = quat_normalize(quat)
    return xp.where(quat[..., :1] < 0, -quat, quat)


def quat_slerp(
    a: Float[Array, "*b 4"], b: Float[Array, "*b 4"], weight: Float[Array, "*#b"]
) -> Float[Array, "*b 4"]:
    """Spherical interpolation from a (weight 0) to b (weight 1) along the shorter arc."""
    xp = array_module(a, b)
    a, b = quat_normalize(a), quat_normalize(b)
    dot = xp.sum(a * b, axis=-1)
    b = xp.where(dot[..., None] < 0, -b, b)
    angle = xp.arccos(xp.clip(xp.abs(dot), 0.0, 1.0 - 1e-7))
    sine = xp.sin(angle)
    wa, wb = xp.sin((1 - weight) * angle) / sine, xp.sin(weight * angle) / sine
    return quat_normalize(wa[..., None] * a + wb[..., None] * b)


def make_transform(
    rotation: Float[Array, "*b 3 3"], translation: Float[Array, "*b 3"]
) -> Float[Array, "*b 4 4"]:
    """4x4 matrix of a rotation and a translation."""
    xp = array_module(rotation, translation)
    top = xp.concatenate([rotation, translation[..., None]], axis=-1)
    bottom = xp.broadcast_to(xp.asarray([0.0, 0.0, 0.0, 1.0], top.dtype), (*top.shape[:-2], 1, 4))
    return xp.concatenate([top, bottom], axis=-2)


def invert_transform(transform: Float[Array, "*b 4 4"]) -> Float[Array, "*b 4 4"]:
    """b_from_a of a rigid a_from_b."""
    xp = array_module(transform)
    inverse = xp.swapaxes(transform[..., :3, :3], -1, -2)
    return make_transform(inverse, -(inverse @ transform[..., :3, 3:])[..., 0])


def transform_points(
    transform: Float[Array, "*t 4 4"], points: Float[Array, "*p 3"]
) -> Float[Array, "*o 3"]:
    """Apply a_from_b to points in b. The transform's leading axes come before the points' own:
    a [T, 4, 4] transform and [T, N, 3] points give [T, N, 3]."""
    rotation, translation = transform[..., :3, :3], transform[..., :3, 3]
    if points.ndim > transform.ndim - 1:
        return (
            points @ array_module(rotation).swapaxes(rotation, -1, -2) + translation[..., None, :]
        )
    return (rotation @ points[..., None])[..., 0] + translation


def interpolate_transforms(
    times: Float[Array, "n"], transforms: Float[Array, "n 4 4"], query: Float[Array, "*q"]
) -> Float[Array, "*q 4 4"]:
    """Poses at query times: linear translation, slerp rotation, held constant beyond the ends.

    Args:
        times: Ascending, in seconds.
        transforms: a_from_b at those times.
        query: In seconds.
    """
    xp = array_module(times, transforms, query)
    left, weight = interpolation_weights(times, query)
    right = xp.minimum(left + 1, times.shape[0] - 1)
    quats = matrix_to_quat(transforms[..., :3, :3])
    weight = weight.astype(transforms.dtype)
    quat = quat_slerp(quats[left], quats[right], weight)
    start, end = transforms[left, :3, 3], transforms[right, :3, 3]
    return make_transform(quat_to_matrix(quat), start + weight[..., None] * (end - start))


def interpolation_weights(times: Float[Array, "n"], query: Float[Array, "*q"]):
    """Index of the sample at or before each query and the weight of the next one, in [0, 1]."""
    xp = array_module(times, query)
    last = times.shape[0] - 1
    left = xp.clip(xp.searchsorted(times, query, side="right") - 1, 0, max(last - 1, 0))
    right = xp.minimum(left + 1, last)
    span = times[right] - times[left]
    weight = (query - times[left]) / xp.where(span > 0, span, 1.0)
    return left, xp.clip(weight, 0.0, 1.0)


def yaw_rotation(yaw: Float[Array, "*b"]) -> Float[Array, "*b 3 3"]:
    """Rotation about z (up) by `yaw` radians, counter-clockwise seen from above."""
    xp = array_module(yaw)
    c, s, zero, one = xp.cos(yaw), xp.sin(yaw), xp.zeros_like(yaw), xp.ones_like(yaw)
    rows = [[c, -s, zero], [s, c, zero], [zero, zero, one]]
    return xp.stack([xp.stack(r, axis=-1) for r in rows], axis=-2)


EGO_FROM_OPENCV = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
"""A camera that looks forward: OpenCV axes (right, down, forward) in ego axes (front, left, up)."""
