"""A plain folder of images plus cameras.json: how to bring one's own drive.

README.md in this folder describes the schema. `load_folder` reads it, `save_folder_clip` writes it.
World may be any frame in metres with z up; on reading it becomes the ego frame of the first frame.
"""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from jwm_jax.data.cameras_json import FORMAT_VERSION, numbers, read_description, require
from jwm_jax.data.checks import require_rigid
from jwm_jax.data.files import IMAGE_SUFFIXES, read_images, require_folder
from jwm_jax.errors import DataError, UsageError
from jwm_jax.files import folder_beside, is_litter, write_whole
from jwm_jax.reading import natural_order
from jwm_jax.scene.cameras import Intrinsics
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.lane_map import LINE_KINDS, LaneMap
from jwm_jax.scene.tracks import CATEGORIES, Tracks
from jwm_jax.scene.transforms import EGO_FROM_OPENCV, invert_transform, make_transform

DEFAULT_RATE = 10.0
"""Frames a second, where neither times nor rate are given."""

DEFAULT_CAMERA_HEIGHT = 1.5
"""Metres above the ground of a camera whose place on the vehicle is not given."""


def load_folder(where: str) -> Clip:
    """A drive from a plain folder.

    Raises:
        DataError: cameras.json or an image is missing, broken, or contradicts the rest.
    """
    folder = require_folder(where, "images and cameras.json")
    path = folder / "cameras.json"
    description = read_description(path)
    views = require(description, "views", list, path)
    if not views:
        raise DataError(f"{path}: 'views' is empty; expected one entry a camera.")
    names = [str(require(view, "name", str, path)) for view in views]
    files = [
        _image_files(folder, view, name, path) for view, name in zip(views, names, strict=True)
    ]
    frames = len(files[0])
    for name, found in zip(names, files, strict=True):
        if len(found) != frames:
            raise DataError(
                f"{folder}: view {name!r} has {len(found)} images and view {names[0]!r} has "
                f"{frames}; every view needs one image a frame."
            )
    images = tuple(read_images(f, name) for f, name in zip(files, names, strict=True))
    mounts = [_mount(view, name, len(views), path) for view, name in zip(views, names, strict=True)]
    ego, cameras = _poses(description, views, mounts, frames, path)
    return Clip(
        images=images,
        times=_times(description, views, frames, path),
        world_from_ego=ego,
        world_from_camera=cameras,
        cameras=tuple(
            Intrinsics(K=_camera_matrix(view, path), width=i.shape[2], height=i.shape[1])
            for view, i in zip(views, images, strict=True)
        ),
        view_names=tuple(names),
        lidar=_lidar(folder, description, frames, path),
        depth=_depth(folder, views, images, path),
        tracks=_tracks(description.get("tracks"), path),
        map=_lane_map(description.get("map"), path),
        style=_style(description.get("style"), path),
        name=str(description.get("name", folder.name)),
        notes=_upside_down(ego, path),
    ).rebased()


def save_folder_clip(clip: Clip, folder: str | os.PathLike, suffix: str = ".png") -> Path:
    """Write a clip as a plain folder that `load_folder` reads.

    Everything is kept; images are exact for the suffix ".png".

    Args:
        clip: What to write.
        folder: Made if absent.
        suffix: ".png" or ".jpg".

    Returns:
        The folder.

    Raises:
        UsageError: The folder is not empty.
    """
    if len(set(clip.view_names)) < clip.num_views:
        raise UsageError(f"two views have the same name: {', '.join(clip.view_names)}.")
    with folder_beside(Path(folder)) as part:
        _fill(part, clip, suffix)
    return Path(folder)


def _fill(folder: Path, clip: Clip, suffix: str) -> None:
    """Write the files of a clip into an empty folder."""
    views = []
    rig = clip.rig()
    for v, (name, place) in enumerate(zip(clip.view_names, _places(clip.view_names), strict=True)):
        (folder / place).mkdir()
        for t, image in enumerate(clip.view(v)):
            options = {} if suffix == ".png" else {"quality": 95, "subsampling": 0}
            Image.fromarray(image).save(folder / place / f"{t:06d}{suffix}", **options)
        if clip.depth is not None:
            (folder / "depth" / place).mkdir(parents=True)
            for t, depth in enumerate(clip.depth[v]):
                np.save(folder / "depth" / place / f"{t:06d}.npy", depth)
        views.append(
            {
                "name": name,
                "images": f"{place}/*{suffix}",
                "K": np.asarray(clip.cameras[v].K).tolist(),
                "ego_from_camera": rig.ego_from_camera[v].tolist(),
                "world_from_camera": clip.world_from_camera[:, v].tolist(),
                "times": clip.times[:, v].tolist(),
            }
            | ({} if clip.depth is None else {"depth": f"depth/{place}/*.npy"})
        )
    description = {
        "version": FORMAT_VERSION,
        "name": clip.name,
        "views": views,
        "world_from_ego": clip.world_from_ego.tolist(),
    }
    if clip.style:
        description["style"] = clip.style
    if clip.lidar is not None:
        (folder / "lidar").mkdir()
        for t, scan in enumerate(clip.lidar):
            np.save(folder / "lidar" / f"{t:06d}.npy", scan)
        description["lidar"] = "lidar/*.npy"
    if clip.tracks is not None:
        description["tracks"] = _describe_tracks(clip.tracks)
    if clip.map is not None:
        lines = zip(clip.map.kinds, clip.map.polylines, strict=True)
        description["map"] = [{"kind": k, "points": np.asarray(p).tolist()} for k, p in lines]
    write_whole(folder / "cameras.json", json.dumps(description, indent=1))


_PLAIN = re.compile(r"\w[\w .()+-]{0,99}", re.ASCII)
_TAKEN = ("cameras.json", "depth", "lidar")


def _places(names: Sequence[str]) -> list[str]:
    """A folder for each view: its name, or one like it where that is not fit for a folder.

    Unfit are names with separators, wildcards or a dot in front, those of the other files, and
    those that differ from another view's in nothing but capitals.
    """
    places: list[str] = []
    for v, name in enumerate(names):
        place = name
        if not _PLAIN.fullmatch(name) or name[-1] in " ." or name.casefold() in _TAKEN:
            place = f"view{v}_" + re.sub(r"[^\w.()+-]+", "_", name, flags=re.ASCII)[:80].strip("._")
        while place.casefold() in (p.casefold() for p in places):
            place += "_"
        places.append(place)
    return places


def _describe_tracks(tracks: Tracks) -> dict:
    return {
        "times": np.asarray(tracks.times, np.float64).tolist(),
        "ids": list(tracks.ids),
        "category": [CATEGORIES[c] for c in tracks.category],
        "size": np.asarray(tracks.sizes, np.float64).tolist(),
        "center": np.asarray(tracks.centers, np.float64).tolist(),
        "quat": np.asarray(tracks.quats, np.float64).tolist(),
        "valid": np.asarray(tracks.valid).tolist(),
    }


def _matching(folder: Path, pattern: str, path: Path) -> list[Path]:
    """Files of a pattern below the folder in the order of their numbers, litter left out.

    A pattern that matches nothing may be a name with brackets in it.
    """
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise DataError(f"{path}: {pattern!r} must stay inside the folder.")
    root = folder.resolve()
    try:
        found = list(folder.glob(pattern)) or list(folder.glob(pattern.replace("[", "[[]")))
    except (ValueError, NotImplementedError, OSError) as error:
        raise DataError(f"{path}: {pattern!r} is not a pattern of file names ({error}).") from None
    files = [p for p in found if not is_litter(p.relative_to(folder)) and p.is_file()]
    outside = [p for p in files if not p.resolve().is_relative_to(root)]
    if outside:
        raise DataError(f"{outside[0]}: points out of the folder.")
    return files


def _image_files(folder: Path, view: dict, name: str, path: Path) -> list[Path]:
    pattern = str(view.get("images", f"{glob.escape(name)}/*"))
    files = [p for p in _matching(folder, pattern, path) if p.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise DataError(
            f"{folder}: no images of view {name!r} match {pattern!r} ({', '.join(IMAGE_SUFFIXES)})."
        )
    return natural_order(files, folder)


def _camera_matrix(view: dict, path: Path) -> np.ndarray:
    where = f"{path}: K of view {view['name']!r}"
    if "K" not in view:
        raise DataError(f"{where} is missing; expected the 3x3 camera matrix in pixels.")
    distortion = view.get("distortion") or []
    if np.any(numbers(distortion, (None,), f"{path}: distortion of view {view['name']!r}")):
        raise DataError(
            f"{path}: view {view['name']!r} has lens distortion, which this build does not undo; "
            "rectify the images first."
        )
    return numbers(view["K"], (3, 3), where)


def _mount(view: dict, name: str, views: int, path: Path) -> np.ndarray:
    """ego_from_camera [4, 4]."""
    if "ego_from_camera" in view:
        where = f"{path}: ego_from_camera of view {name!r}"
        return require_rigid(numbers(view["ego_from_camera"], (4, 4), where), where)
    if views > 1:
        raise DataError(
            f"{path}: view {name!r} lacks ego_from_camera, which a rig of {views} views needs."
        )
    return looking_ahead()


def looking_ahead() -> Float[np.ndarray, "4 4"]:
    """ego_from_camera of a camera that looks ahead from `DEFAULT_CAMERA_HEIGHT` over the axle."""
    lifted = make_transform(np.eye(3), np.array([0.0, 0.0, DEFAULT_CAMERA_HEIGHT]))
    return lifted @ EGO_FROM_OPENCV


def _poses(description: dict, views: list, mounts: list, frames: int, path: Path):
    """world_from_ego [T, 4, 4] and world_from_camera [T, V, 4, 4] in the file's own world."""

    def poses(value, where):
        return require_rigid(numbers(value, (frames, 4, 4), where), where)

    given = {
        v: poses(view["world_from_camera"], f"{path}: world_from_camera of view {view['name']!r}")
        for v, view in enumerate(views)
        if "world_from_camera" in view
    }
    if "world_from_ego" in description:
        ego = poses(description["world_from_ego"], f"{path}: world_from_ego")
    elif given:
        v = min(given)
        ego = given[v] @ invert_transform(mounts[v])
    elif frames == 1:
        ego = np.eye(4)[None]
    else:
        raise DataError(
            f"{path}: {frames} frames but no poses; give world_from_ego [{frames}][4][4], or "
            "world_from_camera in a view."
        )
    cameras = [given[v] if v in given else ego @ mount for v, mount in enumerate(mounts)]
    return ego, np.stack(cameras, axis=1)


def _upside_down(ego: np.ndarray, path: Path) -> tuple[str, ...]:
    """A sentence where the vehicle stands on its roof in the file's own world, z up."""
    if np.median(ego[:, 2, 2]) > -0.5:
        return ()
    return (
        f"{path}: the vehicle is upside down in the world of the poses, which has z up. Camera "
        "poses may be in the convention of OpenGL and NeRF (x right, y up, z back): multiply each "
        "from the right by diag(1, -1, -1, 1).",
    )


def _times(description: dict, views: list, frames: int, path: Path) -> np.ndarray:
    """float64 [T, V] seconds."""
    rate = description.get("rate", DEFAULT_RATE)
    if not isinstance(rate, int | float) or not rate > 0:
        raise DataError(f"{path}: rate must be a positive number of frames a second, got {rate!r}.")
    shared = description.get("times", (np.arange(frames) / rate).tolist())
    columns = [
        numbers(view.get("times", shared), (frames,), f"{path}: times of view {view['name']!r}")
        for view in views
    ]
    return np.stack(columns, axis=1)


def _lidar(folder: Path, description: dict, frames: int, path: Path):
    if "lidar" not in description:
        return None
    scans = []
    for file, scan in _arrays(folder, str(description["lidar"]), "lidar", frames, path):
        if scan.ndim != 2 or scan.shape[1] not in (3, 4):
            raise DataError(
                f"{file}: expected [points, 4] (x, y, z, intensity), got {list(scan.shape)}."
            )
        padding = np.zeros((len(scan), 4 - scan.shape[1]))
        scans.append(np.concatenate([scan, padding], axis=1).astype(np.float32))
    return tuple(scans)


def _depth(folder: Path, views: list, images: tuple, path: Path):
    """Depth maps of the views that have them, zeros for the others; None if none has."""
    if not any("depth" in view for view in views):
        return None
    maps = []
    for view, pictures in zip(views, images, strict=True):
        of_view = np.zeros(pictures.shape[:3], np.float32)
        if "depth" in view:
            name = f"depth of view {view['name']!r}"
            found = _arrays(folder, str(view["depth"]), name, len(pictures), path)
            for t, (file, depth) in enumerate(found):
                if depth.shape != pictures.shape[1:3]:
                    raise DataError(
                        f"{file}: expected {list(pictures.shape[1:3])} numbers, metres along z, "
                        f"got {list(depth.shape)} of {depth.dtype}."
                    )
                of_view[t] = np.where(np.isfinite(depth) & (depth > 0), depth, 0.0)
        maps.append(of_view)
    return tuple(maps)


def _arrays(folder: Path, pattern: str, name: str, frames: int, path: Path):
    """(file, array) of the .npy files of a pattern, one a frame."""
    files = natural_order(_matching(folder, pattern, path), folder)
    if len(files) != frames:
        raise DataError(f"{path}: {name} matches {len(files)} files for {frames} frames.")
    for file in files:
        try:
            array = np.load(file, allow_pickle=False)
        except Exception as error:  # numpy and zipfile raise many kinds
            raise DataError(f"{file}: cannot be read as .npy ({error}).") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise DataError(f"{file}: expected one array of numbers, as numpy.save writes.")
        yield file, array


def _tracks(entry: Any, path: Path) -> Tracks | None:
    if entry is None:
        return None
    where = f"{path}: tracks"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, got {type(entry).__name__}.")
    times = numbers(require(entry, "times", list, path), (None,), f"{where}.times")
    names = require(entry, "category", list, path)
    unknown = sorted({str(name) for name in names} - set(CATEGORIES))
    if unknown:
        raise DataError(f"{where}: unknown categories {unknown}; expected some of {CATEGORIES}.")
    count, samples = len(names), len(times)
    sizes = numbers(entry.get("size", []), (count, 3), f"{where}.size")
    centers = numbers(entry.get("center", []), (count, samples, 3), f"{where}.center")
    quats = numbers(entry.get("quat", []), (count, samples, 4), f"{where}.quat")
    if not np.any(quats, axis=-1).all():
        raise DataError(f"{where}.quat: holds quaternions of length 0.")
    valid = entry.get("valid", np.ones((count, samples)))
    ids = entry.get("ids", list(range(count)))
    if not isinstance(ids, list) or len(ids) != count:
        raise DataError(f"{where}.ids: expected a list of {count} names, one a category.")
    return Tracks(
        times=times,
        centers=centers,
        quats=quats,
        sizes=sizes,
        valid=numbers(valid, (count, samples), f"{where}.valid") != 0,
        category=np.array([CATEGORIES.index(name) for name in names], np.int32),
        ids=tuple(str(i) for i in ids),
    )


def _lane_map(entry: Any, path: Path) -> LaneMap | None:
    if entry is None:
        return None
    if not isinstance(entry, list):
        raise DataError(f"{path}: expected 'map' to be a list, got {type(entry).__name__}.")
    lines, kinds = [], []
    for number, line in enumerate(entry):
        kind = require(line, "kind", str, path)
        if kind not in LINE_KINDS:
            raise DataError(f"{path}: map line {number} is a {kind!r}; expected {LINE_KINDS}.")
        points = numbers(line.get("points"), (None, 3), f"{path}: map line {number}")
        lines.append(points)
        kinds.append(kind)
    return LaneMap(tuple(lines), tuple(kinds))


def _style(entry: Any, path: Path) -> dict[str, str] | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
        raise DataError(f"{path}: expected 'style' to be an object of words, got {entry!r}.")
    return entry
