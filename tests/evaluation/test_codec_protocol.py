"""Protocol `streets-codec-v1` on a codec whose error is known."""

import numpy as np
import pytest

from jwm_jax.data.streets import make_clip
from jwm_jax.evaluation.codec import codec_rows
from jwm_jax.worldgen import VideoCodec


class Shifting(VideoCodec):
    """Loses nothing but a constant, which is smaller in the first frame."""

    def __init__(self):
        pass

    def encode(self, video):
        return video

    def decode(self, latents):
        error = np.full(latents.shape[-4], 0.1, np.float32)
        error[0] = 0.01
        towards_grey = np.where(latents > 0.5, -1, 1).astype(np.float32)
        return latents + towards_grey * error[:, None, None, None]


def test_rows_are_of_pictures_first_frames_and_layouts():
    clip = make_clip(1, "easy", num_frames=5, height=32, width=48, views=("front",))
    row = codec_rows(Shifting(), [clip, clip])["PSNR, dB"]
    whole = 10 * np.log10(5 / (4 * 0.01 + 0.0001))
    assert row["first frame"] == pytest.approx(40.0, abs=0.01)
    assert row["pictures"] == pytest.approx(whole, abs=0.01)
    assert row["layout"] == pytest.approx(whole, abs=0.01)
