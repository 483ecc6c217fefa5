"""Training WorldRec: reconstruct from a few pictures, render where and when others were taken.

An example is a window of a clip: 1 to `max_context` context pictures within `span` seconds (or of
a single instant), and `targets` pictures at other times, between the context's and up to `beyond`
seconds outside it. The network reconstructs from the context, the scene is rendered at the targets'
poses and times, and `jwm_jax.worldrec.losses` compares. In a share of the examples densified lidar
replaces the network's depth, so that one set of weights serves drives with and without it.

Each device reconstructs and renders the scenes of its own rows (`jax.shard_map`); a scene's loss
never looks at another scene.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from jwm_jax.data.pipeline import batches_of
from jwm_jax.data.records import decode_clip, read_header
from jwm_jax.data.tfds_clips import open_records
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene import Camera, Clip, Intrinsics, Scene, Tracks
from jwm_jax.scene.pytree import Array, pytree_dataclass
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.nets import Net
from jwm_jax.training.sampling import example_indices, step_rng
from jwm_jax.training.task import Task
from jwm_jax.worldrec import LidarDepth, WorldRec, WorldRecConfig, WorldRecNetwork
from jwm_jax.worldrec.depth import lidar_depth
from jwm_jax.worldrec.losses import LossWeights, depth_loss, picture_loss, sky_loss
from jwm_jax.worldrec.model import boxed_params
from jwm_jax.worldrec.pictures import Pictures, make_pictures, nearest_tracks

BATCH_AXES = ("data", "fsdp")


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
        brighten: Largest change of brightness of an example, as a factor's logarithm.
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
    brighten: float = 0.25
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


@dataclass(frozen=True, kw_only=True)
class WorldRecExperiment(ExperimentConfig):
    """Settings of a WorldRec training.

    Attributes:
        model: Shape of the model.
        size: Name of the size, stored with the weights.
        datasets: Folders made by `jwm data make`, mixed clip by clip.
        split: Of the datasets.
        sampling: How a clip becomes an example.
        loss: Weights of the loss.
        held_out: Clips of each dataset that are kept for evaluation.
        init_from: Model directory or shipped size to start from; None starts from scratch.
    """

    model: WorldRecConfig = field(default_factory=WorldRecConfig)
    size: str = "tiny"
    datasets: tuple[str, ...] = ()
    split: str = "train"
    sampling: Sampling = field(default_factory=Sampling)
    loss: LossWeights = field(default_factory=LossWeights)
    held_out: int = 4
    init_from: str | None = None

    def task(self) -> "WorldRecTask":
        """Build the task."""
        return WorldRecTask(self)


class WorldRecTask(Task):
    """The WorldRec paradigm.

    Attributes:
        config: The experiment.
    """

    def __init__(self, config: WorldRecExperiment) -> None:
        """Open the datasets when they are first needed."""
        self.config = config
        self._records: list[tuple[Any, int]] | None = None

    def nets(self, config: WorldRecExperiment) -> dict[str, Net]:
        """WorldRec, from `config.init_from` if it names any."""
        source = {"source": config.init_from, "kind": "worldrec"}
        return {"model": Net(self.init, config.optimizer, **source)}

    def init(self, key: jax.Array) -> Any:
        """Boxed parameters."""
        return boxed_params(self.config.model, key)

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Mean loss over the batch's scenes, on each device over its own rows."""
        local = partial(batch_loss, self.config.model, self.config.loss, self.config.sampling.slots)
        mesh = jax.sharding.get_abstract_mesh()
        axes = tuple(a for a in BATCH_AXES if not mesh.empty and mesh.shape.get(a, 1) > 1)
        if not axes:
            return local(params, batch)

        def on_device(params, batch):
            return jax.tree.map(lambda x: x[None], local(params, batch))

        # One loss a device, averaged outside: no collective has to be differentiated inside, so
        # the check of replication (which `searchsorted` does not pass) is not needed.
        losses = jax.shard_map(
            on_device,
            in_specs=(PartitionSpec(), PartitionSpec(axes)),
            out_specs=PartitionSpec(axes),
            axis_names=set(axes),
            check_vma=False,
        )(params, batch)
        return jax.tree.map(lambda x: x.mean(0), losses)

    def batches(self, start: int, rows: slice) -> Iterator[Batch]:
        """Examples drawn from (seed, step, row) alone."""
        config, records = self.config, self._open()

        def example(step: int, row: int) -> Batch:
            index = example_indices(config.seed, step, len(records), config.batch_size)
            source, place = records[index[row]]
            rng = step_rng(config.seed, step, row)
            return make_example(config.model, config.sampling, source[place], rng)

        return batches_of(example, start, range(config.batch_size)[rows])

    def evaluate(self, params: Any) -> dict[str, float]:
        """Loss, PSNR and SSIM on held-out clips, context and targets drawn as in training."""
        held_out = self._open(held_out=True)
        examples = []
        for source, place in held_out:
            rng = np.random.default_rng(place)
            sampling = replace(
                self.config.sampling, brighten=0.0, lidar=0.0, instant=0.0, untracked=0.0
            )
            examples.append(make_example(self.config.model, sampling, source[place], rng))
        totals: dict[str, float] = {}
        for example in examples:
            batch = jax.tree.map(lambda x: jnp.asarray(x)[None], example)
            for name, value in self._scores(params, batch).items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(examples)
        return totals

    def save(self, params: Any, directory: Any) -> None:
        """Export the averaged weights."""
        WorldRec(self.config.model, params, self.config.size).save_pretrained(
            directory, card_text(self.config)
        )

    @property
    def _scores(self):
        if not hasattr(self, "_jitted_scores"):
            weights, slots = self.config.loss, self.config.sampling.slots
            self._jitted_scores = jax.jit(
                lambda params, batch: batch_loss(self.config.model, weights, slots, params, batch)[
                    1
                ]
            )
        return self._jitted_scores

    def _open(self, held_out: bool = False) -> list[tuple[Any, int]]:
        if self._records is None:
            if not self.config.datasets:
                raise UsageError(
                    "datasets is empty: name folders made by `jwm data make`, for example "
                    "--set 'datasets=[\"data/streets_easy\"]'."
                )
            self._records = []
            for folder in self.config.datasets:
                path = Path(folder).expanduser()
                if not path.is_dir():
                    raise DataError(
                        f"dataset {path} does not exist; configs/README.md has the `jwm data make` "
                        "commands, and --set datasets=... names other folders."
                    )
                source = open_records(path, self.config.split)
                keep = min(self.config.held_out, len(source) - 1)
                self._records += [(source, i) for i in range(len(source))]
                self._kept = getattr(self, "_kept", set()) | {
                    (id(source), i) for i in range(len(source) - keep, len(source))
                }
        return [r for r in self._records if ((id(r[0]), r[1]) in self._kept) == held_out]


def make_example(
    model: WorldRecConfig, sampling: Sampling, record: Any, rng: np.random.Generator
) -> Batch:
    """Draw one example from a stored clip.

    Args:
        model: Shape of the model.
        sampling: How to draw.
        record: From `open_records`.
        rng: Decides everything that is random.

    Returns:
        A batch without its leading axis.
    """
    header = read_header(record)
    context, targets, frames, views = draw_pictures(
        sampling, header["frames"], len(header["views"]), record, rng
    )
    clip = decode_clip(record, frames, views)
    clip = clip.resized(model.height, int(np.asarray(clip.images[0]).shape[2]))
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
    gain = np.float32(np.exp(rng.uniform(-1, 1) * sampling.brighten))
    images = np.asarray(clip.images)[targets[:, 0], targets[:, 1]] / np.float32(255.0)
    lidar = np.zeros(pictures.depth.shape, np.float32)
    sky, known = np.zeros(lidar.shape, bool), np.zeros(lidar.shape, bool)
    for i, (t, v) in enumerate(context):
        lidar[i] = lidar_depth(clip, int(t), int(v))
        if clip.depth is not None:
            sky[i], known[i] = clip.depth[v][t] == 0, True
    return Batch(
        pictures=replace(pictures, images=np.clip(pictures.images * gain, 0.0, 1.0)),
        tracks=padded_tracks(model, tracks, start, sampling.track_steps),
        images=np.clip(images * gain, 0.0, 1.0),
        K=np.stack([clip.cameras[v].K for v in targets[:, 1]]).astype(np.float32),
        poses=clip.world_from_camera[targets[:, 0], targets[:, 1]].astype(np.float32),
        times=(clip.times[targets[:, 0], targets[:, 1]] - start).astype(np.float32),
        lidar=lidar,
        sky=sky,
        sky_known=known,
    )


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


def batch_loss(
    model: WorldRecConfig, weights: LossWeights, slots: float, params: Any, batch: Batch
) -> tuple[Float[jax.Array, ""], dict[str, jax.Array]]:
    """Mean loss of a batch's scenes and its parts."""
    network = WorldRecNetwork(model)
    results = jax.vmap(lambda p: network.apply({"params": params}, p))(batch.pictures)
    height, width = batch.images.shape[2:4]

    def draw(scene_index, target):
        def pick(x):
            return x[scene_index]

        scene = Scene(
            gaussians=jax.tree.map(pick, results.gaussians),
            tracks=jax.tree.map(pick, batch.tracks),
            sky=jax.tree.map(pick, results.sky),
            tau=model.tau,
        )
        K, pose, time = jax.tree.map(pick, target)
        camera = Camera(Intrinsics(K=K, width=width, height=height), pose)
        room = -(-int(slots * scene.gaussians.capacity) // 1024) * 1024
        picture = scene.render(camera, time, capacity=room)
        return picture.rgb, picture.overflow.astype(jnp.float32)

    scenes, targets = batch.images.shape[:2]
    pairs = jnp.arange(scenes * targets)
    pictures, overflow = jax.lax.map(
        lambda i: draw(i // targets, jax.tree.map(
            lambda x: x[:, i % targets], (batch.K, batch.poses, batch.times)
        )),
        pairs,
    )  # fmt: skip
    truth = batch.images.reshape(-1, *batch.images.shape[2:])
    loss, parts = picture_loss(weights, pictures, truth)

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    depth = depth_loss(flat(results.log_depth), flat(batch.lidar))
    sky = sky_loss(flat(results.sky_logit), flat(batch.sky), flat(batch.sky_known))
    loss = loss + weights.depth * depth + weights.sky * sky
    return loss, {**parts, "depth": depth, "sky": sky, "overflow": overflow.mean()}


def card_text(config: WorldRecExperiment) -> str:
    """The model card of a run."""
    data = ", ".join(Path(d).name for d in config.datasets)
    return (
        f"# WorldRec {config.size}\n\n"
        f"Feed-forward Gaussian reconstruction of driving clips, {config.model.height} rows.\n\n"
        f"- Experiment: `{config.name}`, {config.steps} steps of {config.batch_size} scenes, seed "
        f"{config.seed}.\n"
        f"- Data: {data} (procedural streets made by `jwm data make`; no real drive).\n"
        f"- Command: `jwm train {config.name}`.\n"
    )
