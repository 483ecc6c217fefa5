"""Batches of clip windows for training, fed by grain.

The batch of a step is a pure function of (config, step): the order of clips is a shuffle of the
seed, the window and the views come from a generator of (seed, element), and element i of the global
stream is row i mod batch_size of step i // batch_size on whichever host reads it. So a run that
stops at a step goes on from that step alone, on any number of hosts or worker processes.

A window is a clip of its own: its world is the ego frame of its first frame and its times count
from its first exposure.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from jwm_jax.data.records import decode_clip, read_header
from jwm_jax.data.tfds_clips import open_records
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene import (
    Clip,
    LaneMap,
    Tracks,
    draw_layout,
    invert_transform,
    make_transform,
    matrix_to_quat,
    quat_to_matrix,
    transform_points,
)

STYLES = {
    "time_of_day": ("noon", "morning", "evening", "night"),
    "weather": ("clear", "overcast", "fog", "rain"),
}
"""What `style` codes mean: one column a property, an index into its names, -1 for unknown."""


@dataclass(frozen=True)
class PipelineConfig:
    """What a batch holds.

    Attributes:
      folders: datasets made by `jwm data make`; several are mixed in equal shares.
      split: of each dataset.
      batch_size: clips a step over all hosts.
      frames: instants of a window.
      stride: stored instants from one to the next of a window.
      views: cameras of a window, drawn without repetition and kept in the rig's order; 0 for all.
      height: rows, 0 as stored.
      width: columns, 0 as stored.
      seed: of everything random.
      shuffle: whether clips come in random order.
      mirror: whether half of the windows are seen in a mirror (traffic then keeps left).
      max_tracks: boxes a window is padded to; of more, those nearest to the ego vehicle stay.
      depth: whether to add depth maps.
      lidar_points: points an instant is padded to or thinned to; 0 for no lidar.
      layout: whether to add drawings of boxes and lanes.
      read_threads: threads that decode ahead.
      workers: processes that decode; 0 for none. A caller with some needs a `__main__` guard.
      host: index of this host.
      hosts: number of hosts that share the batch.
    """

    folders: tuple[str, ...]
    split: str = "train"
    batch_size: int = 4
    frames: int = 9
    stride: int = 1
    views: int = 1
    height: int = 0
    width: int = 0
    seed: int = 0
    shuffle: bool = True
    mirror: bool = False
    max_tracks: int = 32
    depth: bool = False
    lidar_points: int = 0
    layout: bool = False
    read_threads: int = 1
    workers: int = 0
    host: int = 0
    hosts: int = 1

    def __post_init__(self):
        if self.batch_size % self.hosts:
            raise UsageError(
                f"batch_size {self.batch_size} does not divide over {self.hosts} hosts."
            )
        if not self.folders:
            raise UsageError("pipeline: expected one dataset folder or more, got none.")


def moved(clip: Clip, new_from_old: Float[np.ndarray, "4 4"]) -> Clip:
    """The clip with its world expressed in another frame (poses, boxes and map follow)."""
    tracks, lanes = clip.tracks, clip.map
    if tracks is not None:
        boxes = new_from_old @ make_transform(quat_to_matrix(tracks.quats), tracks.centers)
        tracks = replace(
            tracks, centers=boxes[..., :3, 3], quats=matrix_to_quat(boxes[..., :3, :3])
        )
    if lanes is not None:
        lines = tuple(transform_points(new_from_old, p) for p in lanes.polylines)
        lanes = LaneMap(lines, lanes.kinds)
    return replace(
        clip,
        world_from_ego=new_from_old @ clip.world_from_ego,
        world_from_camera=new_from_old @ clip.world_from_camera,
        tracks=tracks,
        map=lanes,
    )


def rebased(clip: Clip) -> Clip:
    """The clip with the ego frame of its first instant as its world, as a clip should have."""
    return moved(clip, invert_transform(clip.world_from_ego[0]))


def mirrored(clip: Clip) -> Clip:
    """The clip as seen in a mirror: left and right change places everywhere.

    World and ego frames are reflected in y, camera frames in x, so poses stay proper rotations.
    """
    world = np.diag([1.0, -1.0, 1.0, 1.0])
    camera = np.diag([-1.0, 1.0, 1.0, 1.0])

    def flip_lens(lens):
        K = np.array(lens.K)
        K[0, 2] = lens.width - K[0, 2]
        K[0, 1] = -K[0, 1]
        return replace(lens, K=K)

    tracks, lanes = clip.tracks, clip.map
    if tracks is not None:
        tracks = replace(
            tracks,
            centers=tracks.centers * [1.0, -1.0, 1.0],
            quats=tracks.quats * [1.0, -1.0, 1.0, -1.0],
        )
    if lanes is not None:
        lanes = LaneMap(tuple(p * [1.0, -1.0, 1.0] for p in lanes.polylines), lanes.kinds)
    lidar = clip.lidar
    if lidar is not None:
        lidar = tuple(p * np.asarray([1, -1, 1, 1], np.float32) for p in lidar)
    return replace(
        clip,
        images=tuple(clip.view(v)[:, :, ::-1] for v in range(clip.num_views)),
        world_from_ego=world @ clip.world_from_ego @ world,
        world_from_camera=world @ clip.world_from_camera @ camera,
        cameras=tuple(flip_lens(lens) for lens in clip.cameras),
        lidar=lidar,
        tracks=tracks,
        map=lanes,
        depth=None if clip.depth is None else tuple(d[:, :, ::-1] for d in clip.depth),
    )


def _track_arrays(clip: Clip, count: int) -> dict[str, np.ndarray]:
    """Boxes at the window's instants, padded to `count`."""
    times = clip.times[:, 0]
    tracks = clip.tracks
    if tracks is None:
        tracks = Tracks(
            times=times,
            centers=np.zeros((0, len(times), 3)),
            quats=np.zeros((0, len(times), 4)),
            sizes=np.zeros((0, 3)),
            valid=np.zeros((0, len(times)), bool),
            category=np.zeros(0, np.int32),
        )
    poses, valid = zip(*(tracks.at(t) for t in times), strict=True)
    poses, valid = np.stack(poses, 1), np.stack(valid, 1)
    distance = np.linalg.norm(poses[..., :3, 3] - clip.world_from_ego[None, :, :3, 3], axis=-1)
    nearest = np.where(valid, distance, np.inf).min(axis=1, initial=np.inf)
    keep = np.sort(np.argsort(nearest, kind="stable")[:count])
    sampled = Tracks(
        times=times,
        centers=poses[keep][..., :3, 3],
        quats=matrix_to_quat(poses[keep][..., :3, :3]),
        sizes=tracks.sizes[keep],
        valid=valid[keep],
        category=tracks.category[keep],
    ).on_device(clip.start, count)
    return {
        "track_times": sampled.times,
        "track_centers": sampled.centers,
        "track_quats": sampled.quats,
        "track_sizes": sampled.sizes,
        "track_valid": sampled.valid,
        "track_category": sampled.category,
        "track_overflow": np.int32(max(0, tracks.num_tracks - count)),
    }


def _lidar_arrays(clip: Clip, count: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Spins thinned or padded to `count` points."""
    points = np.zeros((clip.num_frames, count, 4), np.float32)
    mask = np.zeros((clip.num_frames, count), bool)
    for t, spin in enumerate(clip.lidar or ()):
        if len(spin) > count:
            spin = spin[np.sort(random.choice(len(spin), count, replace=False))]
        points[t, : len(spin)], mask[t, : len(spin)] = spin, True
    return {"lidar": points, "lidar_mask": mask}


def _layout(clip: Clip) -> np.ndarray:
    """Drawings of boxes and lanes, uint8 [T, V, H, W, 3]."""
    return np.stack(
        [
            np.stack(
                [
                    draw_layout(
                        clip.camera(t, v),
                        clip.tracks,
                        clip.map,
                        float(clip.times[t, v]),
                    )
                    for v in range(clip.num_views)
                ]
            )
            for t in range(clip.num_frames)
        ]
    )


def window_arrays(
    record: Mapping[str, np.ndarray], config: PipelineConfig, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """One element of a batch: a random window of a record.

    Returns:
      images uint8 [T, V, H, W, 3]; times float32 [T, V] seconds since the window's start; K
      [V, 3, 3]; world_from_camera [T, V, 4, 4]; world_from_ego [T, 4, 4]; style int32 [2]; tracks'
      arrays sampled at the T instants of view 0 and padded to N (track_centers [N, T, 3] and so on,
      as in `Tracks`; track_overflow counts boxes left out); and, where asked for, depth float32
      [T, V, H, W], lidar float32 [T, P, 4] with lidar_mask [T, P], layout uint8 [T, V, H, W, 3].

    Raises:
      DataError: the clip is shorter or has fewer views than the window.
    """
    header = read_header(record)
    total, names = header["frames"], header["views"]
    span = (config.frames - 1) * config.stride + 1
    wanted = config.views or len(names)
    if total < span or len(names) < wanted:
        raise DataError(
            f"record {header['name']}: {total} frames of {len(names)} views; the pipeline wants "
            f"windows of {span} frames and {wanted} views."
        )
    first = int(random.integers(total - span + 1))
    frames = range(first, first + span, config.stride)
    views = np.sort(random.choice(len(names), wanted, replace=False)).tolist()
    flip = bool(random.integers(2))
    clip = decode_clip(record, frames, views, depth=config.depth, lidar=config.lidar_points > 0)
    clip = rebased(clip)
    if config.mirror and flip:
        clip = mirrored(clip)
    height = config.height or clip.cameras[0].height
    width = config.width or clip.cameras[0].width
    if any((c.height, c.width) != (height, width) for c in clip.cameras):
        clip = clip.resized(height, width)
    shape = (clip.num_frames, clip.num_views, height, width)
    single = np.float32
    arrays = {
        "images": np.stack([clip.view(v) for v in range(clip.num_views)], axis=1),
        "times": clip.device_times(),
        "K": np.stack([np.asarray(c.K, single) for c in clip.cameras]),
        "world_from_camera": clip.world_from_camera.astype(single),
        "world_from_ego": clip.world_from_ego.astype(single),
        "style": np.asarray(
            [
                names.index(value) if (value := (clip.style or {}).get(key)) in names else -1
                for key, names in STYLES.items()
            ],
            np.int32,
        ),
        **_track_arrays(clip, config.max_tracks),
    }
    if config.depth:
        arrays["depth"] = (
            np.zeros(shape, single) if clip.depth is None else np.stack(clip.depth, axis=1)
        )
    if config.lidar_points:
        arrays.update(_lidar_arrays(clip, config.lidar_points, random))
    if config.layout:
        arrays["layout"] = _layout(clip)
    return arrays


def clip_dataset(config: PipelineConfig):
    """The batches of a config as an endless `grain.MapDataset`: `dataset[step]` is a step's batch.

    See `window_arrays` for the arrays; here each has a leading axis of batch_size / hosts.

    Raises:
      DataError: a folder is no dataset or lacks the split.
    """
    import grain

    class Window(grain.transforms.RandomMap):
        def random_map(self, element, rng):
            return window_arrays(element, config, rng)

    def source(folder):
        dataset = grain.MapDataset.source(open_records(folder, config.split)).seed(config.seed)
        return (dataset.shuffle() if config.shuffle else dataset).repeat(None)

    sources = [source(folder) for folder in config.folders]
    dataset = sources[0] if len(sources) == 1 else grain.MapDataset.mix(sources)
    dataset = dataset.seed(config.seed).random_map(Window())
    if config.hosts > 1:
        dataset = dataset[config.host :: config.hosts]
    return dataset.batch(config.batch_size // config.hosts, drop_remainder=True)


def clip_batches(config: PipelineConfig, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Batches of steps start, start + 1, ... without end.

    Args:
      config: what a batch holds.
      start: first step; a run resumes by giving the step at which it stopped.

    Raises:
      DataError: a folder is no dataset or lacks the split, or a clip is too short.
    """
    import absl.flags
    import grain

    dataset = clip_dataset(config)
    if config.workers == 0 and config.read_threads == 0:
        yield from (dataset[step] for step in itertools.count(start))
        return
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()  # grain's worker processes ask for parsed flags
    threads = grain.ReadOptions(num_threads=max(config.read_threads, 1), prefetch_buffer_size=4)
    stream = dataset[start:].to_iter_dataset(threads)
    if config.workers:
        processes = grain.MultiprocessingOptions(num_workers=config.workers)
        stream = stream.mp_prefetch(processes)
    yield from stream
