"""Video files come at the asked size and rate, and bad ones are named."""

import struct

import numpy as np
import pytest

from jwm_jax.data import load_clip
from jwm_jax.data.thinning import clips_at_rate, thinned
from jwm_jax.data.video import FIELD_OF_VIEW
from jwm_jax.errors import DataError, UsageError
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


def test_a_video_is_a_clip_without_poses_in_its_own_size_and_times(folder):
    clip = load_clip(f"video:{folder}/drive.mp4")
    assert clip.view(0).shape == (FRAMES, 64, 128, 3) and clip.view(0).dtype == np.uint8
    np.testing.assert_allclose(greys(clip.view(0)), 15 * np.arange(FRAMES), atol=4)
    np.testing.assert_allclose(clip.times[:, 0], np.arange(FRAMES) / 24, atol=1e-3)
    assert not clip.posed and clip.name == "drive"
    with pytest.raises(DataError, match="drive: a trip needs to know where the vehicle went"):
        clip.require_poses("a trip")


def test_options_give_the_field_of_view_and_a_part(folder):
    clip = load_clip(f"video:{folder}/drive.mp4?fov=90&start=0.25&frames=3")
    np.testing.assert_allclose(clip.cameras[0].K, [[64, 0, 64], [0, 64, 32], [0, 0, 1]])
    np.testing.assert_allclose(clip.times[:, 0], np.array([6, 7, 8]) / 24, atol=1e-3)
    wide = load_clip(f"video:{folder}/drive.mp4").cameras[0]
    np.testing.assert_allclose(np.degrees(2 * np.arctan(64 / wide.K[0, 0])), FIELD_OF_VIEW)


@pytest.mark.parametrize("option", ["fov=0", "fov=wide", "frames=0", "start=-1", "start=nan"])
def test_options_out_of_range_are_refused(folder, option):
    key, text = option.split("=")
    with pytest.raises(UsageError, match=f"{key} must be a (whole )?number from .*, got '{text}'"):
        load_clip(f"video:{folder}/drive.mp4?{option}")


def test_unknown_options_and_an_empty_part_are_named(folder):
    with pytest.raises(UsageError, match="unknown option 'fps'; known: fov, start, frames"):
        load_clip(f"video:{folder}/drive.mp4?fps=3")
    with pytest.raises(DataError, match="holds no video frame after second 60"):
        load_clip(f"video:{folder}/drive.mp4?start=60")


def test_a_longer_video_than_memory_holds_is_refused(folder, monkeypatch):
    monkeypatch.setattr("jwm_jax.data.video.MOST_BYTES", 5 * 64 * 128 * 3)
    with pytest.raises(DataError, match=r"more than 6 frames.*read a part of it: video:.*frames=3"):
        load_clip(f"video:{folder}/drive.mp4")


def test_of_a_faster_drive_the_frames_nearest_to_the_rate_are_kept(folder, monkeypatch, capsys):
    monkeypatch.setenv("DRIVES", str(folder))
    (clip,) = clips_at_rate(["video:$DRIVES/drive.mp4"])
    kept = [0, 2, 5, 7, 10]  # of k / 24 s, the nearest to 0, 0.1, ..., 0.4
    np.testing.assert_allclose(clip.times[:, 0], np.array(kept) / 24, atol=1e-3)
    np.testing.assert_allclose(greys(clip.view(0)), 15 * np.array(kept), atol=4)
    assert "drive: using 5 of 12 frames" in capsys.readouterr().out
    assert thinned(clip) is clip


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
    return path, load_clip(f"video:{path}").view(0)[0]


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
    clip = load_clip("video:" + turned(path, tmp_path / "a.mp4", matrix))
    np.testing.assert_array_equal(clip.view(0)[0], TURNS[matrix](stored))


def test_an_upright_film_has_more_rows_than_columns(folder, tmp_path):
    name = turned(folder / "drive.mp4", tmp_path / "a.mp4", (0, 1, -1, 0))
    assert load_clip(f"video:{name}").view(0).shape == (FRAMES, 128, 64, 3)


def test_a_turn_by_less_than_a_quarter_is_refused(square, tmp_path):
    name = turned(square[0], tmp_path / "a.mp4", (0.7071, 0.7071, -0.7071, 0.7071))
    with pytest.raises(DataError, match=r"a\.mp4 is to be shown turned by -45 degrees"):
        load_clip(f"video:{name}")


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.mp4 does not exist"):
        load_clip(f"video:{tmp_path}/none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4 is not a video that can be decoded"):
        load_clip(f"video:{tmp_path}/text.mp4")
