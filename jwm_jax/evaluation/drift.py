"""Protocol `drift-v1`: whether a generated minute stays as it began.

Streets of seeds that no training has seen, `easy` and `full` in turn, front view, 96x160 at 10 Hz,
as long as asked; what a row sees is as in `streets-rollout-v1`, for longer. Frames are compared
with the true ones of the same street in windows of 10 s, each figure relative to the truth's in the
same window:

- latent std: deviation of the codec's latents within a channel, a mean over channels, as a ratio;
- latent mean: root mean square, over channels, of the difference of means, in units of the truth's
  deviation (0 is best);
- energy: mean squared difference between a picture and its 3x3 binomial blur, as a ratio;
- motion: mean squared difference between neighbouring frames, as a ratio;
- border: mean absolute difference between frames at the borders of chunks over that within them,
  as a ratio.

The table has the first and the last window, means over streets, and the last one over the first
where the figure is a ratio: 1 where nothing drifts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from jwm_jax.data.streets import FIRST_TEST_SEED, make_clip
from jwm_jax.errors import UsageError
from jwm_jax.evaluation.images import border_ratio, energy
from jwm_jax.evaluation.rollouts import future_of
from jwm_jax.evaluation.variants import Variant, check_variants
from jwm_jax.scene import Clip
from jwm_jax.worldgen import VideoCodec
from jwm_jax.worldrec import WorldRec, measured_depth

PROTOCOL = "drift-v1"
WINDOW_SECONDS = 10
RATE = 10.0
RATIOS = ("latent std", "energy", "motion", "border")
MEASURES = ("latent std", "latent mean", "energy", "motion", "border")

Frames = Float[np.ndarray, "f h w 3"]


@dataclass
class Drift:
    """What a drift evaluation gives.

    Attributes:
        table: Row to column to value.
        curves: Row to measure to its value in each window, means over streets.
        strips: Frames of the first street at the end of each window, by row, in [0, 1].
    """

    table: dict[str, dict[str, float]]
    curves: dict[str, dict[str, list[float]]]
    strips: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate_drift(
    rec: WorldRec,
    variants: Sequence[Variant],
    count: int,
    seconds: int,
    *,
    seed: int = 0,
    progress: Callable[[range], Iterator[int]] = iter,
) -> Drift:
    """The protocol's table.

    Args:
        rec: Makes the scenes.
        variants: A row each; all generate in the latents of one codec.
        count: Streets.
        seconds: Length of a future, whole windows and at least two.
        seed: Of the noise.
        progress: Wraps the numbers of the streets.

    Raises:
        UsageError: A length that is no multiple of the window, or rows that cannot share a table.
    """
    if seconds < 2 * WINDOW_SECONDS or seconds % WINDOW_SECONDS:
        raise UsageError(
            f"protocol {PROTOCOL} compares windows of {WINDOW_SECONDS} s and needs at least two "
            f"whole ones; got {seconds} s."
        )
    check_variants(variants)
    found: dict[str, list[dict[str, list[float]]]] = {v.name: [] for v in variants}
    strips: dict[str, np.ndarray] = {}
    for index in progress(range(count)):
        clip = street(index, seconds)
        start, truth = clip.select([0]), clip.view(0).astype(np.float32) / np.float32(255)
        scene = rec(start, measured_depth(start))
        shown = [round(s * RATE) for s in range(WINDOW_SECONDS, seconds + 1, WINDOW_SECONDS)]
        if not strips:
            strips["truth"] = truth[shown]
        for variant in variants:
            rollout = variant.rollout(rec, start, future_of(clip), scene, seed)
            frames = rollout.frames[:, 0] / np.float32(255)
            found[variant.name].append(window_measures(variant.gen.codec, frames, truth))
            if variant.name not in strips:
                strips[variant.name] = frames[[t - 1 for t in shown]]
    curves = {
        name: {m: np.mean([one[m] for one in streets], axis=0).tolist() for m in MEASURES}
        for name, streets in found.items()
    }
    return Drift({name: _columns(curve) for name, curve in curves.items()}, curves, strips)


def street(index: int, seconds: int) -> Clip:
    """The protocol's street of a number."""
    rung, frames = ("easy", "full")[index % 2], 1 + round(seconds * RATE)
    return make_clip(FIRST_TEST_SEED + index // 2, rung, num_frames=frames, views=("front",))


def window_measures(
    codec: VideoCodec, frames: Frames, truth: Float[np.ndarray, "t h w 3"]
) -> dict[str, list[float]]:
    """Each measure in every window.

    Args:
        codec: Encodes both.
        frames: Generated, from the one after the first on.
        truth: With the first one.
    """
    length = round(WINDOW_SECONDS * RATE)
    measures: dict[str, list[float]] = {name: [] for name in MEASURES}
    for begin in range(0, len(frames), length):
        ours, theirs = frames[begin : begin + length], truth[1:][begin : begin + length]
        a, b = (_latent_statistics(codec, x) for x in (ours, theirs))
        gap = (a[0] - b[0]) / np.maximum(b[1], 1e-6)
        measures["latent mean"].append(float(np.sqrt(np.mean(gap**2))))
        measures["latent std"].append(float(a[1].mean() / b[1].mean()))
        measures["energy"].append(float(energy(ours).mean() / energy(theirs).mean()))
        measures["motion"].append(_motion(ours) / _motion(theirs))
        measures["border"].append(border_ratio(ours) / border_ratio(theirs))
    return measures


def _latent_statistics(codec: VideoCodec, frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel."""
    whole = 1 + (len(frames) - 1) // 4 * 4
    latents = np.asarray(codec.encode(frames[None, :whole]), np.float64)[0]
    return latents.mean((0, 1, 2)), latents.std((0, 1, 2))


def _motion(frames: Frames) -> float:
    return float(np.mean(np.diff(frames, axis=0) ** 2))


def _columns(curve: dict[str, list[float]]) -> dict[str, float]:
    columns = {}
    for name in MEASURES:
        columns[f"{name}, first"] = round(curve[name][0], 3)
        columns[f"{name}, last"] = round(curve[name][-1], 3)
        if name in RATIOS:
            columns[f"{name}, ratio"] = round(curve[name][-1] / curve[name][0], 3)
    return columns
