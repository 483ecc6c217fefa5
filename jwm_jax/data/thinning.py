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

MODEL_RATE = 10.0
"""Frames a second that the video models know."""

FASTER = 1.1
"""How much faster than asked a drive has to be for frames to be left out."""


def thinned(clip: Clip, rate: float = MODEL_RATE, say: Callable[[str], None] = print) -> Clip:
    """The clip at about a rate, by leaving out frames; as it is where it is not faster.

    Args:
        clip: The drive; the times of its first view count.
        rate: Frames a second.
        say: Gets a line where frames are left out.
    """
    if clip.rate <= FASTER * rate:
        return clip
    kept = clip.select(frames=nearest_frames(clip.times[:, 0], rate))
    say(
        f"{clip.name}: using {kept.num_frames} of {clip.num_frames} frames, those nearest to "
        f"{rate:g} a second."
    )
    return kept


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


def clips_at_rate(specs: Iterable[str], say: Callable[[str], None] = print) -> Iterator[Clip]:
    """Real drives for a training, one after the other, at `MODEL_RATE`.

    Args:
        specs: Clips as `load_clip` takes them; `$NAME` is replaced by the environment variable.
        say: Gets a line for each drive of which frames are left out.

    Raises:
        UsageError: A spec names no format.
        DataError: A drive is missing or broken.
    """
    for spec in specs:
        yield thinned(load_clip(os.path.expandvars(spec)), say=say)
