"""The nuScenes key frame: six views whose boxes and lidar fall on things."""

import shutil

import numpy as np
import pytest

from jwm_jax.data.checks import boxes_on_images, check_clip, lidar_on_images
from jwm_jax.data.nuscenes import CATEGORY_OF, load_nuscenes
from jwm_jax.errors import DataError
from jwm_jax.scene import CATEGORIES

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def folder(jwm_data):
    path = jwm_data / "nuscenes_one_sample"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="module")
def clip(folder):
    return load_nuscenes(str(folder))


def test_six_views_with_their_own_times(clip):
    assert clip.num_frames == 1 and clip.num_views == 6
    assert len(np.unique(clip.times)) == 6 and np.ptp(clip.times) < 0.05
    assert all(clip.view(v).shape == (1, 900, 1600, 3) for v in range(6))
    assert check_clip(clip) == []
    np.testing.assert_array_equal(clip.world_from_ego[0], np.eye(4))


def test_views_look_where_their_names_say(clip):
    forward = clip.world_from_camera[0, :, :3, 2]
    yaw = dict(
        zip(clip.view_names, np.degrees(np.arctan2(forward[:, 1], forward[:, 0])), strict=True)
    )
    assert abs(yaw["CAM_FRONT"]) < 5 and abs(abs(yaw["CAM_BACK"]) - 180) < 5
    assert 45 < yaw["CAM_FRONT_LEFT"] < 65 and -65 < yaw["CAM_FRONT_RIGHT"] < -45
    assert (clip.world_from_camera[0, :, 2, 1] < -0.9).all()  # image rows run down


def test_cameras_carry_the_ego_motion_between_their_times(clip, folder):
    """At about 9 m/s, a camera sits off its mount by that times the time since the lidar's."""
    arrays = np.load(folder / "sample.npz")
    offset = clip.world_from_camera[0, :, :3, 3] - arrays["cam2ego"][:, :3, 3]
    seconds = clip.times[0] - float(arrays["lidar_t"])
    np.testing.assert_allclose(offset[:, 0] / seconds, 9.2, atol=1.5)
    assert (np.abs(offset[:, 1:]) < 0.1).all()


def test_lidar_is_level_and_seen_by_every_camera(clip):
    scan = clip.lidar[0]
    near = scan[(np.abs(scan[:, 0]) > 3) & (np.hypot(scan[:, 0], scan[:, 1]) < 12)]
    assert abs(float(np.percentile(near[:, 2], 20))) < 0.3
    assert min(lidar_on_images(clip, 0)) > 2000
    assert scan[:, 3].min() >= 0 and scan[:, 3].max() <= 1


def test_boxes_hold_their_lidar_points(clip, folder):
    """Most of the annotated number of points falls into each box: pose, yaw and size are right."""
    expected = np.load(folder / "sample.npz")["num_lidar_pts"]
    tracks = clip.tracks
    assert tracks.num_tracks == 69
    poses, there = tracks.at(float(tracks.times[1]))
    assert there.all()
    points = clip.lidar[0][:, :3].astype(np.float64)
    inside = []
    for pose, size in zip(poses, tracks.sizes, strict=True):
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        inside.append((np.abs(local) <= size / 2 + 0.05).all(axis=1).sum())
    inside = np.array(inside)
    rich = expected >= 5
    assert rich.sum() > 10
    assert (inside[rich] >= 0.8 * expected[rich]).all()


def test_a_box_of_no_class_is_something_else(clip, folder):
    labels = np.load(folder / "sample.npz")["box_label"]
    unknown = np.flatnonzero(labels == -1)
    assert unknown.size == 1
    assert CATEGORIES[clip.tracks.category[unknown[0]]] == "other"
    assert clip.tracks.ids[unknown[0]] == f"other-{unknown[0]}"


def test_boxes_fall_on_images(clip):
    assert sum(boxes_on_images(clip, 0)) >= 60
    names = {name.rsplit("-", 1)[0] for name in clip.tracks.ids}
    for name, category in zip(clip.tracks.ids, clip.tracks.category, strict=True):
        assert CATEGORIES[category] == CATEGORY_OF.get(name.rsplit("-", 1)[0], "other")
    assert {"car", "pedestrian"} <= names


def test_moving_boxes_move_with_their_velocity(clip, folder):
    arrays = np.load(folder / "sample.npz")
    speed = np.linalg.norm(np.nan_to_num(arrays["box_velocity"]), axis=1)
    centers = clip.tracks.centers
    moved = np.linalg.norm(centers[:, 2] - centers[:, 0], axis=1) / np.ptp(clip.tracks.times)
    np.testing.assert_allclose(moved, speed, atol=1e-4)


@pytest.mark.parametrize("missing", ["sample.npz", "samples/CAM_BACK"])
def test_missing_files(folder, tmp_path, missing):
    copy = tmp_path / "sample"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    (copy / missing).unlink() if missing.endswith("npz") else shutil.rmtree(copy / missing)
    with pytest.raises(DataError, match=missing.split("/")[-1]):
        load_nuscenes(str(copy))


def test_a_box_of_an_unknown_class(folder, tmp_path):
    copy = tmp_path / "sample"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    arrays = dict(np.load(folder / "sample.npz"))
    arrays["box_label"] = arrays["box_label"] + 100
    np.savez(copy / "sample.npz", **arrays)
    with pytest.raises(DataError, match=r"expected box_label to hold \d+ indices of the \d+ class"):
        load_nuscenes(str(copy))
