"""Cameras: projection and rays are inverses, resizing keeps rays, rigs move rigidly."""

import numpy as np
import pytest

from jwm_jax.scene import (
    EGO_FROM_OPENCV,
    Camera,
    Intrinsics,
    Rig,
    make_transform,
    stack_cameras,
    yaw_rotation,
)

K = np.array([[110.0, 0, 81], [0, 105, 47], [0, 0, 1]])


def camera(x=0.0, yaw=0.0):
    pose = make_transform(yaw_rotation(np.asarray(yaw)), np.array([x, 0.5, 1.6])) @ EGO_FROM_OPENCV
    return Camera(Intrinsics(K, 160, 96), pose)


def test_a_point_ahead_projects_upright():
    uv, depth = camera().project(np.array([[10.0, 0.5, 1.6], [10.0, 2.5, 1.6], [10.0, 0.5, 3.6]]))
    np.testing.assert_allclose(depth, 10.0)
    np.testing.assert_allclose(uv[0], [81, 47])
    assert uv[1, 0] < uv[0, 0], "left in the world is left in the image"
    assert uv[2, 1] < uv[0, 1], "up in the world is up in the image"


def test_rays_hit_their_pixel():
    view = camera(x=3.0, yaw=0.4)
    origin, directions = view.rays()
    uv, depth = view.project((origin + 7.0 * directions).reshape(-1, 3))
    u, v = np.meshgrid(np.arange(160) + 0.5, np.arange(96) + 0.5)
    np.testing.assert_allclose(uv, np.stack([u, v], -1).reshape(-1, 2), atol=1e-9)
    np.testing.assert_allclose(depth, 7.0, atol=1e-9)


def test_resizing_keeps_the_ray_through_a_corner():
    small = camera().intrinsics.resized(48, 40)
    assert (small.height, small.width) == (48, 40)
    corner = np.linalg.inv(small.K) @ [40, 48, 1]
    np.testing.assert_allclose(corner, np.linalg.inv(K) @ [160, 96, 1], atol=1e-12)


def test_points_behind_have_no_positive_depth():
    _, depth = camera().project(np.array([[-5.0, 0.0, 1.6]]))
    assert depth[0] < 0


def test_sideways_translation_shifts_by_parallax():
    point = np.array([[20.0, 0.5, 1.6]])
    before, _ = camera().project(point)
    after, _ = camera().translated(2.0).project(point)
    np.testing.assert_allclose(before[0, 0] - after[0, 0], 110 * 2.0 / 20.0)


def test_rig_cameras_keep_their_place_on_the_vehicle():
    ego_from_camera = np.stack([camera().world_from_camera, camera(yaw=1.0).world_from_camera])
    rig = Rig(("front", "left"), (camera().intrinsics,) * 2, ego_from_camera)
    pose = make_transform(yaw_rotation(np.asarray(0.7)), np.array([5.0, 1.0, 0.0]))
    for view, mount in zip(rig.cameras_at(pose), ego_from_camera, strict=True):
        np.testing.assert_allclose(view.world_from_camera, pose @ mount)


def test_stacking_refuses_different_sizes():
    other = Camera(camera().intrinsics.resized(48, 80), camera().world_from_camera)
    with pytest.raises(ValueError, match="one size"):
        stack_cameras([camera(), other])
    assert stack_cameras([camera(), camera(1.0)]).K.shape == (2, 3, 3)
