"""Clips as latents: encoded once, kept in a folder, drawn from as windows.

Encoding costs far more than a training step's arithmetic can wait for, so a data set is run through
the codec once: pictures, layout frames, and priors where there are any, with ego motion, style and
rays. The folder's name is a hash of the data sets' descriptions, the videos' sizes, how clips are
cut, and the codec's weights; a second run, or the next stage of training, finds it and reads it
through memory maps.

A window of F latent frames that begins inside a clip needs a first latent as a session makes one,
from a single still frame; those stills are encoded too. Priors are a plug: a function from a clip
to rendered frames and alphas. Without it the prior is zeros and its mask is zero.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from jwm_jax.data.video import read_video
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.drawing import clip_layout
from jwm_jax.scene.trajectory import ego_motion
from jwm_jax.training.progress import duration
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.conditions import (
    LatentConditions,
    camera_rays,
    fill_holes,
    known_style,
    pool_mask,
    style_codes,
)
from jwm_jax.worldgen.config import WorldGenConfig

Prior = Callable[[Clip], tuple[np.ndarray, np.ndarray]]
"""A clip of T frames and V views to rendered frames [V, T, H, W, 3] and alphas [V, T, H, W]."""

REPORT_SECONDS = 20.0

MIRROR = np.asarray([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], np.float32)
"""Signs of a ray's direction and moment under y -> -y."""


@dataclass(frozen=True)
class LatentSource:
    """Where clips come from and how they are cut.

    Attributes:
        datasets: folders made by `jwm data make`.
        videos: video files without calibration, boxes or poses; `$VAR` is expanded.
        frames: video frames of an example, 1 + 4k; longer clips give several.
        window: latent frames of a training window, at most 1 + k.
        height: rows; every picture is resized to this size.
        width: columns.
        views: views of an example; 1 makes every view an example of its own.
        mirror: whether every example is also there mirrored left to right.
        held_out: clips at the end of each data set that are kept for evaluation.
        limit: most clips taken from each data set; 0 for all.
    """

    datasets: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    frames: int = 25
    window: int = 7
    height: int = 96
    width: int = 160
    views: int = 1
    mirror: bool = True
    held_out: int = 8
    limit: int = 0

    def __post_init__(self) -> None:
        if self.frames % 4 != 1 or self.window > 1 + self.frames // 4 or self.window < 2:
            raise UsageError(
                f"frames must be 1 + 4k and window between 2 and 1 + k, got frames {self.frames} "
                f"and window {self.window}."
            )
        if self.mirror and self.views > 1:
            raise UsageError("mirror works on single views only: set mirror=False or views=1.")


@dataclass(frozen=True)
class LatentSet:
    """Encoded examples; arrays are memory maps with the example as first axis.

    Attributes:
        latents: [N, V, F, h, w, c] float16.
        stills: single-frame encodings at each possible start of a window, [N, V, S, h, w, c].
        layout: as latents.
        layout_stills: as stills.
        layout_valid: [N], 1 where there is a layout.
        prior: as latents.
        prior_mask: [N, V, F, h, w, 1].
        ego_motion: [N, F, 4, 4] float32; zeros for frame 0.
        ego_valid: [N].
        style: [N, n] int32.
        rays: [N, V, h, w, 6] float32.
        held_out: [N] bool.
    """

    latents: np.ndarray
    stills: np.ndarray
    layout: np.ndarray
    layout_stills: np.ndarray
    layout_valid: np.ndarray
    prior: np.ndarray
    prior_mask: np.ndarray
    ego_motion: np.ndarray
    ego_valid: np.ndarray
    style: np.ndarray
    rays: np.ndarray
    held_out: np.ndarray

    def window(self, example: int, start: int, frames: int) -> tuple[np.ndarray, LatentConditions]:
        """One window with a leading axis of 1: latents [1, V, F, h, w, c] and their conditions."""
        part = slice(start, start + frames)

        def cut(name: str) -> np.ndarray:
            values = np.array(getattr(self, name)[example, :, part], np.float32)
            stills = {"latents": self.stills, "layout": self.layout_stills}.get(name)
            if stills is not None:
                values[:, 0] = stills[example, :, start]
            elif name.startswith("prior"):
                values[:, 0] = 0.0
            return values[None]

        motion = np.array(self.ego_motion[example, part])
        motion[0] = 0.0
        known = np.full((1, frames), self.ego_valid[example], np.float32)
        known[:, 0] = 0.0
        views = self.latents.shape[1]
        conditions = LatentConditions(
            layout=cut("layout"),
            layout_valid=np.full((1, views, frames), self.layout_valid[example], np.float32),
            prior=cut("prior"),
            prior_mask=cut("prior_mask"),
            ego_motion=motion[None],
            ego_valid=known,
            style=np.array(self.style[example])[None],
            rays=np.array(self.rays[example])[None],
            guidance=np.ones(1, np.float32),
        )
        return cut("latents"), conditions


def stack_windows(
    windows: list[tuple[np.ndarray, LatentConditions]],
) -> tuple[np.ndarray, LatentConditions]:
    """Joins windows along their first axis."""
    import jax

    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *windows)


def open_latents(
    root: str | os.PathLike[str],
    source: LatentSource,
    config: WorldGenConfig,
    codec: VideoCodec,
    prior: Prior | None = None,
    prior_name: str = "none",
    say: Callable[[str], None] = print,
) -> LatentSet:
    """Opens a latent set, encoding it first if no run has done so.

    Args:
        root: folder of all latent sets; each has a folder named by a hash in it.
        source: what to encode.
        config: for the style vocabulary.
        codec: with its weights, which are part of the hash.
        prior: renders priors of a clip, or None.
        prior_name: names ``prior``; its latents are kept in a folder of this name in the set, so
            that another prior does not encode everything else again.
        say: gets progress messages.

    Raises:
        DataError: a data set is missing or broken, or holds no clip long enough.
    """
    folder = Path(root).expanduser() / _identity(source, config, codec)
    fill_once(folder, lambda part: _encode_all(part, source, config, codec, say))
    names = [n for n in LatentSet.__dataclass_fields__ if n not in ("prior", "prior_mask")]
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    shape = arrays["latents"].shape
    if prior is None:
        priors = [np.broadcast_to(np.float16(0), s) for s in (shape, (*shape[:-1], 1))]
    else:
        own = folder / f"prior-{prior_name}"
        fill_once(own, lambda part: _encode_priors(part, shape, source, codec, prior, say))
        priors = [np.load(own / f"{n}.npy", mmap_mode="r") for n in ("prior", "prior_mask")]
    return LatentSet(**arrays, prior=priors[0], prior_mask=priors[1])


def fill_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder unless it is there: in a place beside it, renamed at the end.

    Of several processes one does so, and the others wait for it.
    """
    if (folder / "done").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "done").is_file():
            return
        part = folder.with_name(f"{folder.name}.part")
        for leftover in (part, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir()
        fill(part)
        (part / "done").touch()
        part.rename(folder)


def _identity(source: LatentSource, config: WorldGenConfig, codec: VideoCodec) -> str:
    import jax

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(codec.params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    stamps = [_stamp(Path(name).expanduser()) for name in source.datasets]
    videos = [Path(os.path.expandvars(name)).expanduser() for name in source.videos]
    stamps += [str(path.stat().st_size) if path.is_file() else "absent" for path in videos]
    text = json.dumps(
        [repr(source), repr(config.styles), digest.hexdigest(), stamps], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stamp(folder: Path) -> str:
    info = folder / "dataset_info.json"
    if not info.is_file():
        raise DataError(
            f"dataset {folder}: no dataset_info.json there; make the data with `jwm data make`."
        )
    return hashlib.sha256(info.read_bytes()).hexdigest()


def _encode_all(
    folder: Path,
    source: LatentSource,
    config: WorldGenConfig,
    codec: VideoCodec,
    say: Callable[[str], None],
) -> None:
    began = reported = time.monotonic()
    rows: list[dict[str, np.ndarray]] = []
    for clip, held_out in _clips(source):
        for example in _cut(clip, source):
            for row in encode_clip(example, source, config, codec):
                rows.append({**row, "held_out": np.asarray(held_out)})
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            say(f"encoded {len(rows)} examples in {duration(reported - began)}")
    for name in source.videos if source.views == 1 else ():
        video = read_video(
            name, source.height, source.width, rate=10.0, without="--set source.videos=[]"
        )
        for row in _encode_video(video, source, config, codec):
            rows.append({**row, "held_out": np.asarray(False)})
    if not rows:
        raise DataError(
            f"no clip of {list(source.datasets)} has {source.frames} frames and {source.views} "
            "view(s), so there is nothing to train on."
        )
    say(f"encoded {len(rows)} examples in {duration(time.monotonic() - began)}")
    for name in rows[0]:
        np.save(folder / f"{name}.npy", np.stack([row[name] for row in rows]))


def _encode_priors(
    folder: Path,
    shape: tuple[int, ...],
    source: LatentSource,
    codec: VideoCodec,
    prior: Prior,
    say: Callable[[str], None],
) -> None:
    """Priors of the examples of `_encode_all`, in its order; zeros for videos."""
    began = reported = time.monotonic()
    latents = np.zeros(shape, np.float16)
    masks = np.zeros((*shape[:-1], 1), np.float16)
    count = 0
    for clip, _ in _clips(source, lidar=True):
        for example in _cut(clip, source):
            pictures = np.stack([example.view(v) for v in range(example.num_views)])
            rendered, alpha = prior(example)
            for turn in (1, -1) if source.mirror else (1,):
                given = (a[:, :, :, ::turn] for a in (pictures, rendered, alpha))
                latents[count], masks[count] = encode_prior(*given, codec)
                count += 1
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            say(f"encoded priors of {count} examples in {duration(reported - began)}")
    np.save(folder / "prior.npy", latents)
    np.save(folder / "prior_mask.npy", masks)


def _clips(source: LatentSource, lidar: bool = False) -> Iterator[tuple[Clip, bool]]:
    from jwm_jax.data.records import decode_clip
    from jwm_jax.data.tfds_clips import open_records

    for folder in source.datasets:
        records = open_records(folder)
        count = min(len(records), source.limit or len(records))
        for index in range(count):
            clip = decode_clip(records[index], depth=False, lidar=lidar)
            yield clip, index >= count - source.held_out


def _cut(clip: Clip, source: LatentSource) -> Iterator[Clip]:
    """Examples of a clip: pieces of ``frames`` instants that share their end frames."""
    if clip.num_views < source.views:
        return
    clip = clip.resized(source.height, source.width)
    views = (
        [[v] for v in range(clip.num_views)] if source.views == 1 else [list(range(source.views))]
    )
    for start in range(0, clip.num_frames - source.frames + 1, source.frames - 1):
        for chosen in views:
            yield clip.select(range(start, start + source.frames), chosen)


def encode_clip(
    clip: Clip,
    source: LatentSource,
    config: WorldGenConfig,
    codec: VideoCodec,
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays of one example, without prior, as `LatentSet` names them; a second, mirrored one if
    ``source.mirror``.

    Args:
        clip: ``source.frames`` instants of ``source.views`` views in pictures of the source's size.
        source: how long and how large examples are.
        config: for the style vocabulary.
        codec: encodes pictures and layout.
    """
    pictures = np.stack([clip.view(v) for v in range(clip.num_views)])
    layout = clip_layout(clip)
    h, w = source.height // 8, source.width // 8
    rays = camera_rays(clip.rig(), h, w)
    motion = ego_motion(clip.world_from_ego, clip.times[:, 0])
    for mirrored in (False, True) if source.mirror else (False,):
        turn = slice(None, None, -1 if mirrored else 1)
        signs = np.asarray([1.0, -1.0, -1.0, 1.0], np.float32) if mirrored else np.float32(1.0)
        yield {
            **_rgb(pictures[:, :, :, turn], source, codec),
            **_layouts(None if layout is None else layout[:, :, :, turn], source, codec),
            "ego_motion": _grouped(motion * signs),
            "ego_valid": np.float32(1.0),
            "style": style_codes(config, known_style(config, clip.style)),
            "rays": rays[:, :, turn] * (MIRROR if mirrored else np.float32(1.0)),
        }


def _encode_video(
    video: UInt8[np.ndarray, "t h w 3"],
    source: LatentSource,
    config: WorldGenConfig,
    codec: VideoCodec,
) -> Iterator[dict[str, np.ndarray]]:
    """Unconditioned examples; pieces overlap by half."""
    h, w, steps = source.height // 8, source.width // 8, 1 + source.frames // 4
    for start in range(0, len(video) - source.frames + 1, source.frames // 2):
        for turn in (1, -1) if source.mirror else (1,):
            pictures = video[None, start : start + source.frames, :, ::turn]
            yield {
                **_rgb(pictures, source, codec),
                **_layouts(None, source, codec),
                "ego_motion": np.zeros((steps, 4, 4), np.float32),
                "ego_valid": np.float32(0.0),
                "style": style_codes(config, None),
                "rays": np.zeros((1, h, w, 6), np.float32),
            }


def _rgb(pictures: np.ndarray, source: LatentSource, codec: VideoCodec) -> dict[str, np.ndarray]:
    latents = _run(codec, pictures)
    return {"latents": latents, "stills": _stills(pictures, latents, source, codec)}


def _layouts(
    pictures: np.ndarray | None, source: LatentSource, codec: VideoCodec
) -> dict[str, np.ndarray]:
    if pictures is None:
        steps, h, w = 1 + source.frames // 4, source.height // 8, source.width // 8
        latents = np.zeros((source.views, steps, h, w, codec.config.latent_channels), np.float16)
        stills = latents[:, : steps - source.window + 1]
    else:
        latents = _run(codec, pictures)
        stills = _stills(pictures, latents, source, codec)
    valid = np.float32(pictures is not None)
    return {"layout": latents, "layout_stills": stills, "layout_valid": valid}


def encode_prior(
    pictures: np.ndarray, rendered: np.ndarray, alpha: np.ndarray, codec: VideoCodec
) -> tuple[np.ndarray, np.ndarray]:
    """The prior's stream as a session encodes it: the true first frame, then filled chunks.

    Args:
        pictures: true frames [V, T, H, W, 3] uint8.
        rendered: the prior [V, T, H, W, 3] in [0, 1].
        alpha: where it is valid [V, T, H, W].
        codec: encodes.

    Returns:
        Latents [V, F, h, w, c] and mask [V, F, h, w, 1], float16.
    """
    views, frames, height, width = pictures.shape[:4]
    steps, h, w = 1 + frames // 4, height // 8, width // 8
    mask = np.zeros((views, steps, h, w, 1), np.float16)
    true = pictures.astype(np.float32) / 255.0
    stream = [true[:, :1]]
    for k in range(1, steps):
        part = slice(4 * k - 3, 4 * k + 1)
        given = np.asarray(alpha[:, part], np.float32)
        filled = fill_holes(np.asarray(rendered[:, part], np.float32), given, true[:, 4 * k - 4])
        stream.append(np.asarray(filled))
        mask[:, k] = np.asarray(pool_mask(given, h, w))
    return _run(codec, np.concatenate(stream, axis=1)), mask


def _stills(
    pictures: np.ndarray, latents: np.ndarray, source: LatentSource, codec: VideoCodec
) -> np.ndarray:
    later = range(1, latents.shape[1] - source.window + 1)
    stills = [latents[:, :1]] + [_run(codec, pictures[:, 4 * k : 4 * k + 1]) for k in later]
    return np.concatenate(stills, axis=1)


def _run(codec: VideoCodec, pictures: np.ndarray) -> Float[np.ndarray, "v f h w c"]:
    if pictures.dtype == np.uint8:
        pictures = pictures.astype(np.float32) / 255.0
    return np.asarray(codec.encode(pictures), np.float16)


def _grouped(motion: Float[np.ndarray, "steps 4"]) -> Float[np.ndarray, "f 4 4"]:
    """Sub-steps of every latent frame; the first latent frame has none."""
    groups = motion.reshape(-1, 4, 4).astype(np.float32)
    return np.concatenate([np.zeros_like(groups[:1]), groups])
