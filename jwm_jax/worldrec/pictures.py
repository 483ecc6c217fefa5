"""What WorldRec looks at: pictures with their calibration, poses, times and boxes, padded.

A clip's T x V pictures become one flat axis, so that any number of views and instants, one
included, is the same thing to the network. Padding pictures have mask False and identity poses.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from jwm_jax.scene.clip import Clip
from jwm_jax.scene.pytree import Array, pytree_dataclass
from jwm_jax.scene.tracks import Tracks
from jwm_jax.scene.transforms import invert_transform
from jwm_jax.worldrec.config import WorldRecConfig
from jwm_jax.worldrec.depth import DepthSource


@pytree_dataclass
class Pictures:
    """P pictures and O boxes; leading axes batch scenes. Metres, seconds since the clip's start.

    Attributes:
        images: RGB in [0, 1].
        K: Camera matrices in pixels.
        world_from_camera: Poses.
        ego_from_camera: Where each camera sits on the vehicle.
        times: Exposure times.
        mask: False for padding.
        world_from_box: Pose of each box at each picture's time.
        box_there: Whether it is there then.
        box_sizes: Length, width, height.
        depth: Measured or given depth along z; 0 where there is none and the depth head decides.
    """

    images: Float[Array, "*b p h w 3"]
    K: Float[Array, "*b p 3 3"]
    world_from_camera: Float[Array, "*b p 4 4"]
    ego_from_camera: Float[Array, "*b p 4 4"]
    times: Float[Array, "*b p"]
    mask: Bool[Array, "*b p"]
    world_from_box: Float[Array, "*b p o 4 4"]
    box_there: Bool[Array, "*b p o"]
    box_sizes: Float[Array, "*b o 3"]
    depth: Float[Array, "*b p h w"]


def resized_for(config: WorldRecConfig, clip: Clip) -> Clip:
    """The clip at the model's picture size (aspect of its first view)."""
    first = clip.cameras[0]
    return clip.resized(*config.picture_size(first.height, first.width))


def make_pictures(
    config: WorldRecConfig,
    clip: Clip,
    tracks: Tracks | None,
    *,
    chosen: Int[np.ndarray, "n 2"] | None = None,
    capacity: int | None = None,
    start: float | None = None,
    depth_source: DepthSource | None = None,
) -> Pictures:
    """Flatten and pad a clip that already has the model's picture size.

    Args:
        config: Shape of the model.
        clip: From `resized_for`.
        tracks: Tracks on the absolute clock, at most `config.max_tracks`; from `nearest_tracks`.
        chosen: Pairs [n, 2] of frame and view, or None for every picture, frame by frame.
        capacity: Number of pictures to pad to; None for the config's bucket.
        start: Absolute time of the scene's zero; None for the clip's start.
        depth_source: Where measured depth comes from; None leaves depth to the network.

    Returns:
        Host arrays, float32.
    """
    if chosen is None:
        grid = np.meshgrid(np.arange(clip.num_frames), np.arange(clip.num_views), indexing="ij")
        chosen = np.stack(grid, -1).reshape(-1, 2)
    frames, views = np.asarray(chosen, int).T
    count = len(frames)
    capacity = config.bucket(count) if capacity is None else capacity
    start = clip.start if start is None else start
    times = clip.times[frames, views]
    pose = clip.world_from_camera[frames, views]
    K = np.stack([np.asarray(clip.cameras[v].K) for v in views])
    images = np.stack([clip.view(int(v))[t] for t, v in zip(frames, views, strict=True)])
    depth = np.zeros(images.shape[:3], np.float32)
    if depth_source is not None:
        for i, (t, v) in enumerate(zip(frames, views, strict=True)):
            depth[i] = depth_source(clip, int(t), int(v))
    boxes, there, sizes = _boxes_at(config, tracks, times)

    def padded(array, identity=False):
        array = np.asarray(array, bool if array.dtype == bool else np.float32)
        out = np.zeros((capacity, *array.shape[1:]), array.dtype)
        if identity:
            out[:] = np.eye(array.shape[-1], dtype=np.float32)
        out[:count] = array
        return out

    return Pictures(
        images=padded(images) / np.float32(255.0),
        K=padded(K, identity=True),
        world_from_camera=padded(pose, identity=True),
        ego_from_camera=padded(invert_transform(clip.world_from_ego[frames]) @ pose, identity=True),
        times=padded(times - start),
        mask=padded(np.ones(count, bool)),
        world_from_box=padded(boxes, identity=True),
        box_there=padded(there),
        box_sizes=sizes,
        depth=padded(depth),
    )


def nearest_tracks(config: WorldRecConfig, clip: Clip) -> Tracks | None:
    """The clip's tracks, at most `config.max_tracks`: those that come nearest to the vehicle."""
    tracks = clip.tracks
    if tracks is None or tracks.num_tracks == 0:
        return None
    if tracks.num_tracks <= config.max_tracks:
        return tracks
    ego = clip.world_from_ego[:, :3, 3]
    gap = np.linalg.norm(np.asarray(tracks.centers)[:, :, None] - ego, axis=-1).min(-1)
    gap = np.where(np.asarray(tracks.valid), gap, np.inf).min(-1)
    return tracks.select(np.sort(np.argsort(gap)[: config.max_tracks]))


def _boxes_at(config: WorldRecConfig, tracks: Tracks | None, times: np.ndarray):
    """world_from_box [P, O, 4, 4], there [P, O] and sizes [O, 3], padded to `max_tracks`."""
    count = config.max_tracks
    boxes = np.tile(np.eye(4, dtype=np.float32), (len(times), count, 1, 1))
    there = np.zeros((len(times), count), bool)
    sizes = np.ones((count, 3), np.float32)
    if tracks is not None:
        n = tracks.num_tracks
        sizes[:n] = tracks.sizes
        for i, time in enumerate(times):
            boxes[i, :n], there[i, :n] = tracks.at(float(time))
    return boxes, there, sizes
