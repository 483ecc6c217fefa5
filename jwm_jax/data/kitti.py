"""KITTI raw, and the short KITTI sequence with estimated poses used in development.

Frames. KITTI's Velodyne is x forward, y left, z up, 1.73 m above the road and 0.81 m ahead of the
GPS/IMU unit, which sits over the rear axle to within about 0.1 m (A. Geiger, P. Lenz, C. Stiller,
R. Urtasun, "Vision meets Robotics: The KITTI Dataset", IJRR 2013). The ego frame here is the
Velodyne's, moved back by 0.81 m and down by 1.73 m: rear axle, on the ground. The lateral offset of
the IMU (0.32 m) does not enter, as the Velodyne stands on the vehicle's centre line.

A Velodyne point X falls on the rectified image i at x = P_rect_0i R_rect_00 T_cam0_velo X; the
fourth column of P_rect_0i, divided by K, is where rectified camera i sits relative to camera 0.
KITTI counts pixel centres as whole numbers, so half a pixel is added to its principal points.
"""

import datetime
import os
from pathlib import Path

import numpy as np

from jwm_jax.data.checks import require_rigid
from jwm_jax.data.files import (
    IMAGE_SUFFIXES,
    lens_of_pictures,
    numbered_files,
    read_images,
    read_points,
    require_folder,
    size_in,
)
from jwm_jax.errors import DataError, UsageError
from jwm_jax.files import entries, is_litter
from jwm_jax.reading import read_arrays, read_text
from jwm_jax.scene.cameras import shift_half_pixel
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.transforms import invert_transform, make_transform, transform_points

VELODYNE_HEIGHT = 1.73
"""Metres above the road."""

VELODYNE_AHEAD = 0.81
"""Metres ahead of the GPS/IMU, taken as the rear axle."""

EGO_FROM_VELODYNE = make_transform(np.eye(3), np.array([VELODYNE_AHEAD, 0.0, VELODYNE_HEIGHT]))

NOMINAL_RATE = 10.0
"""Frames a second, where no time stamps are given."""

_COLOR_CAMERAS = ("02", "03")
_SUFFIXES = (".png", *(suffix for suffix in IMAGE_SUFFIXES if suffix != ".png"))
"""What images may end in; of two files of one frame the lossless one is read."""

_SEQUENCE_ARRAYS = {
    "K": "3 3",
    "width": "",
    "height": "",
    "frame_ids": "whole t",
    "t_s": "t",
    "world_from_velo": "t 4 4",
    "world_from_cam": "t 4 4",
}
_EARTH_RADIUS = 6378137.0  # metres, WGS 84


def load_kitti(where: str) -> Clip:
    """A KITTI drive: the colour cameras, Velodyne points and poses; no boxes, no map.

    Args:
        where: A drive folder (`..._sync`), or its date folder or a folder above if that holds one
            drive only; or a folder with `cameras.npz`, `image_02_jpg` and `lidar_frustum.npz`.

    Raises:
        DataError: A file is missing, broken or contradicts another.
        UsageError: The folder holds several drives.
    """
    folder = require_folder(where, "a KITTI drive")
    if (folder / "cameras.npz").is_file():
        return _load_sequence(folder)
    return _load_drive(_find_drive(folder))


def _load_sequence(folder: Path) -> Clip:
    """The sequence folder: arrays in cameras.npz, images named by frame number."""
    path = folder / "cameras.npz"
    arrays = read_arrays(path, _SEQUENCE_ARRAYS)
    if not len(arrays["t_s"]):
        raise DataError(f"{path}: holds no frames.")
    velodyne = require_rigid(arrays["world_from_velo"], f"{path}: world_from_velo")
    camera = require_rigid(arrays["world_from_cam"], f"{path}: world_from_cam")
    found = numbered_files(require_folder(folder / "image_02_jpg", "images"), _SUFFIXES, "images")
    frames = [int(frame) for frame in arrays["frame_ids"]]
    absent = folder / "image_02_jpg" / f"{min(set(frames) - set(found), default=0):010d}.jpg"
    images = read_images([found.get(frame, absent) for frame in frames], "image_02")
    lens, notes = lens_of_pictures(
        shift_half_pixel(arrays["K"]), size_in(arrays, path), images, str(path)
    )
    return _clip(
        name=folder.name,
        images=(images,),
        times=np.asarray(arrays["t_s"], np.float64)[:, None],
        world_from_velodyne=velodyne,
        world_from_camera=camera[:, None],
        cameras=(lens,),
        view_names=("image_02",),
        scans=_frustum_scans(folder / "lidar_frustum.npz", len(frames)),
        notes=notes,
    )


def _frustum_scans(path: Path, frames: int) -> list[np.ndarray] | None:
    """Velodyne points [P, 4] a frame; None where the file is absent."""
    if not path.exists():
        return None
    arrays = read_arrays(
        path, {"points_i16": "p 4", "offsets": "whole n", "scale_m": "", "reflectance_scale": ""}
    )
    offsets, points = arrays["offsets"], len(arrays["points_i16"])
    rises = np.array_equal(np.sort(offsets), offsets)
    if len(offsets) != frames + 1 or offsets[-1] != points or not rises:
        raise DataError(
            f"{path}: expected {frames + 1} rising offsets that end at the number of points, "
            f"{points}; got {len(offsets)} that end at {offsets[-1] if len(offsets) else 'none'}."
        )
    scale = np.array([*[arrays["scale_m"]] * 3, arrays["reflectance_scale"]], np.float32)
    points = arrays["points_i16"].astype(np.float32) * scale
    return np.split(points, offsets[1:-1])


def _find_drive(folder: Path) -> Path:
    """The one drive in a folder."""
    for pattern in (".", "*", "*/*"):
        found = {p.parent.parent for p in folder.glob(f"{pattern}/image_0[23]/data")}
        drives = sorted(d for d in found if not is_litter(d.relative_to(folder)))
        if len(drives) > 1:
            names = ", ".join(str(d.relative_to(folder)) for d in drives[:4])
            raise UsageError(
                f"{folder} holds {len(drives)} drives ({names}{', ...' * (len(drives) > 4)}); "
                "name one, as in kitti:PATH/DATE/DRIVE_sync."
            )
        if drives:
            return Path(os.path.abspath(drives[0]))
    raise DataError(
        f"{folder} is no KITTI drive: expected image_02/data with images in it or below, or a "
        "sequence folder with cameras.npz."
    )


def _load_drive(drive: Path) -> Clip:
    """A drive in KITTI's own layout; its calibration lies beside it in the date folder."""
    path = _beside(drive, "calib_velo_to_cam.txt")
    velodyne_to_camera = _read_calibration(path, ("R", "T"))
    camera0_from_velodyne = make_transform(
        require_rigid(velodyne_to_camera["R"].reshape(3, 3), f"{path}: R"), velodyne_to_camera["T"]
    )
    path = _beside(drive, "calib_cam_to_cam.txt")
    calibration = _read_calibration(path, ("R_rect_00",))
    rectify = make_transform(
        require_rigid(calibration["R_rect_00"].reshape(3, 3), f"{path}: R_rect_00"), np.zeros(3)
    )
    views = [c for c in _COLOR_CAMERAS if (drive / f"image_{c}" / "data").is_dir()]
    files = _image_files(drive, views)
    frames = sorted(set.intersection(*map(set, files)))
    if not frames:
        raise DataError(f"{drive}: no frame has images of every view ({', '.join(views)}).")
    images, cameras, velodyne_from_camera, times, notes = [], [], [], [], []
    for view, of_view in zip(views, files, strict=True):
        if f"P_rect_{view}" not in calibration:
            raise DataError(f"{path}: lacks P_rect_{view}, which image_{view} needs.")
        projection = calibration[f"P_rect_{view}"].reshape(3, 4)
        K = projection[:, :3]
        if not np.linalg.det(K) > 0:
            raise DataError(f"{path}: P_rect_{view} has focal lengths that are not positive.")
        offset = np.linalg.solve(K, projection[:, 3])
        camera_from_velodyne = make_transform(np.eye(3), offset) @ rectify @ camera0_from_velodyne
        velodyne_from_camera.append(invert_transform(camera_from_velodyne))
        pictures = read_images([of_view[frame] for frame in frames], f"image_{view}")
        images.append(pictures)
        size = calibration.get(f"S_rect_{view}", pictures.shape[2:0:-1])
        lens, resized = lens_of_pictures(
            shift_half_pixel(K), (int(size[0]), int(size[1])), pictures, f"{path}: S_rect_{view}"
        )
        cameras.append(lens)
        seconds, filled = _read_times(drive / f"image_{view}" / "timestamps.txt", frames)
        times.append(seconds)
        notes += [*resized, *filled]
    world_from_velodyne = _read_poses(drive, frames)
    return _clip(
        name=drive.name,
        images=tuple(images),
        times=np.stack(times, axis=1),
        world_from_velodyne=world_from_velodyne,
        world_from_camera=world_from_velodyne[:, None] @ np.stack(velodyne_from_camera),
        cameras=tuple(cameras),
        view_names=tuple(f"image_{view}" for view in views),
        scans=_drive_scans(drive, frames),
        notes=tuple(notes),
    )


def _beside(drive: Path, name: str) -> Path:
    """A file of the date folder: beside the drive as it was named, or beside what it links to."""
    given = drive.parent / name
    target = drive.resolve().parent / name
    return target if target.is_file() and not given.is_file() else given


def _image_files(drive: Path, views: list[str]) -> list[dict[int, Path]]:
    """Images of each view, by frame."""
    found = []
    for view in views:
        folder = drive / f"image_{view}" / "data"
        found.append(numbered_files(folder, _SUFFIXES, "images"))
        if not found[-1]:
            suffixes = sorted({path.suffix for path in entries(folder)})
            raise DataError(
                f"{folder}: holds no image with a suffix of {', '.join(_SUFFIXES)}; it has "
                f"{', '.join(suffixes) or 'nothing'}."
            )
    return found


def _drive_scans(drive: Path, frames: list[int]) -> list[np.ndarray] | None:
    """One scan a frame, empty where KITTI dropped one; None without Velodyne data."""
    folder = drive / "velodyne_points" / "data"
    if not folder.is_dir():
        return None
    paths = numbered_files(folder, (".bin",), "lidar scans")
    empty = np.zeros((0, 4), np.float32)
    return [read_points(paths[f], 4) if f in paths else empty for f in frames]


def _read_calibration(path: Path, required: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The numeric lines of a KITTI calibration file."""
    if not path.is_file():
        raise DataError(
            f"{path}: the calibration is missing; download the calibration files of this date and "
            "put them beside its drives."
        )
    values = {}
    for line in read_text(path, errors="replace").splitlines():
        key, colon, rest = line.partition(":")
        try:
            numbers = np.array([float(word) for word in rest.split()])
        except ValueError:
            continue  # calib_time and the like
        if colon and numbers.size:
            values[key.strip()] = numbers
    lengths = {"R": 9, "T": 3, "R_rect_00": 9}
    lengths |= {f"P_rect_{c}": 12 for c in _COLOR_CAMERAS}
    lengths |= {f"S_rect_{c}": 2 for c in _COLOR_CAMERAS}
    for key in required:
        if key not in values:
            raise DataError(f"{path}: lacks the line {key!r}.")
    for key, length in lengths.items():
        if key in values and values[key].size != length:
            raise DataError(f"{path}: {key} has {values[key].size} numbers, expected {length}.")
        if key.startswith("S_rect") and key in values and not (values[key] >= 1).all():
            raise DataError(f"{path}: {key} must be the width and height of images in pixels.")
    return values


def _read_times(path: Path, frames: list[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Seconds a frame from timestamps.txt, whose lines are counted by frame number.

    A blank line is a frame that KITTI lost. Where there is an image of it all the same, its time is
    put between its neighbours'; the sentence returned says so.
    """
    if not path.is_file():
        return np.array(frames, np.float64) / NOMINAL_RATE, ()
    lines = read_text(path).splitlines()
    if frames[-1] >= len(lines):
        raise DataError(f"{path}: has {len(lines)} lines, but there is a frame {frames[-1]}.")
    written = np.flatnonzero([bool(line.strip()) for line in lines])
    blank = sorted(set(frames) - set(written.tolist()))
    if blank and not (written.size and written[0] < blank[0] and blank[-1] < written[-1]):
        raise DataError(
            f"{path}: line {blank[0] + 1}, of frame {blank[0]}, is blank, and there is no line on "
            "either side to take its time from; remove the images of this frame."
        )
    around = np.searchsorted(written, blank)
    needed = sorted({*frames, *written[around].tolist(), *written[around - 1].tolist()} - {*blank})
    try:
        known = [_parse_time(lines[frame]) for frame in needed]
    except ValueError as error:
        raise DataError(f"{path}: {error}.") from None
    note = (
        f"{path}: {len(blank)} lines are blank, the first is of frame {blank[0] if blank else 0}; "
        "the times of these frames were put between their neighbours'.",
    )
    return np.interp(frames, needed, known), note if blank else ()


def _parse_time(line: str) -> float:
    """Seconds since 1970 of "2011-09-26 13:02:25.964389445"."""
    whole, _, fraction = line.strip().partition(".")
    moment = datetime.datetime.strptime(whole, "%Y-%m-%d %H:%M:%S")
    seconds = moment.replace(tzinfo=datetime.UTC).timestamp()
    return seconds + (float(f"0.{fraction}") if fraction else 0.0)


def _read_poses(drive: Path, frames: list[int]) -> np.ndarray:
    """world_from_velodyne [T, 4, 4] from the GPS/IMU; the identity for a single frame without."""
    folder = drive / "oxts" / "data"
    if not folder.is_dir():
        if len(frames) == 1:
            return np.eye(4)[None]
        raise DataError(
            f"{drive}: has {len(frames)} frames but no poses: oxts/data is missing. Download the "
            "drive's GPS/IMU data (part of its 'synced+rectified' archive)."
        )
    calibration_path = _beside(drive, "calib_imu_to_velo.txt")
    calibration = _read_calibration(calibration_path, ("R", "T"))
    velodyne_from_imu = make_transform(
        require_rigid(calibration["R"].reshape(3, 3), f"{calibration_path}: R"), calibration["T"]
    )
    found = numbered_files(folder, (".txt",), "GPS/IMU packets")
    packets = np.stack([_read_packet(found.get(f, folder / f"{f:010d}.txt")) for f in frames])
    return _poses_from_packets(packets) @ invert_transform(velodyne_from_imu)


def _read_packet(path: Path) -> np.ndarray:
    """lat, lon (degrees), alt (metres), roll, pitch, yaw (radians) of one frame."""
    if not path.is_file():
        raise DataError(f"{path}: the GPS/IMU packet of this frame is missing.")
    try:
        packet = np.array([float(word) for word in read_text(path).split()[:6]])
    except ValueError:
        packet = np.zeros(0)
    if packet.size != 6 or not np.isfinite(packet).all():
        raise DataError(f"{path}: expected at least 6 finite numbers (lat lon alt roll pitch yaw).")
    return packet


def _poses_from_packets(packets: np.ndarray) -> np.ndarray:
    """world_from_imu [T, 4, 4]: Mercator projection at the first latitude, as in KITTI's devkit."""
    latitude, longitude = np.radians(packets[:, 0]), np.radians(packets[:, 1])
    scale = np.cos(latitude[0])
    east = scale * _EARTH_RADIUS * longitude
    north = scale * _EARTH_RADIUS * np.log(np.tan(np.pi / 4 + latitude / 2))
    position = np.stack([east, north, packets[:, 2]], axis=-1)
    roll, pitch, yaw = packets[:, 3:].T
    rotation = _axis_rotation(yaw, 2) @ _axis_rotation(pitch, 1) @ _axis_rotation(roll, 0)
    return make_transform(rotation, position - position[0])


def _axis_rotation(angle: np.ndarray, axis: int) -> np.ndarray:
    """[T, 3, 3] right-handed rotations about a coordinate axis."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.tile(np.eye(3), (len(angle), 1, 1))
    rotation[:, i, i], rotation[:, j, j] = c, c
    rotation[:, i, j], rotation[:, j, i] = -s, s
    return rotation


def _clip(
    *,
    name,
    images,
    times,
    world_from_velodyne,
    world_from_camera,
    cameras,
    view_names,
    scans,
    notes,
) -> Clip:
    """The clip, its world moved to the first ego frame and its points to the ego frames."""
    ego = world_from_velodyne @ invert_transform(EGO_FROM_VELODYNE)
    if scans is not None:
        scans = tuple(
            np.concatenate(
                [transform_points(EGO_FROM_VELODYNE.astype(np.float32), s[:, :3]), s[:, 3:]], axis=1
            )
            for s in scans
        )
    return Clip(
        images=images,
        times=times,
        world_from_ego=ego,
        world_from_camera=world_from_camera,
        cameras=cameras,
        view_names=view_names,
        lidar=scans,
        name=name,
        notes=notes,
    ).rebased()
