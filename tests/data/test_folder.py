"""The plain folder: everything written comes back, and mistakes in cameras.json are explained."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from plain_clips import plain_clip

from jwm_jax.data import load_clip
from jwm_jax.data.folder import load_folder, save_folder_clip
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene import invert_transform, transform_points


@pytest.fixture
def folder(tmp_path):
    return save_folder_clip(plain_clip(), tmp_path / "drive")


def edit(folder, change):
    path = folder / "cameras.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def test_round_trip(folder):
    wrote, read = plain_clip(), load_clip(f"folder:{folder}")
    assert read.view_names == wrote.view_names and read.name == "plain"
    assert read.style == wrote.style and read.map.kinds == wrote.map.kinds
    for v in range(2):
        np.testing.assert_array_equal(read.view(v), wrote.view(v))
        np.testing.assert_allclose(read.cameras[v].K, wrote.cameras[v].K)
    for name in ("times", "world_from_ego", "world_from_camera"):
        np.testing.assert_allclose(getattr(read, name), getattr(wrote, name), atol=1e-9)
    for name in ("times", "centers", "quats", "sizes", "valid", "category"):
        np.testing.assert_allclose(getattr(read.tracks, name), getattr(wrote.tracks, name))
    np.testing.assert_array_equal(read.lidar[3], wrote.lidar[3])


def test_depth_maps_come_back_and_missing_ones_are_zero(tmp_path):
    clip = plain_clip()
    maps = tuple(np.full(clip.view(v).shape[:3], 3.0 + v, np.float32) for v in range(2))
    folder = save_folder_clip(replace(clip, depth=maps), tmp_path / "drive")
    np.testing.assert_array_equal(load_folder(str(folder)).depth[1], maps[1])
    edit(folder, drop("depth", 0))
    broken = maps[1][2].copy()
    broken[0, :3] = np.nan, -1.0, np.inf
    np.save(folder / "depth" / "view1" / "000002.npy", broken)
    depth = load_folder(str(folder)).depth
    assert not depth[0].any() and depth[1][2, 0, :4].tolist() == [0.0, 0.0, 0.0, 4.0]
    np.save(folder / "depth" / "view1" / "000002.npy", broken[1:])
    with pytest.raises(DataError, match=r"000002.npy: expected .* metres along z"):
        load_folder(str(folder))
    (folder / "depth" / "view1" / "000002.npy").unlink()
    with pytest.raises(DataError, match="depth of view 'view1' matches 4 files for 5 frames"):
        load_folder(str(folder))


def test_nothing_is_written_over(folder):
    before = (folder / "cameras.json").read_text()
    with pytest.raises(UsageError, match="not empty"):
        save_folder_clip(plain_clip(frames=2), folder)
    assert (folder / "cameras.json").read_text() == before


def test_world_may_be_any_frame(folder):
    """Moving the file's world moves nothing in the clip: it starts at its own first ego frame."""
    expected = load_folder(str(folder))
    moved = np.eye(4)
    moved[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    moved[:3, 3] = [1000, 2000, 30]

    def change(description):
        for owner, key in [(description, "world_from_ego")] + [
            (view, "world_from_camera") for view in description["views"]
        ]:
            owner[key] = (moved @ np.array(owner[key])).tolist()
        tracks = description["tracks"]
        centers = np.array(tracks["center"])
        flat = transform_points(moved, centers.reshape(-1, 3))
        tracks["center"] = flat.reshape(centers.shape).tolist()
        half = np.sqrt(0.5)
        w, z = np.array(tracks["quat"])[..., 0], np.array(tracks["quat"])[..., 3]
        zero = np.zeros_like(w)
        turned = np.stack([half * (w - z), zero, zero, half * (w + z)], axis=-1)
        tracks["quat"] = turned.tolist()
        for line in description["map"]:
            line["points"] = transform_points(moved, np.array(line["points"])).tolist()

    edit(folder, change)
    clip = load_folder(str(folder))
    np.testing.assert_allclose(clip.world_from_ego[0], np.eye(4), atol=1e-9)
    np.testing.assert_allclose(clip.world_from_camera, expected.world_from_camera, atol=1e-6)
    np.testing.assert_allclose(clip.tracks.centers, expected.tracks.centers, atol=1e-6)
    np.testing.assert_allclose(clip.tracks.quats, expected.tracks.quats, atol=1e-6)
    np.testing.assert_allclose(clip.map.polylines[0], expected.map.polylines[0], atol=1e-6)


def test_the_least_that_works(tmp_path):
    """One picture and its K: a camera that looks ahead from 1.5 m above the ground."""
    Image.fromarray(plain_clip().view(0)[0]).save(tmp_path / "front.png")
    K = [[15, 0, 10], [0, 15, 6], [0, 0, 1]]
    views = [{"name": "front", "images": "front.png", "K": K}]
    (tmp_path / "cameras.json").write_text(json.dumps({"views": views}))
    clip = load_clip(f"folder:{tmp_path}")
    assert clip.num_frames == 1 and clip.lidar is None and clip.tracks is None
    uv, depth = clip.camera(0, 0).project(np.array([[10.0, 0.0, 1.5]]))
    np.testing.assert_allclose(uv[0], [10, 6], atol=1e-9)
    assert depth[0] == pytest.approx(10.0)


def test_poses_of_one_camera_are_enough(folder):
    expected = load_folder(str(folder))

    def change(description):
        del description["world_from_ego"], description["views"][1]["world_from_camera"]

    edit(folder, change)
    clip = load_folder(str(folder))
    np.testing.assert_allclose(clip.world_from_camera, expected.world_from_camera, atol=1e-9)
    relative = invert_transform(clip.world_from_ego[0]) @ clip.world_from_ego[4]
    np.testing.assert_allclose(relative[:3, 3], [2.0, 0, 0], atol=1e-9)


def drop(key, view=None):
    def change(description):
        owner = description if view is None else description["views"][view]
        del owner[key]

    return change


def put(key, value, view=None):
    def change(description):
        owner = description if view is None else description["views"][view]
        owner[key] = value

    return change


def no_poses(description):
    del description["world_from_ego"]
    for view in description["views"]:
        del view["world_from_camera"]


def of_tracks(key, value):
    def change(description):
        description["tracks"][key] = value

    return change


BROKEN = {
    "a number for a distortion": (put("distortion", 0.1, 0), "distortion of view 'view0'"),
    "no pattern": (put("images", "", 0), "is not a pattern of file names"),
    "tracks of words": (put("tracks", "none"), "tracks: expected an object, got str"),
    "a number for ids": (of_tracks("ids", 5), "tracks.ids: expected a list of 1 names"),
    "ids of another length": (of_tracks("ids", ["a", "b"]), "tracks.ids: expected a list of 1"),
    "ragged valid": (of_tracks("valid", [[True], [True, False]]), "tracks.valid: expected 1x2"),
    "no rotation": (
        of_tracks("quat", [[[0, 0, 0, 0]] * 2]),
        "tracks.quat: holds quaternions of length 0",
    ),
    "a number for a map": (put("map", 3), "expected 'map' to be a list, got int"),
    "a list for a style": (put("style", ["rain"]), "expected 'style' to be an object of words"),
    "two views of a name": (put("name", "view0", 1), "two views have the same name: view0, view0"),
    "no views": (drop("views"), "expected 'views' to be a list, got nothing"),
    "no K": (drop("K", 0), "K of view 'view0' is missing"),
    "K of another shape": (put("K", [[1, 2], [3, 4]], 0), "expected 3x3 numbers"),
    "K of words": (put("K", "wide", 0), "expected 3x3 numbers"),
    "distortion": (put("distortion", [0.1, 0], 1), "rectify the images first"),
    "no mount": (drop("ego_from_camera", 1), "lacks ego_from_camera"),
    "mount not a rotation": (
        put("ego_from_camera", (2 * np.eye(4)).tolist(), 0),
        "ego_from_camera of view 'view0'",
    ),
    "no poses": (no_poses, "5 frames but no poses"),
    "too few poses": (put("world_from_ego", [np.eye(4).tolist()]), "expected 5x4x4 numbers"),
    "NaN pose": (
        put("world_from_ego", [(np.eye(4) * np.nan).tolist()] * 5),
        "world_from_ego: holds NaN",
    ),
    "times of another length": (put("times", [0, 1], 0), "times of view 'view0'"),
    "times out of order": (put("times", [0, 2, 1, 3, 4], 0), "frame 2 at 1"),
    "negative focal length": (
        put("K", [[-15, 0, 10], [0, 15, 6], [0, 0, 1]], 0),
        "both must be positive",
    ),
    "images elsewhere": (put("images", "../*.png", 0), "must stay inside the folder"),
    "no images": (put("images", "nowhere/*", 0), "no images of view 'view0'"),
    "another version": (put("version", 9), "version is 9, expected 1"),
    "unknown category": (
        lambda d: d["tracks"].update(category=["tank"]),
        r"unknown categories \['tank'\]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_mistakes_are_explained(folder, case):
    change, message = BROKEN[case]
    edit(folder, change)
    with pytest.raises(DataError, match=message):
        load_clip(f"folder:{folder}")


def test_truncated_image_is_named(folder):
    path = folder / "view1" / "000002.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"000002\.png: this image cannot be decoded"):
        load_folder(str(folder))


def test_truncated_jpeg_is_named(tmp_path):
    folder = save_folder_clip(plain_clip(), tmp_path / "jpeg", suffix=".jpg")
    load_folder(str(folder))
    path = folder / "view0" / "000004.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"000004\.jpg: this image cannot be decoded"):
        load_folder(str(folder))


def test_images_of_different_sizes(folder):
    Image.new("RGB", (21, 12)).save(folder / "view0" / "000003.png")
    with pytest.raises(DataError, match=r"000003\.png: is 21x12 pixels, but the first image"):
        load_folder(str(folder))


def test_a_view_that_lacks_an_image(folder):
    (folder / "view1" / "000002.png").unlink()
    with pytest.raises(DataError, match="view 'view1' has 4 images and view 'view0' has 5"):
        load_folder(str(folder))


def test_broken_json(folder):
    (folder / "cameras.json").write_text("{")
    with pytest.raises(DataError, match=r"cameras\.json: is not valid JSON"):
        load_folder(str(folder))
