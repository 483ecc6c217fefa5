"""Fewer frames of a drive that is faster than a model.

Of a drive at 15 or 30 Hz a model of 10 Hz gets the frames nearest to the multiples of 0.1 s after
the first one, with their true times.
"""

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float

from jwm_jax.data import load_clip
from jwm_jax.scene.clip import Clip

FASTER = 1.1
"""How much faster than asked a drive has to be for frames to be left out."""


def thinned(clip: Clip, rate: float) -> Clip:
    """The clip at about a rate, by leaving out frames; as it is where it is not faster.

    Args:
        clip: The drive; the times of its first view count.
        rate: Frames a second.
    """
    if clip.rate <= FASTER * rate:
        return clip
    return clip.select(frames=nearest_frames(clip.times[:, 0], rate))


def nearest_frames(times: Float[np.ndarray, "t"], rate: float) -> list[int]:
    """Indices of the frames nearest to the first time plus 0, 1/rate, 2/rate, ..., each once.

    Args:
        times: Seconds, rising.
        rate: Frames a second.
    """
    end = times[-1] - times[0] + 0.5 * np.median(np.diff(times))
    wanted = np.arange(0.0, end, 1.0 / rate) + times[0]
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    nearer_before = wanted - times[after - 1] <= times[after] - wanted
    return sorted(set((after - nearer_before).tolist()))


def clips_at_rate(
    specs: Iterable[str], rate: float, say: Callable[[str], None] = print
) -> Iterator[Clip]:
    """Real drives for a training, one after the other, at the model's rate.

    Args:
        specs: Clips as `load_clip` takes them; `$NAME` is replaced by the environment variable.
        rate: Frames a second of the model.
        say: Gets a line for each clip.

    Raises:
        UsageError: A spec names no format.
        DataError: A drive is missing or broken.
    """
    for spec in specs:
        clip = load_clip(os.path.expandvars(spec))
        kept = thinned(clip, rate)
        seconds = kept.times[-1, 0] - kept.times[0, 0]
        mean = (kept.num_frames - 1) / seconds if seconds else 0.0
        say(f"{clip.name}: {kept.num_frames} of {clip.num_frames} frames, {mean:.3g} a second")
        yield kept
