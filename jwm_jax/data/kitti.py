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
import re
from pathlib import Path

import numpy as np

from jwm_jax.data.checks import require_rigid
from jwm_jax.data.files import read_arrays, read_images, read_points, require_folder
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene.cameras import Intrinsics, shift_half_pixel
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
    arrays = read_arrays(
        path, ("K", "width", "height", "frame_ids", "t_s", "world_from_velo", "world_from_cam")
    )
    times = np.asarray(arrays["t_s"], np.float64)
    for name in ("frame_ids", "world_from_velo", "world_from_cam"):
        if len(arrays[name]) != len(times):
            raise DataError(
                f"{path}: {name} has {len(arrays[name])} entries, but t_s has {len(times)}."
            )
    if not len(times):
        raise DataError(f"{path}: holds no frames.")
    if arrays["K"].shape != (3, 3):
        raise DataError(f"{path}: expected K of shape [3, 3], got {list(arrays['K'].shape)}.")
    velodyne = require_rigid(arrays["world_from_velo"], f"{path}: world_from_velo")
    camera = require_rigid(arrays["world_from_cam"], f"{path}: world_from_cam")
    images = folder / "image_02_jpg"
    paths = [images / f"{int(frame):010d}.jpg" for frame in arrays["frame_ids"]]
    lens = Intrinsics(
        K=shift_half_pixel(arrays["K"]), width=int(arrays["width"]), height=int(arrays["height"])
    )
    return _clip(
        name=folder.name,
        images=(read_images(paths, "image_02"),),
        times=times[:, None],
        world_from_velodyne=velodyne,
        world_from_camera=camera[:, None],
        cameras=(lens,),
        view_names=("image_02",),
        scans=_frustum_scans(folder / "lidar_frustum.npz", len(times)),
    )


def _frustum_scans(path: Path, frames: int) -> list[np.ndarray] | None:
    """Velodyne points [P, 4] a frame; None where the file is absent."""
    if not path.exists():
        return None
    names = ("points_i16", "offsets", "scale_m", "reflectance_scale")
    arrays = read_arrays(path, names)
    offsets = arrays["offsets"]
    if len(offsets) != frames + 1 or offsets[-1] != len(arrays["points_i16"]):
        raise DataError(
            f"{path}: expected {frames + 1} offsets that end at the number of points, "
            f"{len(arrays['points_i16'])}; got {len(offsets)} that end at {offsets[-1]}."
        )
    scale = np.array([*[arrays["scale_m"]] * 3, arrays["reflectance_scale"]], np.float32)
    points = arrays["points_i16"].astype(np.float32) * scale
    return np.split(points, offsets[1:-1])


def _find_drive(folder: Path) -> Path:
    """The one drive in a folder."""
    for pattern in (".", "*", "*/*"):
        drives = sorted({p.parent.parent for p in folder.glob(f"{pattern}/image_0[23]/data")})
        if len(drives) > 1:
            names = ", ".join(str(d.relative_to(folder)) for d in drives[:4])
            raise UsageError(
                f"{folder} holds {len(drives)} drives ({names}{', ...' * (len(drives) > 4)}); "
                "name one, as in kitti:PATH/DATE/DRIVE_sync."
            )
        if drives:
            return drives[0].resolve()
    raise DataError(
        f"{folder} is no KITTI drive: expected image_02/data with PNG images in it or below, or a "
        "sequence folder with cameras.npz."
    )


def _load_drive(drive: Path) -> Clip:
    """A drive in KITTI's own layout; its calibration lies beside it in the date folder."""
    velodyne_to_camera = _read_calibration(drive.parent / "calib_velo_to_cam.txt", ("R", "T"))
    path = drive.parent / "calib_cam_to_cam.txt"
    calibration = _read_calibration(path, ("R_rect_00",))
    camera0_from_velodyne = make_transform(
        require_rigid(
            velodyne_to_camera["R"].reshape(3, 3), f"{drive.parent / 'calib_velo_to_cam.txt'}: R"
        ),
        velodyne_to_camera["T"],
    )
    rectify = make_transform(
        require_rigid(calibration["R_rect_00"].reshape(3, 3), f"{path}: R_rect_00"), np.zeros(3)
    )
    views = [c for c in _COLOR_CAMERAS if (drive / f"image_{c}" / "data").is_dir()]
    frames = _image_files(drive, views)
    images, cameras, velodyne_from_camera, times = [], [], [], []
    for view in views:
        if f"P_rect_{view}" not in calibration:
            raise DataError(f"{path}: lacks P_rect_{view}, which image_{view} needs.")
        projection = calibration[f"P_rect_{view}"].reshape(3, 4)
        K = projection[:, :3]
        if not np.linalg.det(K) > 0:
            raise DataError(f"{path}: P_rect_{view} has focal lengths that are not positive.")
        offset = np.linalg.solve(K, projection[:, 3])
        camera_from_velodyne = make_transform(np.eye(3), offset) @ rectify @ camera0_from_velodyne
        velodyne_from_camera.append(invert_transform(camera_from_velodyne))
        paths = [drive / f"image_{view}" / "data" / f"{frame}{s}" for frame, s in frames]
        images.append(read_images(paths, f"image_{view}"))
        height, width = images[-1].shape[1:3]
        cameras.append(Intrinsics(K=shift_half_pixel(K), width=width, height=height))
        times.append(_read_times(drive / f"image_{view}" / "timestamps.txt", frames))
    world_from_velodyne = _read_poses(drive, [frame for frame, _ in frames])
    return _clip(
        name=drive.name,
        images=tuple(images),
        times=np.stack(times, axis=1),
        world_from_velodyne=world_from_velodyne,
        world_from_camera=world_from_velodyne[:, None] @ np.stack(velodyne_from_camera),
        cameras=tuple(cameras),
        view_names=tuple(f"image_{view}" for view in views),
        scans=_drive_scans(drive, [frame for frame, _ in frames]),
    )


def _image_files(drive: Path, views: list[str]) -> list[tuple[str, str]]:
    """(frame number, suffix) of the frames that every view has."""
    found = []
    for view in views:
        files = (drive / f"image_{view}" / "data").iterdir()
        found.append({(f.stem, f.suffix) for f in files if f.suffix in (".png", ".jpg")})
    frames = sorted(set.intersection(*found))
    if not frames:
        raise DataError(f"{drive}: no frame has images of {', '.join(views)} in image_0N/data.")
    return frames


def _drive_scans(drive: Path, frames: list[str]) -> list[np.ndarray] | None:
    """One scan a frame, empty where KITTI dropped one; None without Velodyne data."""
    folder = drive / "velodyne_points" / "data"
    if not folder.is_dir():
        return None
    paths = [folder / f"{frame}.bin" for frame in frames]
    return [read_points(p, 4) if p.exists() else np.zeros((0, 4), np.float32) for p in paths]


def _read_calibration(path: Path, required: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The numeric lines of a KITTI calibration file."""
    if not path.is_file():
        raise DataError(
            f"{path}: the calibration is missing; download the calibration files of this date and "
            "put them beside its drives."
        )
    values = {}
    for line in path.read_text(errors="replace").splitlines():
        key, colon, rest = line.partition(":")
        try:
            numbers = np.array([float(word) for word in rest.split()])
        except ValueError:
            continue  # calib_time and the like
        if colon and numbers.size:
            values[key.strip()] = numbers
    lengths = {"R": 9, "T": 3, "R_rect_00": 9, "P_rect_02": 12, "P_rect_03": 12}
    for key in required:
        if key not in values:
            raise DataError(f"{path}: lacks the line {key!r}.")
    for key, length in lengths.items():
        if key in values and values[key].size != length:
            raise DataError(f"{path}: {key} has {values[key].size} numbers, expected {length}.")
    return values


def _read_times(path: Path, frames: list[tuple[str, str]]) -> np.ndarray:
    """Seconds a frame from timestamps.txt, whose lines are counted by frame number."""
    numbers = [int(frame) if frame.isdigit() else index for index, (frame, _) in enumerate(frames)]
    if not path.is_file():
        return np.array(numbers, np.float64) / NOMINAL_RATE
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if max(numbers) >= len(lines):
        raise DataError(f"{path}: has {len(lines)} lines, but there is a frame {max(numbers)}.")
    try:
        return np.array([_parse_time(lines[number]) for number in numbers])
    except ValueError as error:
        raise DataError(f"{path}: {error}.") from None


def _parse_time(line: str) -> float:
    """Seconds since 1970 of "2011-09-26 13:02:25.964389445"."""
    whole, _, fraction = line.strip().partition(".")
    moment = datetime.datetime.strptime(whole, "%Y-%m-%d %H:%M:%S")
    seconds = moment.replace(tzinfo=datetime.UTC).timestamp()
    return seconds + (float(f"0.{fraction}") if fraction else 0.0)


def _read_poses(drive: Path, frames: list[str]) -> np.ndarray:
    """world_from_velodyne [T, 4, 4] from the GPS/IMU; the identity for a single frame without."""
    folder = drive / "oxts" / "data"
    if not folder.is_dir():
        if len(frames) == 1:
            return np.eye(4)[None]
        raise DataError(
            f"{drive}: has {len(frames)} frames but no poses: oxts/data is missing. Download the "
            "drive's GPS/IMU data (part of its 'synced+rectified' archive)."
        )
    calibration_path = drive.parent / "calib_imu_to_velo.txt"
    calibration = _read_calibration(calibration_path, ("R", "T"))
    velodyne_from_imu = make_transform(
        require_rigid(calibration["R"].reshape(3, 3), f"{calibration_path}: R"), calibration["T"]
    )
    packets = np.stack([_read_packet(folder / f"{frame}.txt") for frame in frames])
    return _poses_from_packets(packets) @ invert_transform(velodyne_from_imu)


def _read_packet(path: Path) -> np.ndarray:
    """lat, lon (degrees), alt (metres), roll, pitch, yaw (radians) of one frame."""
    if not path.is_file():
        raise DataError(f"{path}: the GPS/IMU packet of this frame is missing.")
    words = re.split(r"\s+", path.read_text().strip())
    try:
        packet = np.array([float(word) for word in words[:6]])
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
    *, name, images, times, world_from_velodyne, world_from_camera, cameras, view_names, scans
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
    ).rebased()
