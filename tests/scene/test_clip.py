"""Clips: selection, resizing with calibration, clocks; trajectories and ego motion."""

from dataclasses import replace

import numpy as np
import pytest

from jwm_jax.data.streets import make_clip
from jwm_jax.scene import (
    EGO_FROM_OPENCV,
    Clip,
    Intrinsics,
    LaneMap,
    Tracks,
    Trajectory,
    box_corners,
    crop_covering,
    ego_motion,
    fitted_size,
    make_transform,
    mirrored,
    transform_points,
    yaw_rotation,
)

K = np.array([[100.0, 0, 32], [0, 100, 16], [0, 0, 1]])


def clip(frames=5):
    yaw = 0.1 * np.arange(frames)
    position = np.stack([1.0 * np.arange(frames), np.zeros(frames), np.zeros(frames)], axis=1)
    ego = make_transform(yaw_rotation(yaw), position)
    mounts = np.stack([EGO_FROM_OPENCV, EGO_FROM_OPENCV])
    mounts[1, 1, 3] = 0.5
    rng = np.random.default_rng(0)
    return Clip(
        images=(
            rng.integers(0, 255, (frames, 32, 64, 3), dtype=np.uint8),
            rng.integers(0, 255, (frames, 16, 32, 3), dtype=np.uint8),
        ),
        times=1.5e9 + 0.1 * np.arange(frames)[:, None] + np.array([0.0, 0.02]),
        world_from_ego=ego,
        world_from_camera=ego[:, None] @ mounts,
        cameras=(Intrinsics(K, 64, 32), Intrinsics(K, 32, 16)),
        view_names=("front", "side"),
        depth=(np.ones((frames, 32, 64), np.float32), np.ones((frames, 16, 32), np.float32)),
    )


def test_rate_and_start():
    assert abs(clip().rate - 10) < 1e-5 and clip().start == clip().times.min()


def test_resizing_stacks_views_and_follows_with_calibration():
    small = clip().resized(16, 32)
    assert small.images.shape == (5, 2, 16, 32, 3)
    np.testing.assert_allclose(small.cameras[0].K[0], [50, 0, 16])
    np.testing.assert_array_equal(small.images[:, 1], clip().images[1])
    mean = clip().view(0).astype(float).reshape(5, 16, 2, 32, 2, 3).mean((2, 4))
    np.testing.assert_allclose(small.view(0), mean, atol=1.0)
    assert small.depth[0].shape == (5, 16, 32)


def test_a_covering_crop_stretches_nothing_and_follows_with_calibration():
    """What the lens sees at a pixel is where the picture shows it."""
    wide = clip()
    left = crop_covering(wide, 16, 16, across=0.0)
    assert left.images.shape == (5, 2, 16, 16, 3) and left.depth[0].shape == (5, 16, 16)
    half = wide.resized(16, 32)
    np.testing.assert_array_equal(left.view(0), half.view(0)[:, :, :16])
    np.testing.assert_allclose(left.cameras[0].K, half.cameras[0].K)
    right = crop_covering(wide, 16, 16, across=1.0)
    np.testing.assert_array_equal(right.view(0), half.view(0)[:, :, 16:])
    assert right.cameras[0].K[0, 2] == half.cameras[0].K[0, 2] - 16
    flat = crop_covering(wide, 16, 64)
    np.testing.assert_array_equal(flat.view(0), wide.view(0)[:, 8:24])
    assert flat.cameras[0].K[1, 2] == K[1, 2] - 8


def test_in_a_mirror_everything_is_seen_where_the_picture_shows_it():
    """Points of lidar, boxes, map and depth land at the mirrored column, at the same depth."""
    there = make_clip(5, "full", num_frames=3, height=32, width=48, views=("front_left", "front"))
    here = mirrored(there)
    assert here.view_names == ("front_right", "front")

    def seen(clip, t, v):
        camera = clip.camera(t, v)
        boxes, _ = clip.tracks.at(clip.times[t, v])
        corners = [
            transform_points(box, box_corners(size))
            for box, size in zip(boxes, clip.tracks.sizes, strict=True)
        ]
        lidar = transform_points(clip.world_from_ego[t], clip.lidar[t][:, :3].astype(np.float64))
        points = (lidar, np.concatenate(clip.map.polylines))
        return [camera.project(p) for p in points], corners

    for t in range(3):
        for v in range(2):
            np.testing.assert_array_equal(here.view(v)[t], there.view(v)[t][:, ::-1])
            np.testing.assert_array_equal(here.depth[v][t], there.depth[v][t][:, ::-1])
            (points, boxes), (points_there, boxes_there) = seen(here, t, v), seen(there, t, v)
            for (uv, depth), (uv_there, depth_there) in zip(points, points_there, strict=True):
                ahead = depth_there > 0.5
                np.testing.assert_allclose(depth, depth_there, atol=1e-4)
                uv_there = uv_there * [-1.0, 1.0] + [48.0, 0.0]
                np.testing.assert_allclose(uv[ahead], uv_there[ahead], atol=1e-2)
            for box, box_there in zip(boxes, boxes_there, strict=True):
                box_there = box_there * [1.0, -1.0, 1.0]
                nearest = np.linalg.norm(box[:, None] - box_there[None], axis=-1).min(1)
                assert nearest.max() < 1e-6
    again = mirrored(here)
    np.testing.assert_allclose(again.world_from_camera, there.world_from_camera, atol=1e-12)
    np.testing.assert_allclose(again.tracks.quats, there.tracks.quats)
    lens = replace(there.cameras[0], distortion=np.zeros(5))
    with pytest.raises(ValueError, match="rectified"):
        mirrored(replace(there, cameras=(lens, lens)))


def test_selection_picks_frames_and_views():
    part = clip().select([0, 3], [1])
    assert (part.num_frames, part.num_views, part.view_names) == (2, 1, ("side",))
    np.testing.assert_array_equal(part.view(0)[1], clip().view(1)[3])
    part = clip().resized(16, 32).select(slice(1, None))
    assert part.images.shape == (4, 2, 16, 32, 3)


def test_rig_is_where_the_cameras_are_mounted():
    mounts = clip().rig(3).ego_from_camera
    np.testing.assert_allclose(mounts[1][:3, 3], [0, 0.5, 0], atol=1e-9)


def test_pictures_keep_their_aspect_to_the_nearest_multiple():
    assert fitted_size(96, 160, 96, 16) == (96, 160)
    assert fitted_size(375, 1242, 96, 16) == (96, 320)
    assert fitted_size(900, 1600, 96, 16) == (96, 176)
    assert fitted_size(100, 10, 64, 8) == (64, 8)


def test_a_path_holds_the_cameras_of_a_view():
    c = clip()
    path = c.camera_path(1)
    assert path.K.shape == (5, 3, 3) and (path.width, path.height) == (32, 16)
    for t in range(5):
        np.testing.assert_array_equal(path.at(t).world_from_camera, c.world_from_camera[t, 1])
        np.testing.assert_array_equal(path.at(t).K, K)


def test_rebasing_keeps_what_cameras_see():
    line = np.array([[6.0, 1.0, 0.0], [9.0, 2.0, 0.0]])
    tracks = Tracks(
        times=np.array([1.5e9]),
        centers=np.array([[[8.0, 1.0, 0.5]]]),
        quats=np.array([[[np.cos(0.2), 0, 0, np.sin(0.2)]]]),
        sizes=np.array([[4.0, 2, 1.5]]),
        valid=np.ones((1, 1), bool),
        category=np.zeros(1, np.int32),
        ids=("car",),
    )
    late = replace(clip(), tracks=tracks, map=LaneMap((line,), ("lane_solid",))).select([2, 4])
    moved = late.rebased()
    np.testing.assert_allclose(moved.world_from_ego[0], np.eye(4), atol=1e-9)
    assert moved.tracks.ids == ("car",)
    corners = box_corners(tracks.sizes[0])
    boxes = [transform_points(c.tracks.at(1.5e9)[0][0], corners) for c in (late, moved)]
    for before, after in (boxes, (line, moved.map.polylines[0])):
        for t, v in ((0, 0), (1, 1)):
            np.testing.assert_allclose(
                late.camera(t, v).project(before)[0],
                moved.camera(t, v).project(after)[0],
                atol=1e-6,
            )


def test_ego_motion_is_measured_in_the_earlier_frame():
    c = clip()
    motion = ego_motion(c.world_from_ego, c.times[:, 0])
    assert motion.shape == (4, 4)
    np.testing.assert_allclose(motion[:, 2], 0.1, atol=1e-5)
    np.testing.assert_allclose(motion[:, 3], 10.0, atol=1e-3)
    np.testing.assert_allclose(motion[1, :2], [np.cos(0.1), -np.sin(0.1)], atol=1e-5)


def test_shifted_trajectory_is_parallel_and_eases_in():
    c = clip()
    drive = Trajectory(c.times[:, 0], c.world_from_ego)
    left = drive.shifted(2.0)
    np.testing.assert_allclose(
        left.world_from_ego[:, :3, 3] - c.world_from_ego[:, :3, 3], 2 * c.world_from_ego[:, :3, 1]
    )
    eased = drive.shifted(2.0, over=0.4)
    np.testing.assert_allclose(eased.world_from_ego[0], c.world_from_ego[0])
    np.testing.assert_allclose(eased.world_from_ego[-1], left.world_from_ego[-1])
    np.testing.assert_allclose(drive.at(c.times[2:3, 0])[0], c.world_from_ego[2], atol=1e-6)


def test_ego_motion_of_a_vehicle_that_looks_left():
    turned = yaw_rotation(np.array([np.pi / 2, np.pi / 2 + 0.1]))
    poses = make_transform(turned, np.array([[0.0, 0, 0], [0, 2, 0]]))
    motion = ego_motion(poses, np.array([0.0, 0.5]))
    np.testing.assert_allclose(motion, [[2.0, 0.0, 0.1, 4.0]], atol=1e-6)
