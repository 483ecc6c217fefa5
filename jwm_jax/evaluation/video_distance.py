"""Distances between sets of clips: Frechet video distance (FVD) and kernel video distance (KVD).

Both compare what I3D says of generated clips with what it says of real ones (`jwm_jax.nn.i3d`, the
400 logits; arXiv 1812.01717). FVD takes both sets for Gaussians, and its estimate falls with the
number of clips; KVD is the unbiased squared maximum mean discrepancy with the kernel
(x.y / 400 + 1)^3 and does not. Networks and resizing differ between papers, so neither is to be
compared with a figure that another program printed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
from jaxtyping import Float

from jwm_jax.errors import UsageError
from jwm_jax.nn.i3d import i3d, load_i3d

FEWEST_CLIPS = 128
"""Below this many the distances say more about the number than about the clips."""

RESAMPLES = 200
"""Bootstrap samples behind an interval."""

INTERVAL = (2.5, 97.5)
"""Percentiles of an interval."""

Features = Float[np.ndarray, "_ d"]


@dataclass(frozen=True)
class Distance:
    """A distance and its bootstrap interval over clips.

    Attributes:
        value: Of all clips.
        low: 2.5th percentile of the resampled ones, shifted to be centred on the value.
        high: 97.5th.
    """

    value: float
    low: float
    high: float


def clip_features(
    clips: Iterable[Float[np.ndarray, "t h w 3"]], batch: int = 4
) -> Float[np.ndarray, "n 400"]:
    """What I3D says of clips in [0, 1] of one size.

    Args:
        clips: Read as they are needed.
        batch: Clips that are run together.

    Raises:
        DataError: The weights are missing.
    """
    run, features, waiting = _network(), [], []

    def flush() -> None:
        if waiting:
            filled = waiting + waiting[-1:] * (batch - len(waiting))
            features.append(np.asarray(run(np.stack(filled)))[: len(waiting)])
            waiting.clear()

    for clip in clips:
        waiting.append(np.asarray(clip, np.float32))
        if len(waiting) == batch:
            flush()
    flush()
    return np.concatenate(features)


@cache
def _network() -> Callable[[np.ndarray], jax.Array]:
    """I3D with its weights, read and compiled once."""
    params, run = load_i3d(), jax.jit(i3d)
    return lambda clips: run(params, clips)


def frechet_distance(a: Features, b: Features) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    gap = a.mean(0) - b.mean(0)
    # Of centred rows X with A = X^T X, tr (A B)^(1/2) is the sum of singular values of X Y^T.
    x, y = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (a, b))
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(gap @ gap + (x**2).sum() + (y**2).sum() - 2.0 * shared)


def kernel_distance(a: Features, b: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / a.shape[1] + 1.0) ** 3

    def without_itself(x: np.ndarray) -> float:
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(without_itself(a) + without_itself(b) - 2.0 * kernel(a, b).mean())


def with_interval(
    distance: Callable[[Features, Features], float], generated: Features, real: Features
) -> Distance:
    """A distance with its bootstrap interval over clips; clip i of both sets is drawn together.

    Args:
        distance: `frechet_distance` or `kernel_distance`.
        generated: Features of generated clips.
        real: Features of real clips, as many, of the same drives in the same order.

    Raises:
        UsageError: Fewer clips than `FEWEST_CLIPS`, or different numbers of them.
    """
    if len(generated) != len(real) or len(real) < FEWEST_CLIPS:
        raise UsageError(
            f"video distances need at least {FEWEST_CLIPS} clips on both sides, and as many on "
            f"each, got {len(generated)} and {len(real)}."
        )
    random = np.random.default_rng(0)
    value = distance(generated, real)
    drawn = []
    for _ in range(RESAMPLES):
        rows = random.integers(len(real), size=len(real))
        drawn.append(distance(generated[rows], real[rows]))
    # Resampling repeats clips, which raises both estimates: only the spread is taken from it.
    low, high = np.percentile(drawn, INTERVAL) - np.mean(drawn) + value
    return Distance(value, float(low), float(high))
