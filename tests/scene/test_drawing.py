"""Layout frames and overlays: things are drawn where they project, near covers far."""

import numpy as np

from jwm_jax.scene import (
    EGO_FROM_OPENCV,
    Camera,
    Intrinsics,
    LaneMap,
    Tracks,
    box_corners,
    color_depth,
    contact_sheet,
    draw_boxes,
    draw_layout,
    draw_lidar,
    layout_frames,
    transform_points,
)

K = np.array([[110.0, 0, 80], [0, 110, 48], [0, 0, 1]])


def camera():
    pose = EGO_FROM_OPENCV.copy()
    pose[2, 3] = 1.6
    return Camera(Intrinsics(K, 160, 96), pose)


def tracks(centers):
    n = len(centers)
    return Tracks(
        times=np.array([0.0]),
        centers=np.array(centers, float)[:, None],
        quats=np.tile([1.0, 0, 0, 0], (n, 1, 1)),
        sizes=np.tile([4.5, 1.8, 1.5], (n, 1)),
        valid=np.ones((n, 1), bool),
        category=np.arange(n, dtype=np.int32) * 6,
        ids=tuple("ab"[:n]),
    )


def test_a_box_covers_its_projection_and_nothing_else():
    boxes = tracks([[15, 1, 0.75]])
    layout = draw_layout(camera(), boxes, None, 0.0)
    corners = transform_points(boxes.at(0.0)[0][0], box_corners(boxes.sizes[0]))
    uv, _ = camera().project(corners)
    low, high = uv.min(axis=0), uv.max(axis=0)
    rows, columns = np.nonzero(layout.sum(axis=-1))
    assert abs(columns.min() - low[0]) < 1.5 and abs(columns.max() - high[0]) < 1.5
    assert abs(rows.min() - low[1]) < 1.5 and abs(rows.max() - high[1]) < 1.5
    center = uv.mean(axis=0).astype(int)
    assert layout[center[1], center[0], 0] > 50


def test_near_boxes_cover_far_ones_whatever_their_order():
    near, far = [10, 0, 0.75], [30, 0, 0.75]
    one = draw_layout(camera(), tracks([near, far]), None, 0.0)
    assert one[60, 80, 0] > 2 * one[60, 80, 2], "the car in front hides the pedestrian"


def test_a_box_turned_away_is_darker_than_one_facing_us():
    away = tracks([[15, 0, 0.75]])
    facing = Tracks(**{**away.__dict__, "quats": np.array([[[0.0, 0, 0, 1]]])})
    at = (57, 80)
    rear, front = (draw_layout(camera(), t, None, 0.0)[at].sum() for t in (away, facing))
    assert front > 1.5 * rear


def test_a_line_is_drawn_where_it_lies_and_cut_behind_the_camera():
    lane = LaneMap((np.array([[-20, -1.5, 0], [60, -1.5, 0.0]]),), ("lane_solid",))
    layout = draw_layout(camera(), None, lane, 0.0)
    (u, v), _ = camera().project(np.array([8.0, -1.5, 0.0]))
    assert layout[int(v), int(u)].min() > 100
    assert layout[:40].sum() == 0, "nothing above the horizon"


def test_layout_frames_are_one_drawing_a_view_and_instant():
    left = camera().translated(-1.0)
    poses = np.stack([camera().world_from_camera, camera().translated(0.5).world_from_camera])
    paths = [c.intrinsics.at_poses(poses) for c in (camera(), left)]
    boxes = Tracks(
        **{
            **tracks([[15, 0, 0.75]]).__dict__,
            "times": np.array([0.0, 1.0]),
            "centers": np.array([[[15.0, 0, 0.75], [20.0, 1, 0.75]]]),
            "quats": np.tile([1.0, 0, 0, 0], (1, 2, 1)),
            "valid": np.ones((1, 2), bool),
        }
    )
    times = np.array([[0.0, 0.1], [0.5, 0.6]])
    frames = layout_frames(paths, boxes, None, times)
    assert frames.shape == (2, 2, 96, 160, 3) and frames.dtype == np.uint8
    for v in range(2):
        for t in range(2):
            one = draw_layout(paths[v].at(t), boxes, None, times[t, v])
            np.testing.assert_array_equal(frames[v, t], one)
    assert (frames[0, 0] != frames[0, 1]).any()
    assert layout_frames(paths, None, None, times) is None


def test_boxes_behind_are_not_drawn():
    assert draw_layout(camera(), tracks([[-15, 0, 0.75]]), None, 0.0).sum() == 0


def test_overlays_leave_the_input_alone():
    image = np.full((96, 160, 3), 50, np.uint8)
    lidar = draw_lidar(image, camera(), np.array([[10.0, 0, 1.6], [-10.0, 0, 1.6]]))
    changed = np.argwhere((lidar != image).any(axis=-1))
    assert changed.tolist() == [[48, 80]]
    assert (draw_boxes(image, camera(), tracks([[15, 1, 0.75]]), 0.0) != image).any()
    assert (image == 50).all()


def test_contact_sheet_holds_every_picture():
    picture = np.full((10, 20, 3), 200, np.uint8)
    sheet = contact_sheet([[picture, picture], [picture]], ["a", "b"], gap=2)
    assert (sheet == 200).all(axis=-1).sum() >= 3 * 200
    depth = color_depth(np.array([[0.0, 3.0, 80.0]]))
    assert depth[0, 0].sum() == 0 and depth[0, 1, 0] > depth[0, 2, 0]
