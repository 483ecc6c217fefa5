"""Protocol `distillation-v1`: what a generator loses, and gains, by taking fewer steps.

Streets of seeds that no training has seen, `easy` and `full` in turn, front view, 96x160 at 10 Hz.
A row sees what it sees in `streets-rollout-v1`: the first instant with its lidar sweep, the ego
poses and boxes of the next 2.4 s, the lane map, and the scene of WorldRec; noise has the same seed
in every row. Columns:

- FVD and KVD of the generated 24 frames against the true ones of the same streets
  (`video_distance`), each with half the width of its 95 % bootstrap interval over clips;
- LPIPS and PSNR to the truth at 0.4 and 2 s, means over clips;
- energy at 0.4 and 2 s: the mean squared difference between a picture and its 3x3 binomial blur
  over the truth's at the same instant, a mean over clips;
- border: the mean absolute difference between frames at the borders of chunks over that within
  them, over the same ratio of the truth;
- ms: milliseconds a generated frame, denoising, clean pass, codec and conditions counted, scene
  not: the median chunk of a session of one street, in which all rows take turns.

The truth through the codec is the first row. Scores of every row and street are kept in a folder as
they come, so that a run that was stopped goes on, and another row costs only itself.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from jwm_jax.data.streets import FIRST_TEST_SEED, make_clip
from jwm_jax.errors import DataError, UsageError
from jwm_jax.evaluation.images import border_ratio, energy, psnr
from jwm_jax.evaluation.rollouts import FRAMES, future_of
from jwm_jax.evaluation.variants import Variant, check_variants, digest_of
from jwm_jax.evaluation.video_distance import (
    FEWEST_CLIPS,
    clip_features,
    frechet_distance,
    kernel_distance,
    with_interval,
)
from jwm_jax.files import make_folder, write_beside
from jwm_jax.nn.lpips import load_lpips, lpips
from jwm_jax.scene import Clip, Scene
from jwm_jax.worldgen import Conditions, VideoCodec
from jwm_jax.worldrec import WorldRec, measured_depth

PROTOCOL = "distillation-v1"

CLIPS = 256
"""Streets that the published tables are of."""

HORIZONS = (0.4, 2.0)
"""Seconds at which single pictures are compared."""

TRUTH, CODEC = "truth", "truth through the codec"

Row = Callable[[Clip, Scene], Float[np.ndarray, "f h w 3"]]
"""Makes the frames after a clip's first from its first instant."""


def street(index: int) -> Clip:
    """The protocol's street of a number."""
    rung = ("easy", "full")[index % 2]
    return make_clip(FIRST_TEST_SEED + index // 2, rung, num_frames=FRAMES, views=("front",))


def evaluate_distillation(
    rec: WorldRec,
    variants: Sequence[Variant],
    count: int,
    folder: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[range], Iterator[int]] = iter,
) -> dict[str, dict[str, float]]:
    """The protocol's table.

    Args:
        rec: Makes the scenes.
        variants: A row each; all generate in the latents of one codec.
        count: Streets.
        folder: Where the scores of each street are kept.
        seed: Of the noise.
        progress: Wraps the numbers of the streets.

    Returns:
        Row to column to value.

    Raises:
        UsageError: Fewer streets than `FEWEST_CLIPS`, two rows of one name, or no row.
        DataError: The weights of I3D or LPIPS are missing.
    """
    if count < FEWEST_CLIPS:
        raise UsageError(
            f"protocol {PROTOCOL} needs at least {FEWEST_CLIPS} streets, since fewer say little "
            f"about a video distance; got {count}."
        )
    check_variants(variants)
    judge, scenes = _Judge(), _Scenes(rec)
    codec = variants[0].gen.codec
    known = (PROTOCOL, seed, repr(rec.config), digest_of(rec.params))
    rows: dict[str, tuple[str, Row]] = {
        TRUTH: (PROTOCOL, lambda clip, scene: _unit(clip)[1:]),
        CODEC: (f"codec-{digest_of(codec.params)[:12]}", lambda clip, scene: coded(codec, clip)),
    }
    for variant in variants:
        rows[variant.name] = (variant.identity(*known), _generated(rec, variant, seed))
    stores = {name: _Store(Path(folder) / identity) for name, (identity, _) in rows.items()}
    for index in progress(range(count)):
        waiting = [name for name, store in stores.items() if index not in store]
        if not waiting:
            continue
        clip = street(index)
        truth = _unit(clip)
        for name in waiting:
            frames = rows[name][1](clip, scenes)
            stores[name].put(index, judge.scores(frames, truth))
    kept = {name: store.read(count) for name, store in stores.items()}
    milliseconds = chunk_milliseconds(variants, street(0))
    table = {}
    for name, scores in kept.items():
        if name == TRUTH:
            continue
        table[name] = _columns(scores, kept[TRUTH])
        if name in milliseconds:
            table[name]["ms"] = round(milliseconds[name], 1)
    return table


def chunk_milliseconds(variants: Sequence[Variant], clip: Clip) -> dict[str, float]:
    """Milliseconds a generated frame of each row, over the chunks of one clip's future in turn."""
    names = [variant.name for variant in variants]
    sessions, spent = {}, {name: [] for name in names}
    frames = variants[0].gen.config.frames_per_chunk
    shape = (1, frames, *clip.view(0).shape[1:])
    given = Conditions(
        layout=np.zeros(shape, np.float32),
        prior=np.zeros(shape, np.float32),
        prior_alpha=np.ones(shape[:-1], np.float32),
        ego_motion=np.zeros((frames, 4), np.float32),
    )
    for variant in variants:
        sessions[variant.name] = variant.gen.start(clip.view(0)[:1], clip.rig(0))
    for _ in range(6):
        for variant in variants:
            start = time.perf_counter()
            video, session = variant.gen.step(sessions[variant.name], given, variant.steps)
            video.block_until_ready()
            spent[variant.name].append(time.perf_counter() - start)
            sessions[variant.name] = session
    return {name: 1000.0 * float(np.median(spent[name][1:])) / frames for name in names}


def coded(codec: VideoCodec, clip: Clip) -> Float[np.ndarray, "f h w 3"]:
    """The frames after the first, encoded and decoded."""
    return np.asarray(codec.decode(codec.encode(_unit(clip)[None])))[0, 1:]


def _generated(rec: WorldRec, variant: Variant, seed: int) -> Row:
    def make(clip: Clip, scenes: "_Scenes") -> Float[np.ndarray, "f h w 3"]:
        start = clip.select([0])
        rollout = variant.rollout(rec, start, future_of(clip), scenes(start), seed)
        return rollout.frames[:, 0] / np.float32(255)

    return make


class _Scenes:
    """The scene of a start, made once for all rows that follow one another."""

    def __init__(self, rec: WorldRec) -> None:
        self._rec, self._name, self._scene = rec, None, None

    def __call__(self, start: Clip) -> Scene:
        if self._name != start.name:
            self._name, self._scene = start.name, self._rec(start, measured_depth(start))
        return self._scene


class _Judge:
    """Scores of one clip."""

    def __init__(self) -> None:
        params, run = load_lpips(), jax.jit(lpips)
        self._distance = lambda a, b: run(params, a, b)

    def scores(
        self, frames: Float[np.ndarray, "f h w 3"], truth: Float[np.ndarray, "t h w 3"]
    ) -> dict[str, np.ndarray]:
        frames = np.clip(np.asarray(frames, np.float32), 0.0, 1.0)
        at = [round(h * 10) for h in HORIZONS]
        ours, theirs = frames[[t - 1 for t in at]], truth[at]
        return {
            "features": clip_features([frames], batch=1)[0],
            "LPIPS": np.asarray(self._distance(ours, theirs)),
            "PSNR": np.asarray([psnr(a, b) for a, b in zip(ours, theirs, strict=True)]),
            "energy": energy(ours) / energy(theirs),
            "border": np.asarray(border_ratio(frames) / border_ratio(truth[1:])),
        }


class _Store:
    """Scores of a row, a file a street."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)

    def _file(self, index: int) -> Path:
        return self._folder / f"{index:04d}.npz"

    def __contains__(self, index: int) -> bool:
        return self._file(index).is_file()

    def put(self, index: int, scores: dict[str, np.ndarray]) -> None:
        with write_beside(self._file(index)) as file:
            np.savez(file, **scores)

    def read(self, count: int) -> dict[str, np.ndarray]:
        rows = []
        for index in range(count):
            try:
                with np.load(self._file(index)) as file:
                    rows.append(dict(file))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{self._file(index)} cannot be read ({error}); delete it and repeat the "
                    "command."
                ) from error
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _columns(scores: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
    columns = {}
    for name, distance in (("FVD", frechet_distance), ("KVD", kernel_distance)):
        found = with_interval(distance, scores["features"], truth["features"])
        columns[name] = round(found.value, 4)
        columns[f"{name} +-"] = round((found.high - found.low) / 2, 4)
    for name in ("LPIPS", "PSNR", "energy"):
        for horizon, values in zip(HORIZONS, scores[name].T, strict=True):
            columns[f"{name} {horizon:g} s"] = round(float(values.mean()), 3)
    return columns | {"border": round(float(scores["border"].mean()), 3)}


def _unit(clip: Clip) -> Float[np.ndarray, "t h w 3"]:
    return clip.view(0).astype(np.float32) / np.float32(255)
