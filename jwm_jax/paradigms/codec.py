"""Training the video codec: a frozen linear base, then convolutions around it.

The base is the whitened Karhunen-Loeve transform of 4 x 8 x 8 x 3 patches: with patch mean m and
the leading eigenpairs (v_i, s_i^2) of the patch covariance,

    z_i = v_i . (patch - m) / s_i,        patch ~ m + sum_i s_i v_i z_i,

the best linear codec with c numbers a patch, in coordinates of unit variance. The convolutions
start near zero, so training starts from the linear codec's quality, and minimise

    w_mse |x - y|^2 + w_l1 |x - y| + w_gradient |grad x - grad y| + w_lpips LPIPS(x, y)
    + w_latent |z|^2,        y = decode(z + noise),

where the noise makes the decoder bear the errors of a generator.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from jwm_jax.data.records import decode_clip
from jwm_jax.data.tfds_clips import open_records
from jwm_jax.data.thinning import clips_at_rate
from jwm_jax.distributed.rules import RULES
from jwm_jax.distributed.sharding import automatic_axes, constrain
from jwm_jax.errors import DataError, UsageError
from jwm_jax.nn.lpips import WEIGHTS, lpips
from jwm_jax.paradigms.codec_data import (
    VideoPool,
    make_pool,
    sample_crops,
    sample_patches,
    standing_videos,
)
from jwm_jax.paradigms.judge import JUDGE, judge_net
from jwm_jax.scene.clip import Clip, fitted_size
from jwm_jax.scene.drawing import clip_layout
from jwm_jax.training.config import ExperimentConfig
from jwm_jax.training.nets import Net, Phase
from jwm_jax.training.sampling import Rows
from jwm_jax.training.task import Task
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.codec_network import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    CodecConfig,
    CodecNetwork,
    decode_groups,
    encode_groups,
    initial_state,
    repeat_first_frame,
)

HELD_OUT_FRAMES = 17
"""Frames of the pieces on which held-out drives are evaluated."""


@dataclass(frozen=True)
class CodecLoss:
    """Weights of the codec's loss.

    Attributes:
        mse: weight of the squared error.
        l1: weight of the absolute error.
        gradient: weight of the absolute error of differences between neighbouring pixels.
        lpips: weight of LPIPS, taken on every other frame; 0 does without its weights.
        latent: weight of the squared latent.
        noise: standard deviation of the noise on the latents (which have about unit variance).
    """

    mse: float = 8.0
    l1: float = 0.1
    gradient: float = 0.02
    lpips: float = 0.0
    latent: float = 1e-4
    noise: float = 0.05


def fit_linear_base(
    patches: Float32[np.ndarray, "n patch"], channels: int
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Principal components of patches as the codec's base parameters.

    Args:
        patches: values in [0, 1], from `sample_patches`.
        channels: number of latent channels.

    Returns:
        ``base_mean`` [768], ``base_encode`` [768, channels] and ``base_decode`` [channels, 768].
    """
    mean = patches.mean(axis=0, dtype=np.float64)
    centred = patches - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(patches))
    values, vectors = values[::-1][:channels], vectors[:, ::-1][:, :channels]
    deviation = np.sqrt(np.maximum(values, 1e-8))
    return {
        "base_mean": mean.astype(np.float32),
        "base_encode": (vectors / deviation).astype(np.float32),
        "base_decode": (vectors * deviation).T.astype(np.float32),
    }


def codec_loss(
    config: CodecConfig,
    weights: CodecLoss,
    params: Any,
    video: Float[jax.Array, "batch frames height width 3"],
    key: jax.Array,
    judge: Any = None,
) -> tuple[Float[jax.Array, ""], dict[str, jax.Array]]:
    """The codec's loss on clips of 1 + 4k frames.

    Args:
        config: the codec's widths.
        weights: weights of the terms.
        params: parameters of `CodecNetwork`.
        video: RGB in [0, 1].
        key: key of the latents' noise.
        judge: parameters of `lpips`; needed where its weight is not 0.

    Returns:
        The loss and its parts: ``mse``, ``psnr`` (dB, of the batch), ``latent_std``, and ``lpips``
        where it counts.
    """
    batch, _, height, width, _ = video.shape
    video = _over_all_devices(video)
    zeros = initial_state(config, batch, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    latents, _ = encode_groups(config, params, repeat_first_frame(video), zeros)
    noisy = latents + weights.noise * jax.random.normal(key, latents.shape)
    decoded, _ = decode_groups(config, params, noisy, zeros)
    decoded = decoded[:, FRAMES_PER_LATENT - 1 :]
    error = decoded - video
    mse = jnp.mean(error**2)
    gradient = jnp.mean(jnp.abs(jnp.diff(error, axis=2))) + jnp.mean(
        jnp.abs(jnp.diff(error, axis=3))
    )
    loss = (
        weights.mse * mse
        + weights.l1 * jnp.mean(jnp.abs(error))
        + weights.gradient * gradient
        + weights.latent * jnp.mean(latents**2)
    )
    metrics = {"mse": mse, "psnr": -10.0 * jnp.log10(mse + 1e-12), "latent_std": jnp.std(latents)}
    if weights.lpips:
        distance = jnp.mean(lpips(judge, decoded[:, ::2], video[:, ::2]))
        loss, metrics["lpips"] = loss + weights.lpips * distance, distance
    return loss, metrics


@dataclass(frozen=True, kw_only=True)
class CodecExperiment(ExperimentConfig):
    """Settings of a codec training.

    Attributes:
        codec: The codec's widths.
        loss: Weights of the loss.
        datasets: Folders of clips made by `jwm data make`.
        dataset_shares: Share of the crops that come from each dataset's pictures.
        layout_share: Share of the crops that come from layout frames of the datasets' clips.
        clips: Real drives to take crops from as well, as `load_clip` takes them, at the rows of the
            first dataset's pictures and 10 Hz; "$NAME" is replaced by the environment variable.
        clips_share: Share of the crops that come from the real drives.
        stills: Folder of real pictures, each a video that stands still; empty for none.
        stills_share: Share of the crops that come from the stills.
        held_out_clips: Real drives that are evaluated on and never trained on.
        max_clips: Most clips to read of a dataset (they are kept in memory).
        held_out: Clips at the end of each dataset that are kept for evaluation.
        lpips: File with the weights of LPIPS, read where the loss has it.
        crop_frames: Frames of a crop, 1 + 4k.
        crop_height: Rows of a crop, a multiple of 8.
        crop_width: Columns of a crop, a multiple of 8.
        base_groups: Groups of 4 x 48 x 96 pixels from which the linear base is fitted.
    """

    codec: CodecConfig = field(default_factory=CodecConfig)
    loss: CodecLoss = field(default_factory=CodecLoss)
    datasets: tuple[str, ...] = ()
    dataset_shares: tuple[float, ...] = ()
    layout_share: float = 0.15
    clips: tuple[str, ...] = ()
    clips_share: float = 0.3
    stills: str = ""
    stills_share: float = 0.15
    held_out_clips: tuple[str, ...] = ()
    max_clips: int = 400
    held_out: int = 8
    lpips: str = WEIGHTS
    crop_frames: int = 9
    crop_height: int = 48
    crop_width: int = 96
    base_groups: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.datasets or len(self.datasets) != len(self.dataset_shares):
            raise UsageError(
                "datasets and dataset_shares must name the same number of folders, at least one, "
                f"but there are {len(self.datasets)} and {len(self.dataset_shares)}."
            )
        if self.crop_frames % FRAMES_PER_LATENT != 1:
            raise UsageError(f"crop_frames must be 1 + 4k, got {self.crop_frames}.")
        if self.crop_height % PIXELS_PER_LATENT or self.crop_width % PIXELS_PER_LATENT:
            raise UsageError(
                f"crop_height and crop_width must be multiples of {PIXELS_PER_LATENT}, got "
                f"{self.crop_height} and {self.crop_width}."
            )

    def task(self) -> "CodecTask":
        """Builds the task."""
        return CodecTask(self)


def read_pools(config: CodecExperiment) -> tuple[VideoPool, dict[str, list[np.ndarray]]]:
    """Reads a training's videos.

    Args:
        config: The experiment.

    Returns:
        The pool to train on, and held-out videos by group: one group a dataset, named after its
        folder, "layout", and one a held-out drive, named after it.

    Raises:
        DataError: A dataset is missing or has too few clips, or a real drive cannot be read.
    """
    videos: dict[str, list[np.ndarray]] = {"layout": []}
    held_out: dict[str, list[np.ndarray]] = {"layout": []}
    shares = {
        "layout": config.layout_share,
        "clips": config.clips_share,
        "stills": config.stills_share,
    }
    for folder, share in zip(config.datasets, config.dataset_shares, strict=True):
        group = Path(folder).expanduser().name
        shares[group] = share
        records = _open(folder)
        count = min(len(records), config.max_clips + config.held_out)
        if count <= config.held_out:
            raise DataError(
                f"dataset {folder} has {count} clips, but {config.held_out} are held out for "
                "evaluation; make more clips or lower held_out."
            )
        for index in range(count):
            clip = decode_clip(records[index], depth=False, lidar=False)
            pool = held_out if index >= count - config.held_out else videos
            for view in range(clip.num_views):
                pool.setdefault(group, []).append(clip.view(view))
            layout = clip_layout(clip.select(views=[0])) if index % 4 == 0 else None
            if layout is not None:
                pool["layout"].append(layout[0])
    rows = videos[Path(config.datasets[0]).expanduser().name][0].shape[1]
    for clip in clips_at_rate(config.clips):
        videos.setdefault("clips", []).extend(_views(clip, rows))
    for clip in clips_at_rate(config.held_out_clips):
        held_out[clip.name] = _windows(_views(clip, rows)[0])
    if config.stills:
        videos["stills"] = standing_videos(config.stills, rows, config.crop_frames)
    needed = (config.crop_frames, config.crop_height, config.crop_width)
    for group, members in videos.items():
        for video in members:
            if any(have < need for have, need in zip(video.shape, needed, strict=False)):
                raise DataError(
                    f"a video of {group} has {video.shape[0]} frames of {video.shape[1]} x "
                    f"{video.shape[2]}, but crops need {needed[0]} of {needed[1]} x {needed[2]}."
                )
    return make_pool(videos, shares), {name: group for name, group in held_out.items() if group}


def _views(clip: Clip, rows: int) -> list[np.ndarray]:
    """Every view's video at a number of rows and about its own aspect."""
    _, height, width, _ = clip.view(0).shape
    clip = clip.resized(*fitted_size(height, width, rows, PIXELS_PER_LATENT))
    return [clip.view(v) for v in range(clip.num_views)]


def _windows(video: np.ndarray) -> list[np.ndarray]:
    """Up to four pieces of a held-out drive of at most 17 frames, evenly spread."""
    frames = min(len(video), HELD_OUT_FRAMES)
    starts = np.linspace(0, len(video) - frames, min(4, 1 + len(video) // frames)).astype(int)
    return [video[start : start + frames] for start in starts]


def _open(folder: str) -> Any:
    try:
        return open_records(folder)
    except DataError as error:
        rung = "full" if "full" in folder else "easy"
        raise DataError(
            f"{error} Make one with: jwm data make --rung {rung} --clips 300 --views front "
            f"--out {folder}"
        ) from None


class CodecTask(Task):
    """The codec as a task of the training loop."""

    def __init__(self, config: CodecExperiment) -> None:
        """Keeps the experiment; the videos are read when they are first needed."""
        self.config = config

    @cached_property
    def pools(self) -> tuple[VideoPool, dict[str, list[np.ndarray]]]:
        """Videos to train on, and held-out ones by group, in memory."""
        return read_pools(self.config)

    @property
    def training(self) -> VideoPool:
        """The videos to train on."""
        return self.pools[0]

    def nets(self, config: CodecExperiment) -> dict[str, Net]:
        """The codec, whose linear base is fitted before the first step and stays as it is, and
        LPIPS, frozen, where it counts."""
        optimizer = config.optimizer
        nets = {"model": Net(self.init, optimizer, fit=self.fit_base, trains=_is_convolution)}
        return nets | judge_net(self.config.lpips) if self.config.loss.lpips else nets

    def init(self, key: Any) -> Any:
        """Boxed parameters of `CodecNetwork` with a random base, which `fit_base` replaces."""
        blank = jnp.zeros((1, FRAMES_PER_LATENT, 2 * PIXELS_PER_LATENT, 2 * PIXELS_PER_LATENT, 3))
        return CodecNetwork(self.config.codec).init(key, blank)["params"]

    def fit_base(self, params: Any) -> Any:
        """The linear base, fitted on the training videos; everything else stays as initialised."""
        patches = sample_patches(self.training, self.config.base_groups, self.config.seed)
        return params | fit_linear_base(patches, self.config.codec.latent_channels)

    def phases(self) -> tuple[Phase, ...]:
        """One update by `codec_loss` of uint8 crops."""

        def loss(params: Any, others: Any, batch: Any, key: Any) -> Any:
            video = batch.astype(jnp.float32) / 255.0
            config, judge = self.config, others.get(JUDGE)
            mean, metrics = codec_loss(config.codec, config.loss, params, video, key, judge)
            return (mean * len(video), len(video)), metrics

        return (Phase("model", loss),)

    def batches(self, start: int, rows: Rows) -> Iterator[np.ndarray]:
        """uint8 crops [rows, T, H, W, 3]."""
        config = self.config
        step = start
        while True:
            crops = sample_crops(
                self.training,
                config.batch_size,
                config.crop_frames,
                config.crop_height,
                config.crop_width,
                config.seed,
                step,
            )
            yield crops[rows]
            step += 1

    def shapes(self) -> jax.ShapeDtypeStruct:
        """A batch of crops."""
        config = self.config
        size = (config.crop_frames, config.crop_height, config.crop_width)
        return jax.ShapeDtypeStruct((config.batch_size, *size, 3), jnp.uint8)

    def evaluate(self, params: Any) -> dict[str, float]:
        """PSNR of the held-out videos by group, of whole clips and of their first frames."""
        params = jax.device_get(params)
        scores = {}
        for group, videos in self.pools[1].items():
            rows = [clip_psnr(self.config.codec, params, video) for video in videos]
            whole, first = np.mean(rows, axis=0)
            scores[f"psnr_{group}"], scores[f"psnr_{group}_first"] = float(whole), float(first)
        return scores

    def save(self, params: Any, directory: str | os.PathLike[str], *, half: bool = True) -> None:
        """Writes a model directory whose latents have unit variance on the training videos."""
        scores = self.evaluate(params)
        params = with_latent_statistics(self.config.codec, params, self.training)
        codec = VideoCodec(self.config.codec, params)
        codec.save_pretrained(directory, card=self._card(scores), half=half)

    def _card(self, scores: dict[str, float]) -> str:
        config = self.config
        table = "\n".join(f"| {name} | {value:.2f} |" for name, value in scores.items())
        return (
            f"# Video codec {config.name}\n\n"
            "4 x 8 x 8 times fewer positions, "
            f"{config.codec.latent_channels} channels, trained by `jwm train {config.name}`: "
            f"{config.steps} steps of {config.batch_size} crops of {config.crop_frames} x "
            f"{config.crop_height} x {config.crop_width} from {', '.join(self.training.videos)}.\n"
            "Latents have unit variance per channel on the training videos.\n\n"
            f"PSNR in dB on held-out clips (mean over clips):\n\n| | dB |\n|---|---|\n{table}\n"
        )


def _over_all_devices(video: jax.Array) -> jax.Array:
    """The batch split over the context axis too, where that divides it."""
    axes = automatic_axes()
    ways = math.prod(axes.get(axis, 1) for axis in RULES["rows"])
    return video if len(video) % ways else constrain(video, ("rows", *(None,) * 4))


def _is_convolution(name: str) -> bool:
    return not name.startswith("base_")


@partial(jax.jit, static_argnames="config")
def _encode_clip(config: CodecConfig, params: Any, video: Any) -> jax.Array:
    video = video.astype(jnp.float32)[None] / 255.0
    h, w = video.shape[2] // PIXELS_PER_LATENT, video.shape[3] // PIXELS_PER_LATENT
    zeros = initial_state(config, 1, h, w)
    return encode_groups(config, params, repeat_first_frame(video), zeros)[0]


@partial(jax.jit, static_argnames="config")
def _squared_errors(config: CodecConfig, params: Any, video: Any) -> jax.Array:
    latents = _encode_clip(config, params, video)
    zeros = initial_state(config, 1, *latents.shape[2:4])
    decoded, _ = decode_groups(config, params, latents, zeros)
    decoded = jnp.clip(decoded[0, FRAMES_PER_LATENT - 1 :], 0.0, 1.0)
    return jnp.mean((decoded - video.astype(jnp.float32) / 255.0) ** 2, axis=(1, 2, 3))


def clip_psnr(config: CodecConfig, params: Any, video: np.ndarray) -> tuple[float, float]:
    """Reconstruction quality of one uint8 video [T, H, W, 3].

    Args:
        config: The codec's widths.
        params: Parameters.
        video: A video; frames beyond 1 + 4k and pixels beyond multiples of 8 are left out.

    Returns:
        PSNR in dB of the clip (from its mean squared error), and of its first frame.
    """
    errors = np.asarray(_squared_errors(config, params, _trimmed(video)))
    return tuple(float(-10 * np.log10(error + 1e-12)) for error in (errors.mean(), errors[0]))


def with_latent_statistics(config: CodecConfig, params: Any, pool: VideoPool, count: int = 96):
    """Parameters whose latents have zero mean and unit variance per channel on a pool's videos.

    Args:
        config: The codec's widths.
        params: Parameters (numpy), with any statistics.
        pool: Videos; drawn by their shares.
        count: Number of videos to measure.

    Returns:
        New parameters that decode as before.
    """
    plain = params | {
        "latent_mean": np.zeros(config.latent_channels, np.float32),
        "latent_std": np.ones(config.latent_channels, np.float32),
    }
    random = np.random.default_rng(0)
    names = [name for name in sorted(pool.videos) if name != "layout"]
    shares = np.array([pool.shares[name] for name in names])
    latents = []
    for name in random.choice(names, count, p=shares / shares.sum()):
        group = pool.videos[name]
        video = _trimmed(group[random.integers(len(group))][:25])
        latents.append(
            np.asarray(_encode_clip(config, plain, video)).reshape(-1, config.latent_channels)
        )
    values = np.concatenate(latents)
    return params | {
        "latent_mean": values.mean(axis=0, dtype=np.float64).astype(np.float32),
        "latent_std": values.std(axis=0, dtype=np.float64).astype(np.float32),
    }


def _trimmed(video: np.ndarray) -> np.ndarray:
    frames = (video.shape[0] - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    height, width = (size // PIXELS_PER_LATENT * PIXELS_PER_LATENT for size in video.shape[1:3])
    return video[:frames, :height, :width]
