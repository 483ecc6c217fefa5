"""Video files come at the asked size and rate, and bad ones are named."""

import struct

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


TURNS = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: p[::-1, ::-1].swapaxes(0, 1),
}
"""What a player shows of a stored picture, by a, b, c, d of the track's matrix (ISO 14496-12)."""


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """A square video whose quarters differ, and what its frames look like without a matrix."""
    if not has_h264():
        pytest.skip("PyAV has no H.264 encoder here")
    path = tmp_path_factory.mktemp("turned") / "square.mp4"
    quarters = np.kron(np.uint8([[30, 90], [150, 220]]), np.ones((32, 32), np.uint8))
    write_video(path, np.repeat(quarters[None, ..., None], 3, axis=3).repeat(2, axis=0), 10)
    return path, read_video(str(path), 64, without="it")[0]


def turned(path, to, matrix):
    """The file with another matrix in its track header."""
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 44
    a, b, c, d = (round(0x10000 * x) for x in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    to.write_bytes(content)
    return str(to)


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_shown_as_the_display_matrix_says(square, tmp_path, matrix):
    path, stored = square
    video = read_video(turned(path, tmp_path / "a.mp4", matrix), 64, without="it")
    np.testing.assert_array_equal(video[0], TURNS[matrix](stored))


def test_an_upright_film_has_more_rows_than_columns(folder, tmp_path):
    name = turned(folder / "drive.mp4", tmp_path / "a.mp4", (0, 1, -1, 0))
    assert read_video(name, 64, without="it").shape == (FRAMES, 64, 32, 3)


def test_a_turn_by_less_than_a_quarter_is_refused(square, tmp_path):
    name = turned(square[0], tmp_path / "a.mp4", (0.7071, 0.7071, -0.7071, 0.7071))
    with pytest.raises(DataError, match=r"a\.mp4 is to be shown turned by -45 degrees"):
        read_video(name, 64, without="it")


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.mp4 does not exist; leave it out with --set x="):
        read_video(str(tmp_path / "none.mp4"), 32, without="--set x=")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4 is not a video that can be decoded"):
        read_video(str(tmp_path / "text.mp4"), 32, without="it")
