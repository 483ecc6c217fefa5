"""Video files come at the asked size and rate, and bad ones are named."""

import numpy as np
import pytest

from jwm_jax.data.video import read_video
from jwm_jax.errors import DataError
from jwm_jax.export.video import has_h264, write_video

FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video of 24 frames a second, each of its own grey with a bright left quarter."""
    if not has_h264():
        pytest.skip("PyAV has no H.264 encoder here")
    folder = tmp_path_factory.mktemp("video")
    frames = np.zeros((FRAMES, 64, 128, 3), np.uint8) + 15 * np.arange(FRAMES)[:, None, None, None]
    frames[:, :, :32] = 250
    write_video(folder / "drive.mp4", frames.astype(np.uint8), 24)
    return folder


def greys(video):
    return video[:, :, video.shape[2] // 2].mean((1, 2))


def test_every_frame_at_its_own_aspect(folder):
    video = read_video(str(folder / "drive.mp4"), 32, without="it")
    assert video.shape == (FRAMES, 32, 64, 3) and video.dtype == np.uint8
    np.testing.assert_allclose(greys(video), 15 * np.arange(FRAMES), atol=4)
    assert read_video(str(folder / "drive.mp4"), 22, without="it").shape[2] == 48


def test_a_lower_rate_and_the_middle_columns(folder, monkeypatch):
    monkeypatch.setenv("DRIVES", str(folder))
    video = read_video("$DRIVES/drive.mp4", 32, 40, rate=10.0, without="it")
    assert video.shape == (FRAMES // 2, 32, 40, 3)
    np.testing.assert_allclose(greys(video), 30 * np.arange(FRAMES // 2), atol=4)
    left = np.flatnonzero(video[0, 16, :, 0] < 128)[0]
    assert left == 16 - (64 - 40) // 2


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.mp4 does not exist; leave it out with --set x="):
        read_video(str(tmp_path / "none.mp4"), 32, without="--set x=")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4 is not a video that can be decoded"):
        read_video(str(tmp_path / "text.mp4"), 32, without="it")
