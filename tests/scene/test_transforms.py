"""Rotations and rigid transforms: group laws, round trips, numpy and JAX agree."""

import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.scene import (
    interpolate_transforms,
    invert_transform,
    make_transform,
    matrix_to_quat,
    quat_multiply,
    quat_slerp,
    quat_to_matrix,
    transform_points,
    yaw_rotation,
)

RNG = np.random.default_rng(0)


def random_transforms(n):
    return make_transform(quat_to_matrix(RNG.normal(size=(n, 4))), RNG.normal(size=(n, 3)))


def test_quaternion_product_is_matrix_product():
    a, b = RNG.normal(size=(2, 50, 4))
    product = quat_to_matrix(quat_multiply(a, b))
    unnormalised = quat_to_matrix(a) @ quat_to_matrix(b)
    np.testing.assert_allclose(product, unnormalised, atol=1e-12)


def test_matrix_round_trip_covers_every_branch():
    axes = np.concatenate([np.eye(4), -np.eye(4), RNG.normal(size=(100, 4))])
    matrices = quat_to_matrix(axes)
    np.testing.assert_allclose(quat_to_matrix(matrix_to_quat(matrices)), matrices, atol=1e-12)
    assert (matrix_to_quat(matrices)[:, 0] >= 0).all()


def test_inverse_undoes():
    transforms, points = random_transforms(20), RNG.normal(size=(20, 7, 3))
    back = transform_points(invert_transform(transforms), transform_points(transforms, points))
    np.testing.assert_allclose(back, points, atol=1e-12)


def test_transform_points_with_and_without_point_axis():
    transforms, points = random_transforms(5), RNG.normal(size=(5, 3))
    single = transform_points(transforms, points)
    np.testing.assert_allclose(single, transform_points(transforms, points[:, None])[:, 0])


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_slerp_turns_at_constant_rate(weight):
    angle = 1.2
    start, end = yaw_rotation(np.array([0.3])), yaw_rotation(np.array([0.3 + angle]))
    quat = quat_slerp(matrix_to_quat(start), -matrix_to_quat(end), np.array([weight]))
    expected = yaw_rotation(np.array([0.3 + weight * angle]))
    np.testing.assert_allclose(quat_to_matrix(quat), expected, atol=1e-6)


def test_interpolation_hits_samples_and_holds_ends():
    times, transforms = np.array([0.0, 1.0, 3.0]), random_transforms(3)
    query = np.array([-5.0, 0.0, 1.0, 3.0, 9.0])
    expected = transforms[[0, 0, 1, 2, 2]]
    np.testing.assert_allclose(
        interpolate_transforms(times, transforms, query), expected, atol=1e-6
    )
    middle = interpolate_transforms(times, transforms, np.array([2.0]))
    np.testing.assert_allclose(middle[0, :3, 3], transforms[1:, :3, 3].mean(axis=0), atol=1e-9)


def test_numpy_and_jax_agree():
    transforms = random_transforms(4).astype(np.float32)
    times, query = np.arange(4, dtype=np.float32), np.array([0.4, 2.9], np.float32)
    host = interpolate_transforms(times, transforms, query)
    device = interpolate_transforms(*(jnp.asarray(x) for x in (times, transforms, query)))
    np.testing.assert_allclose(host, np.asarray(device), atol=1e-5)
