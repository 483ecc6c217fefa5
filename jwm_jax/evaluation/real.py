"""Protocol `real-v1`: reconstruction and futures on any drive that no training has seen.

The first view of a drive at about 10 Hz and the models' rows, its own aspect kept. `WINDOWS`
windows of 21 instants (2 s and their start) lie evenly over the drive, fewer where it is too short
for different ones; scores are means over windows. A drive of fewer instants is one window and lacks
the horizons beyond it.

- Reconstruction, of a drive with poses: of a window's first 17 instants every 4th is context, the
  others are predicted, as in `worldrec-v1` (its rows too). Means over the predicted pictures.
- Future: from a window's first instant, with its lidar where there is any; ego poses, boxes and map
  of what follows are given, no pictures. Compared 0.4, 1 and 2 s later. Rows: the joint model, the
  generator without a scene, the scene without the generator (the first frame in its holes), the
  first frame held, and the truth through the codec. Without poses there is no scene.

Columns: PSNR in dB; LPIPS (`jwm_jax.nn.lpips`), where its weights are; energy, the mean squared
difference between a picture and its 3x3 binomial blur over the truth's at the same instant: 1 for
pictures as sharp as the truth, less for blurred ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import numpy as np

from jwm_jax.data.thinning import MODEL_RATE, thinned
from jwm_jax.errors import DataError
from jwm_jax.evaluation.images import energy, psnr
from jwm_jax.evaluation.rollouts import HORIZONS, rollout_rows
from jwm_jax.evaluation.worldrec import CONTEXT_EVERY, held_out_targets, methods_of
from jwm_jax.joint import JointWorldModel
from jwm_jax.nn.frozen import find_weights
from jwm_jax.nn.lpips import WEIGHTS, load_lpips, lpips
from jwm_jax.scene import Clip

PROTOCOL = "real-v1"
WINDOWS = 3
INSTANTS = 21
"""Of a window: the start, and 2 s of future."""

FEWEST = 5
"""Instants of the shortest drive: the start and one chunk."""

RECONSTRUCTED = 17
"""Instants of a window that reconstruction is asked about."""

ROWS = {
    "prior": "joint",
    "no prior": "generator alone",
    "warp": "scene alone",
    "copy": "first frame held",
    "codec": "codec",
}
"""Rows of a future by the names of `rollout_rows`."""

METRICS = ("PSNR", "LPIPS", "energy")
"""Columns, each at every horizon of a future."""

Table = dict[str, dict[str, float]]
"""Row to column to value."""


@dataclass
class DriveScores:
    """What a drive's evaluation gives.

    Attributes:
        windows: How many were used.
        reconstruction: Table, empty without poses.
        future: Table.
        strips: Pictures of the first window [n, h, w, 3] in [0, 1], by what they show.
    """

    windows: int
    reconstruction: Table
    future: Table
    strips: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate_drive(
    world: JointWorldModel,
    clip: Clip,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> DriveScores:
    """Scores a joint model on one drive.

    Args:
        world: The model.
        clip: The drive, see `prepared`.
        steps: Denoising steps a chunk; the generator's own number if None.
        seed: Of the noise.
    """
    lens = clip.cameras[0]
    clip = clip.resized(*world.gen.config.picture_size(lens.height, lens.width))
    length = 1 + (min(INSTANTS, clip.num_frames) - 1) // 4 * 4  # what the codec takes
    starts = window_starts(clip)
    rebuilt, future = _Scores(), _Scores()
    result = DriveScores(len(starts), {}, {})
    for start in starts:
        window = clip.select(range(start, start + length))
        strips: dict[str, np.ndarray] = {}
        if clip.posed:
            strips |= _reconstruct(world, window, rebuilt)
        truth = window.view(0).astype(np.float32) / np.float32(255)
        rows = rollout_rows(world, window, steps=steps, seed=seed)
        whole = min(len(video) for video in rows.values())  # whole chunks
        frames = [t for t in (round(h * MODEL_RATE) for h in HORIZONS) if t <= whole]
        for name, video in rows.items():
            for horizon, t in zip(HORIZONS, frames, strict=False):
                future.add(ROWS[name], video[[t - 1]], truth[[t]], f" {horizon:g} s")
        strips["truth, future"] = truth[frames]
        strips |= {ROWS[n]: np.asarray(video)[np.asarray(frames) - 1] for n, video in rows.items()}
        result.strips = result.strips or strips
    result.reconstruction, result.future = rebuilt.table(), future.table()
    return result


def prepared(clip: Clip, say: Callable[[str], None]) -> Clip:
    """The drive as the protocol sees it: its first view at about 10 Hz.

    Args:
        clip: With its own rate, size and views.
        say: Gets a line where frames are left out.

    Raises:
        DataError: The drive is too short.
    """
    clip = thinned(clip.select(views=[0]), say=say)
    if clip.num_frames < FEWEST:
        raise DataError(
            f"{clip.name}: protocol {PROTOCOL} needs {FEWEST} instants at about "
            f"{MODEL_RATE:g} Hz, and the drive has {clip.num_frames}."
        )
    return clip


def window_starts(clip: Clip) -> list[int]:
    """First instants of the windows."""
    spare = max(0, clip.num_frames - INSTANTS)
    return sorted({int(start) for start in np.linspace(0, spare, WINDOWS)})


def _reconstruct(world: JointWorldModel, window: Clip, scores: "_Scores") -> dict[str, np.ndarray]:
    part = window.select(range(min(RECONSTRUCTED, window.num_frames)))
    context = part.select(list(range(0, part.num_frames, CONTEXT_EVERY)))
    targets = held_out_targets(part)
    truth = np.stack([target.truth for target in targets])
    middle = [t for t in (2, 5, 8) if t < len(targets)]
    strips = {"truth": truth[middle]}
    methods = methods_of(world.rec, context, None)
    if part.depth is None and part.lidar is None:
        del methods["warp by true depth"]  # there is none
    for name, method in methods.items():
        pictures = np.stack([method(target) for target in targets])
        scores.add(name, pictures, truth)
        if name.startswith("worldrec"):
            strips[name] = pictures[middle]
    return strips


class _Scores:
    """Sums of scores by row and column."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, pictures: Any, truth: np.ndarray, suffix: str = "") -> None:
        pictures = np.clip(np.asarray(pictures, np.float32), 0.0, 1.0)
        values = {"PSNR": [psnr(a, b) for a, b in zip(pictures, truth, strict=True)]}
        distance = _perceptual()
        if distance is not None:
            values["LPIPS"] = np.asarray(distance(pictures, truth)).tolist()
        values["energy"] = (energy(pictures) / energy(truth)).tolist()
        columns = self._values.setdefault(row, {})
        for name, numbers in values.items():
            columns.setdefault(name + suffix, []).append(float(np.mean(numbers)))

    def table(self) -> Table:
        return {
            row: {
                name: round(float(np.mean(columns[name])), 3)
                for metric in METRICS
                for name in columns
                if name.startswith(metric)
            }
            for row, columns in self._values.items()
        }


@cache
def _perceptual() -> Callable[[np.ndarray, np.ndarray], jax.Array] | None:
    """LPIPS of pairs of pictures, or None without its weights."""
    if find_weights(WEIGHTS) is None:
        return None
    params = load_lpips()
    return jax.jit(lambda a, b: lpips(params, a, b))
