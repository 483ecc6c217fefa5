"""The plain folder: everything written comes back, and mistakes in cameras.json are explained."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from plain_clips import HEIGHT, WIDTH, plain_clip

from jwm_jax.data import load_clip
from jwm_jax.data.checks import check_clip
from jwm_jax.data.folder import load_folder, save_folder_clip
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene import EGO_FROM_OPENCV, invert_transform, transform_points

DEPTH = np.zeros((1, HEIGHT, WIDTH), np.float32)


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
    "times under another name": (put("timestamps", [0] * 5), "'timestamps'; use 'times', in sec"),
    "a rate under another name": (put("fps", 30), "'fps'; use 'rate', frames a second"),
    "lens coefficients": (put("k1", -0.3, 0), "'k1' of view 'view0'; images must be rectified"),
    "another lens": (put("camera_model", "FISHEYE", 1), "'camera_model' of view 'view1'"),
    "size of images": (put("width", 1920, 0), "'width' of view 'view0'; the size is that of"),
    "a key of another place": (put("rate", 5, 0), "'rate' of view 'view0'; it is a key of the fi"),
    "a slip": (put("world_from_egos", []), "perhaps 'world_from_ego' is meant"),
    "unread tracks": (of_tracks("speed", []), "'speed' of tracks; take it out"),
    "an unread line": (
        lambda d: d["map"][0].update(color="white"),
        "'color' of map line 0; take it out",
    ),
    "skew": (put("K", [[15, 0.4, 10], [0, 15, 6], [0, 0, 1]], 0), "has a skew of 0.4"),
    "times in milliseconds": (put("times", [0, 100, 200, 300, 400], 0), "divide them by 1000"),
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


def test_remarks_are_no_unread_keys(folder):
    edit(folder, put("_comment", "driven on a Sunday"))
    assert load_folder(str(folder)).num_frames == 5


NAMES = ("cam[0]", "front (1)", "cam/front", "/abs", "../up", "..", ".hidden", "", "a*b", "x\\y")


def test_view_names_of_any_kind_survive_and_stay_in_the_folder(tmp_path):
    for index, name in enumerate((*NAMES, "depth", "Lidar", "cameras.json", "前", "x" * 300)):
        clip = replace(plain_clip(frames=2), view_names=(name, "front"))
        clip = replace(clip, depth=tuple(np.ones(clip.view(v).shape[:3], "f4") for v in range(2)))
        place = tmp_path / str(index)
        back = load_folder(str(save_folder_clip(clip, place / "drive")))
        assert back.view_names == (name, "front")
        np.testing.assert_array_equal(back.view(0), clip.view(0))
        assert back.depth[0].all() and [p.name for p in place.iterdir()] == ["drive"]
    assert {p.name for p in tmp_path.iterdir()} == {str(i) for i in range(len(NAMES) + 5)}


def test_view_names_that_differ_little_do_not_meet(tmp_path):
    for index, names in enumerate([("Front", "front"), ("a/b", "view0_a_b"), ("[a]", "[b]")]):
        back = load_folder(
            str(save_folder_clip(plain_clip(2, view_names=names), tmp_path / str(index)))
        )
        assert back.view_names == names
        np.testing.assert_array_equal(back.view(1), plain_clip(2).view(1))
    with pytest.raises(UsageError, match="two views have the same name"):
        save_folder_clip(plain_clip(2, view_names=("a", "a")), tmp_path / "twice")


@pytest.mark.parametrize("name", ["cam[0]", "cam/front", "a b"])
def test_images_are_sought_under_the_name_as_it_is(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "view0").rename(folder / name)

    def change(description):
        description["views"][0]["name"] = name
        del description["views"][0]["images"]

    edit(folder, change)
    np.testing.assert_array_equal(load_folder(str(folder)).view(0), plain_clip().view(0))
    edit(folder, put("images", f"{name}/*.png", 0))
    np.testing.assert_array_equal(load_folder(str(folder)).view(0), plain_clip().view(0))


def test_frames_come_by_number_and_litter_is_none(tmp_path):
    clip = plain_clip(frames=12, views=1)
    clip = replace(clip, depth=(1.0 + np.arange(12.0, dtype="f4")[:, None, None] + 0 * DEPTH,))
    clip = replace(clip, lidar=tuple(np.full((2, 4), t, np.float32) for t in range(12)))
    folder = save_folder_clip(clip, tmp_path / "drive")
    for place, name in (("view0", "f_{}.png"), ("depth/view0", "{}.npy"), ("lidar", "s{:02}.npy")):
        for t, path in enumerate(sorted((folder / place).iterdir())):
            path.rename(path.with_name(name.format(t)))
        for litter in (f"._{name.format(3)}", ".DS_Store", "Thumbs.db"):
            (folder / place / litter).write_bytes(b"litter")
    edit(folder, put("images", "view0/*", 0))
    read = load_folder(str(folder))
    np.testing.assert_array_equal(read.view(0), clip.view(0))
    np.testing.assert_array_equal(read.depth[0], clip.depth[0])
    assert [scan[0, 3] for scan in read.lidar] == list(range(12))


def test_a_folder_with_nothing_but_litter_is_empty(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"litter")
    save_folder_clip(plain_clip(2), tmp_path)
    assert load_folder(str(tmp_path)).num_frames == 2


@pytest.mark.parametrize("turn", [0.0, 0.2, -0.1])
def test_poses_in_another_convention_are_told_from_right_ones(tmp_path, turn):
    """NeRF's cameras, x right, y up, z back, of one view: the vehicle would drive backward."""
    clip = plain_clip(frames=8, views=1, lidar=None, tracks=None, map=None)
    yaw = turn * np.arange(8)
    pose = clip.world_from_camera[:, 0].copy()
    pose[:, :2, 3] = np.cumsum(np.stack([np.cos(yaw), np.sin(yaw)], 1), axis=0)
    pose[:, :2, :3] = (
        np.stack(
            [np.stack([np.cos(yaw), -np.sin(yaw)], 1), np.stack([np.sin(yaw), np.cos(yaw)], 1)], 1
        )
        @ pose[:, :2, :3]
    )
    folder = save_folder_clip(clip, tmp_path / "drive")
    edit(folder, drop("world_from_ego"))

    def said(poses):
        edit(folder, put("world_from_camera", poses.tolist(), 0))
        return " ".join(f.message for f in check_clip(load_folder(str(folder))))

    assert said(pose) == ""
    nerf = np.diag([1.0, -1, -1, 1])
    assert "upside down" in said(pose @ nerf) and "drives backward all" in said(pose @ nerf)
    sideways = invert_transform(EGO_FROM_OPENCV)  # a world without a known up
    assert said(sideways @ pose) == ""
    assert "by diag(1, -1, -1, 1)" in said(sideways @ pose @ nerf)


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
