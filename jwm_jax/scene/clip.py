"""A clip: what the sensors saw on one drive. Host data in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from jwm_jax.errors import DataError
from jwm_jax.scene.cameras import Camera, Intrinsics, Rig
from jwm_jax.scene.lane_map import LaneMap
from jwm_jax.scene.tracks import Tracks
from jwm_jax.scene.transforms import invert_transform


@dataclass(frozen=True)
class Clip:
    """T instants of V views, with calibration and poses. Metres, seconds; see the README's table.

    Attributes:
        images: One uint8 [T, h, w, 3] array a view; after `resized`, one [T, V, H, W, 3] array.
        times: [T, V] float64 seconds, absolute.
        world_from_ego: [T, 4, 4] float64; world is the ego frame of the clip's first frame.
        world_from_camera: [T, V, 4, 4] float64, authoritative for where a picture was taken.
        cameras: The lens of each view.
        view_names: One name a view.
        lidar: One float32 [P, 4] array an instant (x, y, z in the ego frame of that instant,
            intensity), or None.
        tracks: Boxes of things on the absolute clock, or None.
        map: Lane map, or None.
        style: Named properties such as time of day and weather, or None.
        depth: One float32 [T, h, w] array a view, metres along z, 0 where there is none; or None.
            Ground truth, where it exists.
        name: For reports.
        notes: Sentences of the reader about what it took for granted; checks warn of them.
        posed: Whether the poses are known. Those of a plain video are not: its poses are those of
            a vehicle that stands still, and what needs motion refuses it (`require_poses`).
    """

    images: Sequence[np.ndarray] | np.ndarray
    times: np.ndarray
    world_from_ego: np.ndarray
    world_from_camera: np.ndarray
    cameras: tuple[Intrinsics, ...]
    view_names: tuple[str, ...]
    lidar: tuple[np.ndarray, ...] | None = None
    tracks: Tracks | None = None
    map: LaneMap | None = None
    style: dict[str, str] | None = None
    depth: tuple[np.ndarray, ...] | None = None
    name: str = "clip"
    notes: tuple[str, ...] = ()
    posed: bool = True

    @property
    def num_frames(self) -> int:
        """T."""
        return self.times.shape[0]

    @property
    def num_views(self) -> int:
        """V."""
        return self.times.shape[1]

    @property
    def start(self) -> float:
        """Absolute time of the first exposure, seconds; the zero of device times."""
        return float(self.times.min())

    @property
    def rate(self) -> float:
        """Frames a second (median); 0 for a single instant."""
        if self.num_frames < 2:
            return 0.0
        return float(1.0 / np.median(np.diff(self.times[:, 0])))

    def require_poses(self, purpose: str) -> None:
        """Refuse a clip whose poses are unknown.

        Args:
            purpose: What needs them, the beginning of a sentence.

        Raises:
            DataError: The clip is not `posed`.
        """
        if not self.posed:
            raise DataError(
                f"{self.name}: {purpose} needs to know where the vehicle went, and this clip has "
                "no poses; give it some as folder: (jwm_jax/data/README.md says how), or use one "
                "instant (video:PATH?frames=1)."
            )

    def view(self, v: int) -> np.ndarray:
        """Images of one view, uint8 [T, h, w, 3]."""
        return self.images[:, v] if isinstance(self.images, np.ndarray) else self.images[v]

    def camera(self, t: int, v: int) -> Camera:
        """The camera of one picture (host arrays)."""
        return Camera(self.cameras[v], self.world_from_camera[t, v])

    def camera_path(self, v: int) -> Camera:
        """The camera of one view at every instant, with leading axis T (host arrays)."""
        return self.cameras[v].at_poses(self.world_from_camera[:, v])

    def rig(self, t: int = 0) -> Rig:
        """The cameras as fixed to the vehicle at instant t."""
        ego_from_world = invert_transform(self.world_from_ego[t])
        return Rig(self.view_names, self.cameras, ego_from_world @ self.world_from_camera[t])

    def select(
        self,
        frames: Sequence[int] | slice | None = None,
        views: Sequence[int] | slice | None = None,
    ) -> "Clip":
        """Some instants and views of the clip; world frame and tracks stay as they are."""
        f = np.arange(self.num_frames)[slice(None) if frames is None else frames]
        v = np.arange(self.num_views)[slice(None) if views is None else views]
        if isinstance(self.images, np.ndarray):
            images = self.images[np.ix_(f, v)]
        else:
            images = tuple(self.images[i][f] for i in v)
        return replace(
            self,
            images=images,
            times=self.times[np.ix_(f, v)],
            world_from_ego=self.world_from_ego[f],
            world_from_camera=self.world_from_camera[np.ix_(f, v)],
            cameras=tuple(self.cameras[i] for i in v),
            view_names=tuple(self.view_names[i] for i in v),
            lidar=None if self.lidar is None else tuple(self.lidar[i] for i in f),
            depth=None if self.depth is None else tuple(self.depth[i][f] for i in v),
        )

    def rebased(self) -> "Clip":
        """The clip with the ego frame of its first instant as its world."""
        new_from_old = invert_transform(self.world_from_ego[0])
        return replace(
            self,
            world_from_ego=new_from_old @ self.world_from_ego,
            world_from_camera=new_from_old @ self.world_from_camera,
            tracks=None if self.tracks is None else self.tracks.moved(new_from_old),
            map=None if self.map is None else self.map.moved(new_from_old),
        )

    def resized(self, height: int, width: int) -> "Clip":
        """Every picture stretched to one size and stacked to [T, V, height, width, 3].

        Colours are area-averaged, depth is sampled at the nearest pixel; camera matrices follow.
        """
        views = [_resize_all(self.view(v), height, width) for v in range(self.num_views)]
        depth = self.depth
        if depth is not None:
            depth = tuple(_nearest(d, height, width) for d in depth)
        return replace(
            self,
            images=np.stack(views, axis=1),
            cameras=tuple(c.resized(height, width) for c in self.cameras),
            depth=depth,
        )


_MIRROR = np.diag([1.0, -1.0, 1.0, 1.0])
"""Left and right exchanged in a frame with x forward and y left; its own inverse."""

_MIRROR_CAMERA = np.diag([-1.0, 1.0, 1.0, 1.0])
"""Left and right exchanged in a camera's frame."""


def mirrored(clip: Clip) -> Clip:
    """The drive in a mirror: pictures, cameras, poses, lidar, boxes, map and depth left to right.

    Raises:
        ValueError: A camera with distortion.
    """
    if any(camera.distortion is not None for camera in clip.cameras):
        raise ValueError(f"clip {clip.name}: mirrored() takes rectified pinhole cameras only.")

    def turned(camera: Intrinsics) -> Intrinsics:
        K = np.array(camera.K, np.float64)
        K[..., 0, 2] = camera.width - K[..., 0, 2]
        K[..., 0, 1] *= -1.0
        return replace(camera, K=K)

    def other_side(name: str) -> str:
        words = {"left": "right", "right": "left"}
        return "_".join(words.get(word, word) for word in name.split("_"))

    def flipped(points: np.ndarray) -> np.ndarray:
        return points * np.asarray([1.0, -1.0, *[1.0] * (points.shape[-1] - 2)], points.dtype)

    images, tracks, lanes = clip.images, clip.tracks, clip.map
    if lanes is not None:
        lanes = replace(lanes, polylines=tuple(flipped(line) for line in lanes.polylines))
    if isinstance(images, np.ndarray):
        images = images[..., ::-1, :]
    else:
        images = tuple(view[..., ::-1, :] for view in images)
    if tracks is not None:
        spin = np.asarray([1.0, -1.0, 1.0, -1.0])  # a mirror turns rotations about x and z over
        tracks = replace(tracks, centers=flipped(tracks.centers), quats=tracks.quats * spin)
    return replace(
        clip,
        images=images,
        world_from_ego=_MIRROR @ clip.world_from_ego @ _MIRROR,
        world_from_camera=_MIRROR @ clip.world_from_camera @ _MIRROR_CAMERA,
        cameras=tuple(turned(camera) for camera in clip.cameras),
        view_names=tuple(other_side(name) for name in clip.view_names),
        lidar=None if clip.lidar is None else tuple(flipped(spin) for spin in clip.lidar),
        tracks=tracks,
        map=lanes,
        depth=None if clip.depth is None else tuple(d[..., ::-1] for d in clip.depth),
    )


def crop_covering(clip: Clip, height: int, width: int, across: float = 0.5) -> Clip:
    """Every picture at one scale, as small as covers a size, and that size cut out of it.

    Nothing is stretched by more than the rounding to whole pixels. Rows are cut out of the middle;
    camera matrices and depth follow.

    Args:
        clip: Pictures of any sizes.
        height: Rows.
        width: Columns.
        across: Where the columns lie: 0 at the left edge, 1 at the right.
    """
    images, cameras, depths = [], [], []
    for v in range(clip.num_views):
        _, h, w, _ = clip.view(v).shape
        scale = max(height / h, width / w)
        rows, columns = max(height, round(h * scale)), max(width, round(w * scale))
        top, left = (rows - height) // 2, round(across * (columns - width))
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        images.append(_resize_all(clip.view(v), rows, columns)[window])
        cameras.append(clip.cameras[v].resized(rows, columns).cropped(top, left, height, width))
        if clip.depth is not None:
            depths.append(_nearest(clip.depth[v], rows, columns)[window])
    return replace(
        clip,
        images=np.stack(images, axis=1),
        cameras=tuple(cameras),
        depth=None if clip.depth is None else tuple(depths),
    )


def fitted_size(height: int, width: int, rows: int, multiple: int) -> tuple[int, int]:
    """Rows and columns of a picture brought to ``rows`` rows at about its own aspect.

    Args:
        height: Rows of the picture.
        width: Columns of the picture.
        rows: Rows it shall have.
        multiple: The columns are a multiple of this many, and at least as many.
    """
    return rows, max(multiple, multiple * round(rows * width / height / multiple))


def _resize_all(images: np.ndarray, height: int, width: int) -> np.ndarray:
    if images.shape[1:3] == (height, width):
        return images
    size = (width, height)
    return np.stack(
        [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BOX)) for i in images]
    )


def _nearest(depth: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = np.floor((np.arange(height) + 0.5) * depth.shape[1] / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * depth.shape[2] / width).astype(int)
    return depth[:, rows][:, :, columns]
