"""Opening a latent set, and encoding clips into its arrays where no run has done so.

The folder's name is a hash of the data sets' descriptions, the videos' sizes, how clips are cut,
and the codec's weights; a second run, or the next stage of training, finds it and reads it through
memory maps. Every array grows on disk row by row (`GrowingArray`), so a data set may be larger than
memory.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jwm_jax.data.thinning import MODEL_RATE, clips_at_rate
from jwm_jax.errors import DataError
from jwm_jax.paradigms.latents import LatentSet, LatentSource, Prior
from jwm_jax.scene.clip import Clip, crop_covering
from jwm_jax.scene.drawing import clip_layout
from jwm_jax.scene.trajectory import ego_motion
from jwm_jax.training.progress import duration
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.conditions import (
    camera_rays,
    fill_holes,
    known_style,
    pool_mask,
    style_codes,
)
from jwm_jax.worldgen.config import WorldGenConfig

FORMAT = 2
"""Of a set's arrays; a set of another format is encoded anew."""

REPORT_SECONDS = 20.0

MIRROR = np.asarray([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], np.float32)
"""Signs of a ray's direction and moment under y -> -y."""


class GrowingArray:
    """An .npy file to which rows are appended.

    The header is written first for no row and in the end for all of them; numpy leaves room in it
    for the first dimension to grow.
    """

    def __init__(self, path: Path) -> None:
        """Begin the file; shape and type come with the first row."""
        self._file = path.open("w+b")
        self._shape: tuple[int, ...] | None = None
        self._dtype: Any = None
        self.rows = 0

    def append(self, row: np.ndarray) -> None:
        """Write one more row.

        Raises:
            ValueError: It has not the shape and type of the first one.
        """
        row = np.ascontiguousarray(row).reshape(np.shape(row))
        if self._shape is None:
            self._shape, self._dtype = row.shape, row.dtype
            self._write_header()
        if (row.shape, row.dtype) != (self._shape, self._dtype):
            raise ValueError(
                f"a row of {row.shape} {row.dtype} among rows of {self._shape} {self._dtype}."
            )
        self._file.write(row.tobytes())
        self.rows += 1

    def _write_header(self) -> None:
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._file, fields)

    def close(self) -> None:
        """Say in the header how many rows there are."""
        if self._shape is not None:
            self._file.seek(0)
            self._write_header()
        self._file.close()


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
    fill_once(folder, lambda part: encode_all(part, source, config, codec, say))
    names = [n for n in LatentSet.__dataclass_fields__ if n not in ("prior", "prior_mask")]
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    shape = arrays["latents"].shape
    if prior is None:
        priors = [np.broadcast_to(np.float16(0), s) for s in (shape, (*shape[:-1], 1))]
    else:
        own = folder / f"prior-{prior_name}"
        fill_once(own, lambda part: encode_priors(part, shape, source, codec, prior, say))
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
    stamps += [_contents(spec) for spec in source.clips]
    text = json.dumps(
        [FORMAT, repr(source), repr(config.styles), digest.hexdigest(), stamps], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stamp(folder: Path) -> str:
    info = folder / "dataset_info.json"
    if not info.is_file():
        raise DataError(
            f"dataset {folder}: no dataset_info.json there; make the data with `jwm data make`."
        )
    return hashlib.sha256(info.read_bytes()).hexdigest()


def _contents(spec: str) -> str:
    """Names and sizes of the files of a real drive."""
    where = Path(os.path.expandvars(spec).partition(":")[2].partition("?")[0]).expanduser()
    files = sorted(where.rglob("*")) if where.is_dir() else [where]
    sizes = [(file.name, file.stat().st_size) for file in files if file.is_file()]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def encode_all(
    folder: Path,
    source: LatentSource,
    config: WorldGenConfig,
    codec: VideoCodec,
    say: Callable[[str], None],
) -> None:
    """Fills a folder with the arrays of a latent set, without priors.

    Raises:
        DataError: there is no clip long enough.
    """
    began = reported = time.monotonic()
    arrays: dict[str, GrowingArray] = {}
    count = 0
    for row in _rows(source, config, codec):
        for name, value in row.items():
            if name not in arrays:
                arrays[name] = GrowingArray(folder / f"{name}.npy")
            arrays[name].append(np.asarray(value))
        count += 1
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            say(f"encoded {count} examples in {duration(reported - began)}")
    for array in arrays.values():
        array.close()
    if not count:
        raise DataError(
            f"no clip of {[*source.datasets, *source.clips]} has {source.frames} frames at "
            f"{MODEL_RATE:g} Hz and {source.views} view(s), so there is nothing to train on."
        )
    say(f"encoded {count} examples in {duration(time.monotonic() - began)}")


def _rows(
    source: LatentSource, config: WorldGenConfig, codec: VideoCodec
) -> Iterator[dict[str, np.ndarray]]:
    for example, held_out, real in _examples(source):
        for row in encode_clip(example, source, config, codec):
            yield {**row, "held_out": np.asarray(held_out), "real": np.asarray(real)}


def encode_priors(
    folder: Path,
    shape: tuple[int, ...],
    source: LatentSource,
    codec: VideoCodec,
    prior: Prior,
    say: Callable[[str], None],
) -> None:
    """Priors of the examples of `encode_all`, in its order; zeros where poses are unknown."""
    began = reported = time.monotonic()
    latents, masks = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, size)
        for name, size in (("prior", shape), ("prior_mask", (*shape[:-1], 1)))
    )
    count = 0
    for example, _, _ in _examples(source, lidar=True, say=_quiet):
        turns = (1, -1) if source.mirror else (1,)
        if example.posed:
            pictures = np.stack([example.view(v) for v in range(example.num_views)])
            rendered, alpha = prior(example)
            for row, turn in enumerate(turns, count):
                given = (a[:, :, :, ::turn] for a in (pictures, rendered, alpha))
                latents[row], masks[row] = encode_prior(*given, codec)
        count += len(turns)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            say(f"encoded priors of {count} examples in {duration(reported - began)}")
    latents.flush()
    masks.flush()


def _examples(
    source: LatentSource, lidar: bool = False, say: Callable[[str], None] = print
) -> Iterator[tuple[Clip, bool, bool]]:
    """Pieces of ``frames`` instants of every drive, whether they are kept for evaluation, and
    whether they are real."""
    from jwm_jax.data.records import decode_clip
    from jwm_jax.data.tfds_clips import open_records

    for folder in source.datasets:
        records = open_records(folder)
        count = min(len(records), source.limit or len(records))
        for index in range(count):
            clip = decode_clip(records[index], depth=False, lidar=lidar)
            for views in _chosen_views(clip, source):
                part = clip.select(views=views).resized(source.height, source.width)
                for piece in _pieces(part, source.frames, source.frames - 1):
                    yield piece, index >= count - source.held_out, False
    for clip in clips_at_rate(source.clips, say):
        for views in _chosen_views(clip, source):
            part = clip.select(views=views)
            for across in _windows_across(part, source):
                cut = crop_covering(part, source.height, source.width, across)
                for piece in _pieces(cut, source.frames, source.frames // 2):
                    yield piece, False, True


def _chosen_views(clip: Clip, source: LatentSource) -> list[list[int]]:
    """Views of each example of a clip."""
    if source.views == 1:
        return [[v] for v in range(clip.num_views)]
    return [list(range(source.views))] if clip.num_views >= source.views else []


def _pieces(clip: Clip, frames: int, stride: int) -> Iterator[Clip]:
    for start in range(0, clip.num_frames - frames + 1, stride):
        yield clip.select(range(start, start + frames))


def _windows_across(clip: Clip, source: LatentSource) -> list[float]:
    """Where windows of the source's size lie in pictures that are wider, half a window apart."""
    _, height, width, _ = clip.view(0).shape
    spare = width * source.height / height / source.width - 1.0
    count = 1 + round(2.0 * max(spare, 0.0))
    return [0.5] if count == 1 or source.views > 1 else np.linspace(0.0, 1.0, count).tolist()


def _quiet(line: str) -> None:
    """Says nothing: the first pass over the drives has said it."""


def encode_clip(
    clip: Clip,
    source: LatentSource,
    config: WorldGenConfig,
    codec: VideoCodec,
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays of one example, without prior, as `LatentSet` names them; a second, mirrored one if
    ``source.mirror``. What a drive lacks is absent: no motion and no rays without poses (a video's
    camera is a guess), no layout without boxes and map.

    Args:
        clip: ``source.frames`` instants of ``source.views`` views in pictures of the source's size.
        source: how long and how large examples are.
        config: for the style vocabulary.
        codec: encodes pictures and layout.
    """
    pictures = np.stack([clip.view(v) for v in range(clip.num_views)])
    layout = clip_layout(clip)
    h, w = source.height // 8, source.width // 8
    rays = camera_rays(clip.rig(), h, w) * np.float32(clip.posed)
    motion = ego_motion(clip.world_from_ego, clip.times[:, 0])
    for mirrored in (False, True) if source.mirror else (False,):
        turn = slice(None, None, -1 if mirrored else 1)
        signs = np.asarray([1.0, -1.0, -1.0, 1.0], np.float32) if mirrored else np.float32(1.0)
        yield {
            **_rgb(pictures[:, :, :, turn], source, codec),
            **_layouts(None if layout is None else layout[:, :, :, turn], source, codec),
            "ego_motion": _grouped(motion * signs),
            "ego_valid": np.float32(clip.posed),
            "style": style_codes(config, known_style(config, clip.style)),
            "rays": rays[:, :, turn] * (MIRROR if mirrored else np.float32(1.0)),
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
