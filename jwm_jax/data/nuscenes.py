"""One nuScenes key frame: six cameras, each with its own time and ego pose, lidar and boxes.

The folder holds `sample.npz` and the original files under `samples/`. World is the ego frame at the
lidar's time; nuScenes' ego frame is already x forward, y left, z up at the rear axle on the ground.
Boxes are annotated at the lidar's time; where a velocity is known they move with it over the
exposures of the cameras (up to 50 ms before and after). nuScenes counts pixel centres as whole
numbers, so half a pixel is added to its principal points.
"""

from pathlib import Path

import numpy as np

from jwm_jax.data.checks import require_rigid
from jwm_jax.data.files import (
    lens_of_pictures,
    read_images,
    read_points,
    require_folder,
    size_in,
)
from jwm_jax.errors import DataError
from jwm_jax.reading import read_arrays
from jwm_jax.scene.cameras import shift_half_pixel
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.tracks import CATEGORIES, Tracks
from jwm_jax.scene.transforms import (
    invert_transform,
    matrix_to_quat,
    transform_points,
    yaw_rotation,
)

CATEGORY_OF = {
    "car": "car",
    "truck": "truck",
    "construction_vehicle": "truck",
    "bus": "bus",
    "trailer": "trailer",
    "motorcycle": "motorcycle",
    "bicycle": "bicycle",
    "pedestrian": "pedestrian",
    "traffic_cone": "other",
    "barrier": "other",
}
"""Our category of each of the ten nuScenes detection classes."""

_BOX_REACH = 0.05  # seconds before and after the annotation over which boxes are extrapolated

_ARRAYS = {
    "cams": "text v",
    "K": "v 3 3",
    "width": "",
    "height": "",
    "cam2ego": "v 4 4",
    "ego2global_at_cam": "v 4 4",
    "cam_t": "v",
    "image_files": "text v",
    "lidar_t": "",
    "lidar_file": "text",
    "lidar2ego": "4 4",
    "ego2global_at_lidar": "4 4",
    "boxes_lidar": "n k",
    "box_label": "whole n",
    "box_velocity": "n 2",
    "class_names": "text c",
}


def load_nuscenes(where: str) -> Clip:
    """The key frame as a clip of one instant: six views, lidar, boxes; no map.

    Raises:
        DataError: A file is missing or broken.
    """
    folder = require_folder(where, "a nuScenes key frame (sample.npz and samples/)")
    path = folder / "sample.npz"
    if not path.is_file():
        raise DataError(
            f"{folder}: expected sample.npz of one exported key frame; this build does not read "
            "nuScenes' own JSON tables."
        )
    arrays = read_arrays(path, _ARRAYS)
    names = tuple(str(name) for name in arrays["cams"])
    if not names:
        raise DataError(f"{path}: names no camera in cams.")
    poses = ("cam2ego", "ego2global_at_cam", "lidar2ego", "ego2global_at_lidar")
    ego_from_camera, global_from_ego, ego_from_lidar, global_from_lidar_ego = (
        require_rigid(arrays[name], f"{path}: {name}") for name in poses
    )
    world_from_global = invert_transform(global_from_lidar_ego)
    images = tuple(
        read_images([_inside(folder, str(file))], name)
        for file, name in zip(arrays["image_files"], names, strict=True)
    )
    lenses = [
        lens_of_pictures(shift_half_pixel(K), size_in(arrays, path), pictures, str(path))
        for K, pictures in zip(arrays["K"], images, strict=True)
    ]
    return Clip(
        images=images,
        times=np.asarray(arrays["cam_t"], np.float64)[None],
        world_from_ego=np.eye(4)[None],
        world_from_camera=(world_from_global @ global_from_ego @ ego_from_camera)[None],
        cameras=tuple(lens for lens, _ in lenses),
        view_names=names,
        lidar=(_read_lidar(_inside(folder, str(arrays["lidar_file"])), ego_from_lidar),),
        tracks=_read_boxes(arrays, ego_from_lidar, path),
        name=folder.name,
        notes=tuple(dict.fromkeys(note for _, notes in lenses for note in notes)),
    )


def _inside(folder: Path, file: str) -> Path:
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{folder / 'sample.npz'}: {file!r} points out of the folder.")
    return path


def _read_lidar(path: Path, ego_from_lidar: np.ndarray) -> np.ndarray:
    """float32 [P, 4] in the ego frame, intensity in [0, 1]."""
    points = read_points(path, 5)
    xyz = transform_points(ego_from_lidar.astype(np.float32), points[:, :3])
    return np.concatenate([xyz, points[:, 3:4] / 255.0], axis=1)


def _read_boxes(arrays: dict[str, np.ndarray], world_from_lidar: np.ndarray, path: Path) -> Tracks:
    boxes = np.asarray(arrays["boxes_lidar"], np.float64)
    if boxes.shape[1] < 7:
        raise DataError(
            f"{path}: boxes_lidar has {boxes.shape[1]} columns, expected centre, size and yaw: 7."
        )
    velocity = np.nan_to_num(np.asarray(arrays["box_velocity"], np.float64))
    velocity = np.concatenate([velocity, np.zeros_like(velocity[:, :1])], axis=1)
    offsets = np.array([-_BOX_REACH, 0.0, _BOX_REACH])
    centers = boxes[:, None, :3] + offsets[:, None] * velocity[:, None]
    rotation = world_from_lidar[:3, :3] @ yaw_rotation(boxes[:, 6])
    names, labels = arrays["class_names"], arrays["box_label"]
    if not all(-1 <= label < len(names) for label in labels):
        raise DataError(
            f"{path}: expected box_label to hold {len(boxes)} indices of the {len(names)} "
            f"class_names, or -1 for none of them, got {np.asarray(labels).tolist()}."
        )
    classes = [str(names[label]) if label >= 0 else "other" for label in labels]
    count = len(boxes)
    return Tracks(
        times=float(arrays["lidar_t"]) + offsets,
        centers=transform_points(world_from_lidar, centers.reshape(-1, 3)).reshape(count, 3, 3),
        quats=np.repeat(matrix_to_quat(rotation)[:, None], 3, axis=1),
        sizes=boxes[:, 3:6],
        valid=np.ones((count, 3), bool),
        category=np.array(
            [CATEGORIES.index(CATEGORY_OF.get(name, "other")) for name in classes], np.int32
        ),
        ids=tuple(f"{name}-{index}" for index, name in enumerate(classes)),
    )
