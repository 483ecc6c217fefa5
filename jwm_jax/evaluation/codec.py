"""Protocol `streets-codec-v1`: what is lost by encoding and decoding.

Streets of seeds that no training has seen, front view, 25 frames of 96x160 at 10 Hz; the whole
clip is encoded and decoded. PSNR is taken per clip over all frames, over the first frame alone, and
over the clip's layout frames, and averaged over clips.
"""

from collections.abc import Iterable

import numpy as np

from jwm_jax.evaluation.images import psnr
from jwm_jax.scene import Clip, clip_layout
from jwm_jax.worldgen import VideoCodec

PROTOCOL = "streets-codec-v1"


def codec_rows(codec: VideoCodec, clips: Iterable[Clip]) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB of pictures, first frames and layout frames.

    Args:
        codec: To score.
        clips: One-view clips of 1 + 4k frames with boxes or a lane map.
    """
    scores = []
    for clip in clips:
        layout = clip_layout(clip)[0]
        pictures, drawn = (v.astype(np.float32) / 255.0 for v in (clip.view(0), layout))
        decoded = np.asarray(codec.decode(codec.encode(np.stack([pictures, drawn]))))
        scores.append(
            [
                psnr(decoded[0], pictures),
                psnr(decoded[0, 0], pictures[0]),
                psnr(decoded[1], drawn),
            ]
        )
    means = np.asarray(scores, np.float64).mean(axis=0).round(2).tolist()
    return {"PSNR, dB": dict(zip(("pictures", "first frame", "layout"), means, strict=True))}
