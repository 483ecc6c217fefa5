"""The streets are repeatable, and picture, depth, boxes, lidar, map and poses agree."""

import jax
import numpy as np
import pytest

from jwm_jax.data.streets import (
    CLASSES,
    FIRST_TEST_SEED,
    make_clip,
    make_rig,
    make_street,
    parse_spec,
    render,
    render_views,
    scan_lidar,
    split_of_seed,
    true_views,
)
from jwm_jax.errors import UsageError
from jwm_jax.scene import Camera, box_corners, invert_transform, transform_points

HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="module")
def drive():
    """A street of each rung with its rig, two instants 0.3 s apart and what the rig sees."""
    result = {}
    for rung in ("easy", "full"):
        street = make_street(12, rung)
        rig = make_rig(("front",), HEIGHT, WIDTH)
        times = np.array([0.4, 0.7])
        poses = street.world_from_ego(times) @ rig.ego_from_camera[0]
        lens = rig.intrinsics[0]
        seen = render(street, lens.K, poses, times, width=WIDTH, height=HEIGHT)
        result[rung] = street, lens, times, poses, seen
    return result


def unprojected(lens, pose, depth):
    """World points of all pixels, [h, w, 3]."""
    origin, directions = Camera(lens, pose).rays()
    return origin + directions * depth[..., None]


def test_a_seed_decides_everything_and_rungs_and_seeds_differ(drive):
    street, lens, times, poses, seen = drive["full"]
    again = render(make_street(12, "full"), lens.K, poses, times, width=WIDTH, height=HEIGHT)
    np.testing.assert_array_equal(seen.rgb, again.rgb)
    np.testing.assert_array_equal(seen.depth, again.depth)
    other = make_street(13, "full")
    assert not np.array_equal(street.world.solids.centers, other.world.solids.centers)
    assert not np.array_equal(seen.rgb, drive["easy"][4].rgb)


def test_a_street_has_all_it_promises(drive):
    for rung, needed in (("easy", 8), ("full", 8)):
        classes = set(np.unique(drive[rung][4].classes))
        assert {CLASSES.index(c) for c in ("sky", "road", "marking", "building")} <= classes
        assert len(classes) >= needed


@pytest.mark.parametrize("rung", ["easy", "full"])
def test_depth_carries_static_colours_from_one_instant_to_the_next(drive, rung):
    _, lens, _, poses, seen = drive[rung]
    points = unprojected(lens, poses[0], seen.depth[0])
    uv, depth = Camera(lens, poses[1]).project(points.reshape(-1, 3))
    u, v = np.floor(uv).astype(int).T
    ok = (depth > 0.5) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    ok &= (seen.instances[0] == 0).reshape(-1) & (seen.depth[0] > 0).reshape(-1)
    u, v = u[ok], v[ok]
    there = seen.depth[1][v, u]
    visible = (np.abs(there - depth[ok]) < 0.03 * depth[ok]) & (seen.instances[1][v, u] == 0)
    assert visible.mean() > 0.75
    before = seen.rgb[0].reshape(-1, 3)[ok][visible].astype(float)
    error = np.abs(before - seen.rgb[1][v, u][visible]).mean()
    assert error < 8.0
    shuffled = np.abs(before - np.roll(before, len(before) // 3, axis=0)).mean()
    assert error < 0.3 * shuffled


def test_road_pixels_lie_on_the_ground_plane(drive):
    street, lens, _, poses, seen = drive["full"]
    points = unprojected(lens, poses[0], seen.depth[0])
    road = seen.classes[0] == CLASSES.index("road")
    # A street's road is flat, so the world's z = 0 plane, the ego's at time zero, is all of it.
    assert np.abs(points[road][:, 2]).max() < 2e-3
    assert np.abs(street.world_from_street[2, 3]) < 1e-9


@pytest.mark.parametrize("rung", ["easy", "full"])
def test_boxes_enclose_their_actors_surface_and_fit_it(drive, rung):
    street, lens, times, poses, seen = drive[rung]
    tracks = street.tracks(times)
    checked = 0
    for t in range(len(times)):
        points = unprojected(lens, poses[t], seen.depth[t])
        world_from_box, _ = tracks.at(times[t])
        for actor in range(tracks.num_tracks):
            mine = seen.instances[t] == actor + 1
            if mine.sum() < 12:
                continue
            local = transform_points(invert_transform(world_from_box[actor]), points[mine])
            assert (np.abs(local) <= tracks.sizes[actor] / 2 + 0.03).all()
            corners = transform_points(world_from_box[actor], box_corners(tracks.sizes[actor]))
            uv, depth = Camera(lens, poses[t]).project(corners)
            if depth.min() < 0.5 or mine.sum() < 60:
                continue
            low, high = np.maximum(uv.min(0), 0), np.minimum(uv.max(0), [WIDTH, HEIGHT])
            rows, columns = np.nonzero(mine)
            found_low = np.array([columns.min(), rows.min()])
            found_high = np.array([columns.max(), rows.max()]) + 1
            inner = np.maximum(np.minimum(high, found_high) - np.maximum(low, found_low), 0)
            outer = np.maximum(high, found_high) - np.minimum(low, found_low)
            blocked = inner.prod() / outer.prod()
            assert blocked > 0.3
            checked += blocked > 0.6
    assert checked >= 1


def test_lidar_agrees_with_the_depth_map(drive):
    street, lens, times, poses, seen = drive["full"]
    spins = scan_lidar(street, times, beams=32, azimuths=240)
    world = transform_points(street.world_from_ego(times)[1], spins[1][:, :3].astype(float))
    uv, depth = Camera(lens, poses[1]).project(world)
    u, v = np.floor(uv).astype(int).T
    ok = (depth > 1) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    there = seen.depth[1][v[ok], u[ok]]
    assert ok.sum() > 300
    close = np.abs(there - depth[ok]) < 0.05 * depth[ok]
    assert close.mean() > 0.85
    assert ((spins[1][:, 3] >= 0) & (spins[1][:, 3] <= 1)).all()


def test_lane_lines_fall_on_paint(drive):
    street, lens, _, poses, seen = drive["easy"]
    lines = street.lane_map()
    camera = Camera(lens, poses[0])
    hits = []
    for line, kind in zip(lines.polylines, lines.kinds, strict=True):
        if kind != "lane_solid":
            continue
        x = np.linspace(5, 14, 40)
        points = np.stack([np.interp(x, line[:, 0], line[:, i]) for i in range(3)], -1)
        uv, depth = camera.project(points)
        u, v = np.floor(uv).astype(int).T
        ok = (depth > 1) & (u >= 1) & (u < WIDTH - 1) & (v >= 0) & (v < HEIGHT)
        ok[ok] = np.isin(
            seen.classes[0][v[ok], u[ok]], [CLASSES.index("road"), CLASSES.index("marking")]
        )
        around = np.stack([seen.classes[0][v[ok], u[ok] + d] for d in (-1, 0, 1)])
        hits.extend((around == CLASSES.index("marking")).any(0))
    assert len(hits) > 8
    assert np.mean(hits) > 0.8


def test_world_is_the_first_ego_frame_and_cameras_ride_on_the_ego():
    clip = make_clip(3, "easy", num_frames=4, height=32, width=48)
    np.testing.assert_allclose(clip.world_from_ego[0], np.eye(4), atol=1e-9)
    assert clip.world_from_ego[2, 0, 3] > 0.5
    rig = make_rig(height=32, width=48)
    for t in range(4):
        expected = clip.world_from_ego[t] @ rig.ego_from_camera
        np.testing.assert_allclose(clip.world_from_camera[t], expected, atol=1e-9)
    forward = clip.world_from_camera[0, :, :3, 2]
    assert clip.view_names == ("front_left", "front", "front_right")
    assert forward[0, 1] > 0.5
    assert forward[1, 0] > 0.99
    assert forward[2, 1] < -0.5
    assert (np.abs(np.linalg.det(clip.world_from_camera[..., :3, :3]) - 1) < 1e-9).all()
    step = np.diff(clip.world_from_ego[:, :2, 3], axis=0)
    heading = clip.world_from_ego[:-1, :2, 0]
    cosine = (step * heading).sum(-1) / np.linalg.norm(step, axis=-1)
    assert (cosine > 0.999).all()


def test_a_view_nobody_drove_is_the_street_seen_from_there(drive):
    street, lens, times, poses, seen = drive["full"]
    shifted = Camera(lens, poses[0]).translated(2.0)
    picture = render_views(street, [shifted, Camera(lens, poses[0])], times[[0, 0]])
    np.testing.assert_array_equal(picture.rgb[1], seen.rgb[0])
    for spec in ("procedural:full:12", "procedural:full:12?frames=2&views=front"):
        named = true_views(spec, [shifted, Camera(lens, poses[0])], times[[0, 0]])
        np.testing.assert_array_equal(named.rgb, picture.rgb)
    assert true_views("kitti:somewhere", [shifted], times[:1]) is None
    points = unprojected(lens, shifted.world_from_camera, picture.depth[0])
    uv, depth = Camera(lens, poses[0]).project(points.reshape(-1, 3))
    u, v = np.floor(uv).astype(int).T
    ok = (depth > 1) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    ok &= picture.depth[0].reshape(-1) > 0
    there = seen.depth[0][v[ok], u[ok]]
    same = (np.abs(there - depth[ok]) < 0.04 * depth[ok]).mean()
    assert same > 0.7


@pytest.fixture(scope="module")
def long_drive():
    """A street of 50 s, its rig, and pictures early, late, and on both sides of a change."""
    street = make_street(12, "full", 50.0)
    rig = make_rig(("front",), HEIGHT, WIDTH)
    change = street.epochs[10].start
    times = np.array([0.4, 0.7, 11.9, change - 1e-6, change + 1e-6, 30.0, 49.9])
    poses = street.world_from_ego(times) @ rig.ego_from_camera[0]
    lens = rig.intrinsics[0]
    return street, lens, times, poses, render(street, lens.K, poses, times, width=96, height=64)


def test_a_long_street_begins_as_a_short_one_and_its_arrays_do_not_grow(drive, long_drive):
    short, _, _, _, seen = drive["full"]
    street, _, times, _, pictures = long_drive
    for name in ("rgb", "depth", "classes", "instances"):
        early = getattr(pictures, name)[:2]
        np.testing.assert_array_equal(early, getattr(seen, name))
    count, first = len(short.actor_ids), times[:3]
    assert street.actor_ids[:count] == short.actor_ids
    tracks, known = street.tracks(times), short.tracks(first)
    np.testing.assert_array_equal(tracks.centers[:count, :3], known.centers)
    np.testing.assert_array_equal(tracks.quats[:count, :3], known.quats)
    assert tracks.valid[:count, :3].all() and not tracks.valid[count:, :3].any()
    for epoch in street.epochs:
        for a, b in zip(jax.tree.leaves(epoch.world), jax.tree.leaves(short.world), strict=True):
            assert np.shape(a) == np.shape(b)
    assert len(set(street.actor_ids)) == len(street.actor_ids) == len(street.actor_sizes)


def test_a_long_street_goes_on_and_changes_only_far_away(long_drive):
    street, _, _, _, seen = long_drive
    building, sky = CLASSES.index("building"), CLASSES.index("sky")
    for late in (5, 6):
        assert (seen.classes[late] == building).mean() > 0.1
        assert (seen.classes[late][HEIGHT // 2 + 4 :] != sky).all()
    before, after = seen.rgb[3].astype(int), seen.rgb[4].astype(int)
    changed = np.abs(before - after).max(-1) > 3
    distance = np.where(seen.depth[4] > 0, seen.depth[4], np.inf)
    assert changed.mean() < 0.03 and (distance[changed] > 80.0).all()
    assert street.lane_map().polylines[0][:, 0].max() > street.ego.speed * 50


def test_boxes_enclose_late_actors(long_drive):
    street, lens, times, poses, seen = long_drive
    tracks, checked = street.tracks(times), 0
    for t in (4, 5, 6):
        points = unprojected(lens, poses[t], seen.depth[t])
        boxes, there = tracks.at(times[t])
        for actor in np.unique(seen.instances[t][seen.instances[t] > 0]) - 1:
            mine = seen.instances[t] == actor + 1
            local = transform_points(invert_transform(boxes[actor]), points[mine])
            assert there[actor] and (np.abs(local) <= tracks.sizes[actor] / 2 + 0.05).all()
            checked += 1
    assert checked >= 3
    spins = scan_lidar(street, times[[0, 6]], beams=4, azimuths=60)
    assert all(len(spin) > 100 for spin in spins)


@pytest.mark.parametrize("seed", [7, 8])  # one turns right, one left
def test_a_closed_course_comes_back_to_its_start(seed):
    street = make_street(seed, "full", loop=True)
    lap = street.extent[1] / street.ego.speed
    rig = make_rig(("front",), HEIGHT, WIDTH)
    times = np.array([0.0, 0.3, 0.5 * lap, lap])
    poses = street.world_from_ego(times) @ rig.ego_from_camera[0]
    turn = np.sign(street.world.road.radius)
    assert np.linalg.norm(poses[3, :3, 3] - poses[0, :3, 3]) < 0.6 < 60 < abs(poses[2, 1, 3])
    assert np.sign(poses[2, 1, 3]) == turn == (1 if seed == 8 else -1)
    lens = rig.intrinsics[0]
    seen = render(street, lens.K, poses, times, width=WIDTH, height=HEIGHT)
    road, marking = CLASSES.index("road"), CLASSES.index("marking")
    for t in range(4):
        points = unprojected(lens, poses[t], seen.depth[t])
        on_road = np.isin(seen.classes[t], [road, marking])
        assert np.abs(points[on_road][:, 2]).max() < 2e-3
        boxes, _ = street.tracks(times).at(times[t])
        for actor in np.unique(seen.instances[t][seen.instances[t] > 0]) - 1:
            mine = seen.instances[t] == actor + 1
            local = transform_points(invert_transform(boxes[actor]), points[mine])
            assert (np.abs(local) <= street.actor_sizes[actor] / 2 + 0.05).all()
    lines = street.lane_map()
    painted = [p for p, k in zip(lines.polylines, lines.kinds, strict=True) if k.startswith("lane")]
    share = np.linspace(0, 1, 9)[:, None, None]
    painted = np.concatenate(
        [((1 - share) * p[:-1] + share * p[1:]).reshape(-1, 3) for p in painted]
    )
    checked = 0
    for t in (2, 3):
        paint = (seen.classes[t] == marking) & (seen.depth[t] < 12)
        for point in unprojected(lens, poses[t], seen.depth[t])[paint]:
            assert np.linalg.norm(painted - point, axis=1).min() < 0.4
            checked += 1
    assert checked > 10
    points = unprojected(lens, poses[0], seen.depth[0])
    uv, depth = Camera(lens, poses[1]).project(points.reshape(-1, 3))
    u, v = np.floor(uv).astype(int).T
    ok = (depth > 0.5) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    ok &= (seen.instances[0] == 0).reshape(-1) & (seen.depth[0] > 0).reshape(-1)
    same = np.abs(seen.depth[1][v[ok], u[ok]] - depth[ok]) < 0.03 * depth[ok]
    assert same.mean() > 0.7


def test_a_closed_course_is_named_by_its_clip():
    clip = make_clip(7, "easy", num_frames=2, height=32, width=48, views=("front",), loop=True)
    assert clip.name == "procedural:easy:7?loop=1"
    assert parse_spec(clip.name) == {"rung": "easy", "seed": 7, "loop": True}
    picture = true_views(clip.name, [clip.camera(1, 0)], clip.times[[1], 0])
    np.testing.assert_array_equal(picture.rgb[0], clip.view(0)[1])


def test_a_long_clip_knows_its_street(drive):
    clip = make_clip(12, "full", num_frames=27, rate=2.0, height=32, width=48, views=("front",))
    assert clip.name == "procedural:full:12?frames=27&rate=2"
    camera = clip.camera(26, 0)
    picture = true_views(clip.name, [camera], clip.times[[26], 0])
    np.testing.assert_array_equal(picture.rgb[0], clip.view(0)[26])
    with pytest.raises(UsageError, match="900 s at most, and 100000 s were asked for"):
        make_clip(12, num_frames=1_000_001)


def test_specs_say_what_to_make():
    parsed = parse_spec("procedural:full:7?frames=9&views=front,back&rate=5")
    assert parsed == {
        "rung": "full",
        "seed": 7,
        "num_frames": 9,
        "views": ("front", "back"),
        "rate": 5.0,
    }
    assert parse_spec("easy:3") == {"rung": "easy", "seed": 3}
    assert split_of_seed(FIRST_TEST_SEED - 1) == "train"
    assert split_of_seed(FIRST_TEST_SEED) == "test"


@pytest.mark.parametrize(
    "spec",
    [
        "procedural:easy",
        "procedural:hard:1",
        "procedural:easy:x",
        "procedural:easy:1?fps=3",
        "procedural:easy:1?frames=many",
        "procedural:easy:1?frames=0",
        "procedural:easy:1?views=up",
        "procedural:easy:1?loop=yes",
    ],
)
def test_bad_specs_are_refused_in_words(spec):
    with pytest.raises(UsageError):
        make_clip(**parse_spec(spec))
