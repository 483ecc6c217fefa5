"""Examples of WorldRec: windows of clips, some of whose pictures are context and some targets.

Streets come from data sets; real drives are brought to the model's rows once and kept in memory as
records of the same form, and a window as wide as the streets' is cut out of them at a random place.

An example is a window of a clip: 1 to `max_context` context pictures within `span` seconds (or of
a single instant), and `targets` pictures at other times, between the context's and up to `beyond`
seconds outside it. In a share of the examples densified lidar replaces the network's depth, so that
one set of weights serves drives with and without it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jwm_jax.data.photometric import Photometric, draw_change
from jwm_jax.data.records import decode_clip, encode_clip, read_header
from jwm_jax.data.thinning import clips_at_rate
from jwm_jax.errors import DataError
from jwm_jax.scene import Clip, Intrinsics, Tracks, crop_covering, mirrored
from jwm_jax.scene.clip import fitted_size
from jwm_jax.scene.pytree import Array, pytree_dataclass
from jwm_jax.worldrec import LidarDepth, WorldRecConfig
from jwm_jax.worldrec.depth import lidar_depth
from jwm_jax.worldrec.pictures import Pictures, make_pictures, nearest_tracks


@dataclass(frozen=True)
class Sampling:
    """How a clip becomes an example.

    Attributes:
        max_context: Most context pictures.
        targets: Target pictures.
        span: Seconds from the first to the last context instant, at most.
        beyond: Seconds by which targets may lie outside the context.
        instant: Share of examples whose context is a single instant.
        lidar: Share of examples that get densified lidar as depth.
        untracked: Share of examples whose tracks are withheld: the network has to find out by
            itself which pictures to trust about what moves.
        mirror: Share of examples that are seen in a mirror, cameras and boxes with them.
        photometric: Changes of colour and sharpness.
        track_steps: Times that tracks are padded to.
        slots: Slots of the rasterizer a Gaussian, see `jwm_kernels.rasterization`'s capacity.
    """

    max_context: int = 4
    targets: int = 2
    span: float = 1.6
    beyond: float = 2.4
    instant: float = 0.35
    lidar: float = 0.5
    untracked: float = 0.3
    mirror: float = 0.5
    photometric: Photometric = field(default_factory=Photometric)
    track_steps: int = 32
    slots: float = 4.0


@pytree_dataclass
class Batch:
    """Examples: context pictures, targets, and what is known about the context's depth.

    Attributes:
        pictures: Context.
        tracks: Boxes over time.
        images: Of the targets, RGB in [0, 1].
        K: Of the targets, pixels.
        poses: world_from_camera of the targets.
        times: Of the targets, seconds since the context's start.
        lidar: Depth of context pixels with a lidar return, 0 elsewhere.
        sky: Context pixels known to be sky.
        sky_known: Context pixels of which it is known whether they are sky.
    """

    pictures: Pictures
    tracks: Tracks
    images: Float[Array, "*b m h w 3"]
    K: Float[Array, "*b m 3 3"]
    poses: Float[Array, "*b m 4 4"]
    times: Float[Array, "*b m"]
    lidar: Float[Array, "*b p h w"]
    sky: Bool[Array, "*b p h w"]
    sky_known: Bool[Array, "*b p h w"]


def drive_records(specs: Iterable[str], rows: int, width: int) -> list[Any]:
    """Real drives as records, at about 10 Hz, at some rows and at least some width.

    Args:
        specs: As `load_clip` takes them, with `$NAME` expanded.
        rows: Rows of the pictures.
        width: Least columns.

    Raises:
        DataError: A drive is missing, broken, or without poses.
    """
    records = []
    for clip in clips_at_rate(specs):
        clip.require_poses("WorldRec's training")
        sizes = [fitted_size(c.height, c.width, rows, 16)[1] for c in clip.cameras]
        records.append(encode_clip(crop_covering(clip, rows, max(width, min(sizes)))))
    return records


def make_example(
    model: WorldRecConfig, sampling: Sampling, width: int, record: Any, rng: np.random.Generator
) -> Batch:
    """Draw one example from a stored clip.

    Args:
        model: Shape of the model.
        sampling: How to draw.
        width: Columns of the example's pictures; wider ones are cut at a random place.
        record: From `open_records` or `drive_records`.
        rng: Decides everything that is random.

    Returns:
        A batch without its leading axis.
    """
    header = read_header(record)
    context, targets, frames, views = draw_pictures(
        sampling, header["frames"], len(header["views"]), record, rng
    )
    clip = decode_clip(record, frames, views)
    clip = crop_covering(clip, model.height, width, across=float(rng.random()))
    if rng.random() < sampling.mirror:
        clip = mirrored(clip)
    return example_of(model, sampling, clip, context, targets, rng)


def draw_pictures(sampling: Sampling, num_frames: int, num_views: int, record: Any, rng):
    """Which (frame, view) pairs are context and which are targets.

    Returns:
        Context [n, 2] and targets [m, 2] as indices into the sorted lists of frames and views that
        are needed, and those lists.
    """
    times = np.asarray(record["times"]).reshape(num_frames, num_views)[:, 0]
    period = float(np.median(np.diff(times))) if num_frames > 1 else 1.0
    most_views = min(num_views, sampling.max_context)
    views = np.sort(rng.permutation(num_views)[: rng.integers(1, most_views + 1)])
    most = max(1, sampling.max_context // len(views))
    instants = 1
    if num_frames > 1 and rng.random() >= sampling.instant:
        instants = int(rng.integers(2, most + 1)) if most > 1 else 1
    longest = int(sampling.span / period)
    stride = int(rng.integers(1, max(2, min(4, longest // max(instants - 1, 1)) + 1)))
    stride = max(1, min(stride, (num_frames - 1) // max(instants - 1, 1)))
    first = int(rng.integers(0, num_frames - stride * (instants - 1)))
    chosen = first + stride * np.arange(instants)
    margin = round(sampling.beyond / period)
    low, high = max(0, chosen[0] - margin), min(num_frames - 1, chosen[-1] + margin)
    others = np.setdiff1d(np.arange(low, high + 1), chosen)
    if len(others) == 0:
        others = chosen
    target_frames = rng.choice(others, sampling.targets)
    target_views = rng.choice(views, sampling.targets)
    frames = np.union1d(chosen, target_frames)
    position = {int(f): i for i, f in enumerate(frames)}
    context = [(position[int(f)], v) for f in chosen for v in range(len(views))]
    place = {int(v): i for i, v in enumerate(views)}
    targets = [
        (position[int(f)], place[int(v)]) for f, v in zip(target_frames, target_views, strict=True)
    ]
    return np.array(context), np.array(targets), frames.tolist(), views.tolist()


def example_of(
    model: WorldRecConfig,
    sampling: Sampling,
    clip: Clip,
    context: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
) -> Batch:
    """The example of chosen pictures of a clip at the model's picture size."""
    start = float(clip.times[context[:, 0], context[:, 1]].min())
    if clip.tracks is not None:
        clip = replace(clip, tracks=clip.tracks.around(clip.times))
    tracks = None if rng.random() < sampling.untracked else nearest_tracks(model, clip)
    source = LidarDepth() if clip.lidar is not None and rng.random() < sampling.lidar else None
    pictures = make_pictures(
        model,
        clip,
        tracks,
        chosen=context,
        capacity=sampling.max_context,
        start=start,
        depth_source=source,
    )
    change = draw_change(sampling.photometric, rng)
    images = np.asarray(clip.images)[targets[:, 0], targets[:, 1]] / np.float32(255.0)
    lidar = np.zeros(pictures.depth.shape, np.float32)
    sky, known = np.zeros(lidar.shape, bool), np.zeros(lidar.shape, bool)
    for i, (t, v) in enumerate(context):
        lidar[i] = lidar_depth(clip, int(t), int(v))
        if clip.depth is not None:
            sky[i], known[i] = clip.depth[v][t] == 0, True
    return Batch(
        pictures=replace(pictures, images=change(pictures.images)),
        tracks=padded_tracks(model, tracks, start, sampling.track_steps),
        images=change(images),
        K=np.stack([clip.cameras[v].K for v in targets[:, 1]]).astype(np.float32),
        poses=clip.world_from_camera[targets[:, 0], targets[:, 1]].astype(np.float32),
        times=(clip.times[targets[:, 0], targets[:, 1]] - start).astype(np.float32),
        lidar=lidar,
        sky=sky,
        sky_known=known,
    )


def blank_example(model: WorldRecConfig, sampling: Sampling, width: int) -> Batch:
    """An example of black pictures, for its shapes and types."""
    height = model.height
    count = sampling.max_context + sampling.targets
    lens = Intrinsics(np.diag([height, height, 1.0]), width=width, height=height)
    poses = np.tile(np.eye(4), (count, 1, 1))
    clip = Clip(
        images=np.zeros((count, 1, height, width, 3), np.uint8),
        times=0.1 * np.arange(count, dtype=np.float64)[:, None],
        world_from_ego=poses,
        world_from_camera=poses[:, None],
        cameras=(lens,),
        view_names=("front",),
    )
    places = np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1)
    context, targets = np.split(places, [sampling.max_context])
    return example_of(model, sampling, clip, context, targets, np.random.default_rng(0))


def padded_tracks(model: WorldRecConfig, tracks: Tracks | None, start: float, steps: int) -> Tracks:
    """Tracks of fixed size on the scene's clock; times beyond the last one hold nothing.

    Raises:
        DataError: The tracks have more than `steps` times.
    """
    if tracks is None:
        tracks = Tracks(
            times=np.zeros(1),
            centers=np.zeros((0, 1, 3)),
            quats=np.zeros((0, 1, 4)),
            sizes=np.zeros((0, 3)),
            valid=np.zeros((0, 1), bool),
            category=np.zeros(0, np.int32),
        )
    tracks = tracks.on_device(start, model.max_tracks)
    missing = steps - tracks.times.shape[0]
    if missing < 0:
        raise DataError(
            f"a clip's tracks have {tracks.times.shape[0]} times, but sampling.track_steps is "
            f"{steps}; raise it."
        )
    later = tracks.times[-1] + 1e3 * np.arange(1, missing + 1, dtype=np.float32)

    def grow(x, **kw):
        return np.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2), **kw)

    return Tracks(
        times=np.concatenate([tracks.times, later]),
        centers=grow(tracks.centers),
        quats=grow(tracks.quats, mode="edge"),
        sizes=tracks.sizes,
        valid=grow(tracks.valid),
        category=tracks.category,
    )
