"""KITTI: real frames fall where they should, and broken folders say what is broken."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jwm_jax.data import load_clip
from jwm_jax.data.checks import check_clip
from jwm_jax.data.kitti import VELODYNE_HEIGHT, load_kitti
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene import inside_image, invert_transform, transform_points

P2 = "721.5 0 609.5 44.8 0 721.5 172.8 0.2 0 0 1 0.003"
VELO_TO_CAM_R = "0 -1 0 0 0 -1 1 0 0"
FRAMES = 3


def write_drive(root, frames=FRAMES, oxts=True):
    """A drive in KITTI's layout: straight east at 1 m a frame, then its calibration."""
    date = root / "2011_09_26"
    drive = date / "2011_09_26_drive_0001_sync"
    (drive / "image_02" / "data").mkdir(parents=True)
    (drive / "velodyne_points" / "data").mkdir(parents=True)
    for t in range(frames):
        image = np.full((12, 20, 3), 40 + t, np.uint8)
        Image.fromarray(image).save(drive / "image_02" / "data" / f"{t:010d}.png")
        points = np.array([[10, 0, -VELODYNE_HEIGHT, 0.5]] * 4, np.float32)
        points.tofile(drive / "velodyne_points" / "data" / f"{t:010d}.bin")
    stamps = [f"2011-09-26 13:02:25.{1 + t}00000000" for t in range(frames)]
    (drive / "image_02" / "timestamps.txt").write_text("\n".join(stamps) + "\n")
    (date / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012\nR_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: {P2}\n"
    )
    (date / "calib_velo_to_cam.txt").write_text(f"R: {VELO_TO_CAM_R}\nT: 0 -0.08 -0.27\n")
    (date / "calib_imu_to_velo.txt").write_text("R: 1 0 0 0 1 0 0 0 1\nT: -0.81 0.32 -0.80\n")
    if oxts:
        (drive / "oxts" / "data").mkdir(parents=True)
        east = np.degrees(1.0 / (6378137.0 * np.cos(np.radians(49.0))))
        for t in range(frames):
            words = [49.0, 8.4 + t * east, 110.0, 0, 0, 0, *[0] * 24]
            (drive / "oxts" / "data" / f"{t:010d}.txt").write_text(" ".join(map(str, words)))
    return drive


@pytest.fixture(scope="module")
def sequence(jwm_data):
    folder = jwm_data / "kitti_0926_seq64"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return load_kitti(str(folder))


@pytest.mark.realdata
def test_sequence_is_whole(sequence):
    assert (sequence.num_frames, sequence.num_views) == (64, 1)
    assert sequence.view(0).shape == (64, 375, 1242, 3)
    assert sequence.rate == pytest.approx(10.0)
    assert sequence.tracks is None and sequence.map is None
    assert check_clip(sequence) == []


@pytest.mark.realdata
def test_first_pose_is_the_world_and_the_ego_drives_forward(sequence):
    np.testing.assert_allclose(sequence.world_from_ego[0], np.eye(4), atol=1e-9)
    end = sequence.world_from_ego[-1, :3, 3]
    assert 6.5 < end[0] < 8.0 and abs(end[1]) < 0.5 and abs(end[2]) < 0.3


@pytest.mark.realdata
def test_camera_looks_forward_the_right_way_up_from_where_kitti_has_it(sequence):
    pose = sequence.rig().ego_from_camera[0]
    np.testing.assert_allclose(pose[:3, 2], [1, 0, 0], atol=0.03)
    np.testing.assert_allclose(pose[:3, 0], [0, -1, 0], atol=0.03)
    np.testing.assert_allclose(pose[:3, 1], [0, 0, -1], atol=0.03)
    assert pose[2, 3] == pytest.approx(1.65, abs=0.03)
    assert pose[0, 3] == pytest.approx(0.81 + 0.27, abs=0.03)


@pytest.mark.realdata
def test_road_lies_at_height_zero_below_the_horizon(sequence):
    scan = sequence.lidar[0]
    road = scan[(scan[:, 0] < 15) & (np.abs(scan[:, 1]) < 1.0) & (scan[:, 2] < 0.5)][:, :3]
    assert len(road) > 500
    assert abs(float(np.median(road[:, 2]))) < 0.1
    camera = sequence.camera(0, 0)
    uv, depth = camera.project(road.astype(np.float64))
    horizon = camera.K[1, 2]
    assert (uv[depth > 0, 1] > horizon).all()


@pytest.mark.realdata
def test_static_points_keep_their_colour_from_frame_to_frame(sequence):
    """Poses, extrinsics and images agree: reprojecting beats pretending that nothing moved."""
    t = 10
    points = transform_points(sequence.world_from_ego[0], sequence.lidar[0][:, :3].astype(float))

    def gray(frame, camera):
        uv, depth = camera.project(points)
        seen = inside_image(uv, depth, camera.height, camera.width)
        u, v = uv.astype(int).clip(0).T
        image = sequence.view(0)[frame].mean(axis=-1)
        return image[v.clip(max=camera.height - 1), u.clip(max=camera.width - 1)], seen

    first, seen = gray(0, sequence.camera(0, 0))
    moved, seen_moved = gray(t, sequence.camera(t, 0))
    still, _ = gray(t, sequence.camera(0, 0))
    both = seen & seen_moved
    assert np.median(np.abs(moved - first)[both]) < 0.7 * np.median(np.abs(still - first)[both])


@pytest.mark.realdata
def test_real_layout_agrees_with_the_sequence(sequence, jwm_data):
    clip = load_clip(f"kitti:{jwm_data / 'kitti_0926_seq64' / 'raw_layout'}")
    assert clip.num_frames == 1
    np.testing.assert_allclose(clip.cameras[0].K, sequence.cameras[0].K, atol=0.01)
    np.testing.assert_allclose(clip.world_from_camera[0], sequence.world_from_camera[0], atol=2e-3)
    difference = np.abs(clip.view(0)[0].astype(int) - sequence.view(0)[0].astype(int))
    assert difference.mean() < 3  # JPEG against PNG


@pytest.mark.realdata
def test_frame_numbers_times_and_world_may_start_anywhere(sequence, jwm_data, tmp_path):
    source = jwm_data / "kitti_0926_seq64"
    arrays = dict(np.load(source / "cameras.npz"))
    moved = np.eye(4)
    moved[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    moved[:3, 3] = [100, -50, 7]
    keep = slice(20, 24)
    changed = {n: arrays[n][keep] for n in ("frame_ids", "world_from_velo", "world_from_cam")}
    for name in ("world_from_velo", "world_from_cam"):
        changed[name] = moved @ changed[name]
    changed["frame_ids"] = changed["frame_ids"] + 1000
    changed["t_s"] = arrays["t_s"][keep] + 1.3e9
    np.savez(tmp_path / "cameras.npz", **(arrays | changed))
    (tmp_path / "image_02_jpg").mkdir()
    for frame in range(20, 24):
        name = f"image_02_jpg/{frame + 1000:010d}.jpg"
        shutil.copy(source / f"image_02_jpg/{frame:010d}.jpg", tmp_path / name)
    clip = load_kitti(str(tmp_path))
    expected = sequence.select(keep)
    origin = invert_transform(expected.world_from_ego[0])
    np.testing.assert_array_equal(clip.view(0), expected.view(0))
    np.testing.assert_allclose(clip.world_from_ego, origin @ expected.world_from_ego, atol=1e-9)
    np.testing.assert_allclose(
        clip.world_from_camera, origin @ expected.world_from_camera, atol=1e-9
    )
    assert clip.start == pytest.approx(1.3e9 + 2.0) and clip.lidar is None


def test_drive_with_poses(tmp_path):
    drive = write_drive(tmp_path)
    for where in (drive, drive.parent, tmp_path):
        clip = load_kitti(str(where))
        assert clip.num_frames == FRAMES
    np.testing.assert_allclose(clip.world_from_ego[:, 0, 3], [0, 1, 2], atol=1e-3)
    np.testing.assert_allclose(clip.lidar[0][0], [10.81, 0, 0, 0.5], atol=1e-5)
    np.testing.assert_allclose(np.diff(clip.times[:, 0]), 0.1, atol=1e-6)
    ahead, depth = clip.camera(0, 0).project(np.array([[10.81, 0.0, 1.65]]))
    assert depth[0] == pytest.approx(10 - 0.27 + 0.003, abs=0.01)
    assert ahead[0, 0] == pytest.approx(610 + 44.8 / 10, abs=1.0)


def test_a_dropped_scan_is_empty(tmp_path):
    drive = write_drive(tmp_path)
    (drive / "velodyne_points" / "data" / "0000000001.bin").unlink()
    clip = load_kitti(str(drive))
    assert [len(scan) for scan in clip.lidar] == [4, 0, 4]
    assert any("1 of 3 lidar scans are empty" in f.message for f in check_clip(clip))


def test_several_frames_without_poses(tmp_path):
    drive = write_drive(tmp_path, oxts=False)
    with pytest.raises(DataError, match=r"3 frames but no poses: oxts/data is missing"):
        load_kitti(str(drive))


def test_several_drives(tmp_path):
    drive = write_drive(tmp_path)
    shutil.copytree(drive, drive.with_name("2011_09_26_drive_0002_sync"))
    with pytest.raises(UsageError, match="2 drives"):
        load_kitti(str(tmp_path))


def test_frames_are_matched_by_number_whatever_the_zeros_and_suffixes(tmp_path):
    drive = write_drive(tmp_path, frames=12)
    want = load_kitti(str(drive))
    for t in range(12):
        (drive / f"image_02/data/{t:010d}.png").rename(
            drive / f"image_02/data/{t}{('.PNG', '.Png', '.png')[t % 3]}"
        )
        (drive / f"velodyne_points/data/{t:010d}.bin").rename(
            drive / f"velodyne_points/data/{t:06d}.bin"
        )
    np.float32([[t, 0, 0, 0] for t in range(4)]).tofile(drive / "velodyne_points/data/000010.bin")
    clip = load_kitti(str(drive))
    np.testing.assert_array_equal(clip.view(0), want.view(0))
    np.testing.assert_array_equal(clip.times, want.times)
    assert [len(np.unique(scan[:, 0])) for scan in clip.lidar] == [1] * 10 + [4] + [1]


def test_other_suffixes_are_named_and_twins_are_one_lossless_frame(tmp_path):
    drive = write_drive(tmp_path)
    for t in range(FRAMES):
        Image.new("RGB", (20, 12), "white").save(drive / f"image_02/data/{t:010d}.jpeg")
    clip = load_kitti(str(drive))
    assert clip.num_frames == FRAMES and clip.view(0)[:, 0, 0, 0].tolist() == [40, 41, 42]
    for path in (drive / "image_02/data").iterdir():
        path.rename(path.with_suffix(".tif"))
    with pytest.raises(DataError, match=r"no image with a suffix of \.png, .* it has \.tif"):
        load_kitti(str(drive))


def test_hidden_files_and_folders_are_no_frames(tmp_path):
    drive = write_drive(tmp_path)
    for place in ("image_02/data/._0000000001.png", "image_02/data/.DS_Store"):
        (drive / place).write_bytes(b"no picture")
    (drive / "oxts/data/._0000000001.txt").write_bytes(b"no packet")
    (drive / "velodyne_points/data/._0000000001.bin").write_bytes(b"no points")
    shutil.copytree(drive, tmp_path / ".Trash" / drive.name)
    assert load_kitti(str(tmp_path)).num_frames == FRAMES


def test_k_follows_images_that_were_resized_after_calibration(tmp_path):
    drive = write_drive(tmp_path)
    as_calibrated = load_kitti(str(drive))
    path = drive.parent / "calib_cam_to_cam.txt"
    text = path.read_text()
    path.write_text(text + "S_rect_02: 40 24\n")
    clip = load_kitti(str(drive))
    np.testing.assert_allclose(clip.cameras[0].K[:2], as_calibrated.cameras[0].K[:2] / 2)
    assert any("S_rect_02 says 40x24: K was scaled" in f.message for f in check_clip(clip))
    path.write_text(text + "S_rect_02: 20 24\n")
    with pytest.raises(DataError, match="its calibration is for 20x24, which is no plain resize"):
        load_clip(f"kitti:{drive}")
    path.write_text(text + "S_rect_02: 0 24\n")
    with pytest.raises(DataError, match="S_rect_02 must be the width and height"):
        load_kitti(str(drive))


def test_blank_lines_of_the_time_stamps_are_frames_that_were_lost(tmp_path):
    drive = write_drive(tmp_path, frames=8)
    times = load_kitti(str(drive)).times[:, 0]
    path = drive / "image_02/timestamps.txt"
    lines = path.read_text().splitlines()
    lines[2], lines[5], lines[6] = "", " ", "\t"
    path.write_text("\n".join(lines))
    clip = load_kitti(str(drive))
    np.testing.assert_allclose(clip.times[:, 0], times, atol=1e-6)
    assert "3 lines are blank, the first is of frame 2" in clip.notes[0]
    (drive / "image_02/data/0000000002.png").unlink()
    np.testing.assert_allclose(load_kitti(str(drive)).times[:, 0], np.delete(times, 2), atol=1e-6)
    path.write_text("\n" + "\n".join(lines[1:]))
    with pytest.raises(DataError, match=r"timestamps.txt: line 1, of frame 0, is blank"):
        load_kitti(str(drive))


@pytest.mark.parametrize("where", ["drive", "date", "above"])
def test_a_drive_on_another_disk_has_its_calibration_beside_the_link(tmp_path, where):
    drive = write_drive(tmp_path / "disk")
    date = tmp_path / "kitti" / drive.parent.name
    date.mkdir(parents=True)
    for path in drive.parent.glob("calib_*"):
        path.rename(date / path.name)
    (date / drive.name).symlink_to(drive)
    place = {"drive": date / drive.name, "date": date, "above": date.parent}[where]
    assert load_kitti(str(place)).num_frames == FRAMES


def test_a_link_to_a_drive_finds_the_calibration_beside_the_drive(tmp_path):
    drive = write_drive(tmp_path / "disk")
    (tmp_path / "link").symlink_to(drive)
    assert load_kitti(str(tmp_path / "link")).num_frames == FRAMES


def test_text_saved_by_windows(tmp_path):
    drive = write_drive(tmp_path)
    want = load_kitti(str(drive))
    packets = (drive / "oxts/data").iterdir()
    for path in (*drive.parent.glob("*.txt"), drive / "image_02/timestamps.txt", *packets):
        path.write_text(path.read_text(), encoding="utf-8-sig", newline="\r\n")
    clip = load_kitti(str(drive))
    np.testing.assert_array_equal(clip.times, want.times)
    np.testing.assert_array_equal(clip.world_from_camera, want.world_from_camera)


def test_a_camera_matrix_of_another_shape(jwm_data, tmp_path):
    source = jwm_data / "kitti_0926_seq64"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    arrays = dict(np.load(source / "cameras.npz"))
    np.savez(tmp_path / "cameras.npz", **(arrays | {"K": np.eye(4)}))
    (tmp_path / "image_02_jpg").mkdir()
    with pytest.raises(DataError, match=r"cameras.npz: K has shape \[4, 4\], expected \[3, 3\]"):
        load_kitti(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("calib_velo_to_cam.txt", None, "calibration is missing"),
        ("calib_velo_to_cam.txt", "R: 2 0 0 0 1 0 0 0 1\nT: 0 0 0", "not a rotation"),
        ("calib_velo_to_cam.txt", "R: 1 0 0 0 1 0 0 0 -1\nT: 0 0 0", "mirrored"),
        ("calib_velo_to_cam.txt", "R: nan 0 0 0 1 0 0 0 1\nT: 0 0 0", "NaN"),
        ("calib_velo_to_cam.txt", "R: 1 0 0\nT: 0 0 0", "expected 9"),
        ("calib_cam_to_cam.txt", "R_rect_00: 1 0 0 0 1 0 0 0 1", "lacks P_rect_02"),
        (
            "calib_cam_to_cam.txt",
            "R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: -9 0 5 0 0 9 5 0 0 0 1 0",
            "not positive",
        ),
        ("2011_09_26_drive_0001_sync/oxts/data/0000000001.txt", "1 2", "at least 6"),
        ("2011_09_26_drive_0001_sync/oxts/data/0000000001.txt", None, "packet of this frame"),
        ("2011_09_26_drive_0001_sync/velodyne_points/data/0000000001.bin", "abc", "cut short"),
        ("2011_09_26_drive_0001_sync/image_02/timestamps.txt", "2011-09-26 1:2:3", "has 1 lines"),
        ("2011_09_26_drive_0001_sync/image_02/data/0000000001.png", "no", "cannot be decoded"),
    ],
)
def test_broken_files_are_named(tmp_path, file, content, message):
    drive = write_drive(tmp_path)
    path = drive.parent / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load_kitti(str(drive))
    assert path.name in str(error.value)
