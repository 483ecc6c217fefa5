"""Training videos of the codec, held in memory: streets, their layout frames, real drives and
stills.

A batch of crops is a function of (seed, step) alone, so a resumed run continues with the crops that
it would have seen.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float32, UInt8
from PIL import Image

from jwm_jax.data.files import IMAGE_SUFFIXES, read_image, require_folder
from jwm_jax.errors import DataError
from jwm_jax.files import entries
from jwm_jax.scene.clip import fitted_size
from jwm_jax.worldgen.codec_network import FRAMES_PER_LATENT, PIXELS_PER_LATENT


@dataclass(frozen=True)
class VideoPool:
    """Videos in memory, in groups that are drawn from with given shares.

    Attributes:
        videos: for each group, uint8 videos [T, H, W, 3] of any sizes.
        shares: for each group, the probability that a crop comes from it; they sum to 1.
    """

    videos: dict[str, list[np.ndarray]]
    shares: dict[str, float]


def make_pool(groups: Mapping[str, Sequence[np.ndarray]], shares: Mapping[str, float]) -> VideoPool:
    """Keeps the groups that hold videos and scales their shares to sum to 1.

    Raises:
        DataError: no group holds a video.
    """
    videos = {name: list(group) for name, group in groups.items() if len(group)}
    total = sum(shares[name] for name in videos)
    if not videos or total <= 0:
        raise DataError("there is no video to train the codec on: every source is empty.")
    return VideoPool(videos, {name: shares[name] / total for name in videos})


def standing_videos(
    folder: str | os.PathLike[str], rows: int, frames: int
) -> list[UInt8[np.ndarray, "frames rows width 3"]]:
    """Pictures as videos that stand still: texture, where there are few drives.

    Args:
        folder: Of pictures, each with its own aspect; "$NAME" is replaced by the environment
            variable.
        rows: Rows of the videos; widths are multiples of 8.
        frames: Frames, which share one picture's memory.

    Raises:
        DataError: The folder is missing, holds no picture or a broken one.
    """
    path = require_folder(os.path.expandvars(os.fspath(folder)), "pictures")
    files = [file for file in entries(path) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise DataError(f"{path} holds no picture ({', '.join(IMAGE_SUFFIXES)}).")
    videos = []
    for picture in map(read_image, files):
        height, width = fitted_size(*picture.shape[:2], rows, PIXELS_PER_LATENT)
        small = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
        videos.append(np.broadcast_to(np.asarray(small), (frames, height, width, 3)))
    return videos


def sample_crops(
    pool: VideoPool, batch: int, frames: int, height: int, width: int, seed: int, step: int
) -> UInt8[np.ndarray, "batch frames height width 3"]:
    """Draws random crops, half of them mirrored left to right.

    Within a group every place of a crop is as likely as any other, so a long drive gives more of
    them. Rows start at multiples of 8, so that the patch grid lies as it does in whole frames.

    Args:
        pool: videos of at least this many frames and this size.
        batch: number of crops.
        frames: frames of a crop, 1 + 4k.
        height: rows of a crop.
        width: columns of a crop.
        seed: seed of the run.
        step: training step; the crops depend on (seed, step) only.
    """
    random = np.random.default_rng((seed, step))
    names = sorted(pool.videos)
    probabilities = [pool.shares[name] for name in names]
    crops = []
    for _ in range(batch):
        group = pool.videos[names[random.choice(len(names), p=probabilities)]]
        places = np.array([(len(v) - frames + 1) * (v.shape[2] - width + 1) for v in group], float)
        video = group[random.choice(len(group), p=places / places.sum())]
        time = random.integers(video.shape[0] - frames + 1)
        row = (
            random.integers((video.shape[1] - height) // PIXELS_PER_LATENT + 1) * PIXELS_PER_LATENT
        )
        column = random.integers(video.shape[2] - width + 1)
        crop = video[time : time + frames, row : row + height, column : column + width]
        if random.random() < 0.5:
            crop = crop[:, :, ::-1]
        crops.append(crop)
    return np.stack(crops)


def sample_patches(pool: VideoPool, count: int, seed: int) -> Float32[np.ndarray, "n patch"]:
    """Patches of groups of four frames, in the order of `space_to_depth`, for the linear base.

    A third of the groups are one frame repeated, as the first frame of a clip is.

    Args:
        pool: videos.
        count: number of groups of 48 x 96 pixels to take patches from (72 each).
        seed: seed of the run.

    Returns:
        Values in [0, 1], [72 count, 768].
    """
    crops = sample_crops(pool, count, FRAMES_PER_LATENT, 48, 96, seed, 2**31)
    groups = crops.astype(np.float32) / 255.0
    groups[::3] = groups[::3, -1:]
    p = PIXELS_PER_LATENT
    return rearrange(groups, "n t (h p) (w q) c -> (n h w) (p q t c)", p=p, q=p)
