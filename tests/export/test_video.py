"""Videos hold the frames they were given; mosaics put views where they belong."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from jwm_jax.errors import ResourceError, UsageError
from jwm_jax.export import error_picture, label_picture, model_card, rig_mosaic, write_video
from jwm_jax.export import video as video_file
from jwm_jax.export.pictures import to_uint8


def gradient(frames=6, height=32, width=48):
    """Smooth pictures that brighten from frame to frame."""
    x = np.linspace(0, 100, width)[None, None, :, None]
    t = 20.0 * np.arange(frames)[:, None, None, None]
    return np.broadcast_to(x + t, (frames, height, width, 3)).astype(np.uint8)


def read(path):
    import av

    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        return np.stack(frames), float(rate), container.streams.video[0].pix_fmt


def test_mp4_keeps_frames_rate_and_order(tmp_path):
    frames = gradient()
    path = write_video(tmp_path / "a.mp4", frames, 12.5)
    got, rate, pixels = read(path)
    assert got.shape == frames.shape and rate == 12.5 and pixels == "yuv420p"
    assert np.abs(got.astype(int) - frames.astype(int)).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


RATES = (1 / 60, 0.1, np.float32(12.5), np.int64(7), Fraction(30000, 1001), Decimal("59.94"), 1000)


@pytest.mark.parametrize("rate", RATES)
def test_a_rate_of_any_kind_of_number_is_kept(tmp_path, rate):
    got, kept, _ = read(write_video(tmp_path / "a.mp4", gradient(3, 16, 16), rate))
    assert kept == pytest.approx(float(rate), rel=1e-6) and len(got) == 3


@pytest.mark.parametrize("rate", [1e-8, 1e9, -5, np.nan, np.inf])
def test_rates_that_no_video_has_are_refused(tmp_path, rate):
    for suffix in (".mp4", ".webp", ".gif", ".png"):
        with pytest.raises(UsageError, match="frames a second from 1/60 to 1"):
            write_video(tmp_path / f"a{suffix}", gradient(2, 16, 16), rate)
    assert not list(tmp_path.iterdir())


def test_a_gif_does_not_hold_a_rate_that_it_would_round_away(tmp_path):
    with pytest.raises(UsageError, match="to 100, got 240"):
        write_video(tmp_path / "a.gif", gradient(2, 16, 16), 240)


def test_odd_sizes_and_floats(tmp_path):
    frames = gradient(3, 31, 47) / np.float32(255)
    got, _, _ = read(write_video(tmp_path / "a.mp4", frames, 10))
    assert got.shape == (3, 32, 48, 3)
    assert np.abs(got[:, :31, :47] / 255 - frames).mean() < 0.02


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_animated_pictures(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", gradient(), 10)
    with Image.open(path) as picture:
        assert picture.n_frames == 6 and picture.size == (48, 32)


def test_without_an_encoder_an_animated_picture_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(video_file, "has_h264", lambda: False)
    path = write_video(tmp_path / "a.mp4", gradient(), 10)
    assert path.name == "a.webp" and path.is_file()


def test_bad_requests(tmp_path):
    with pytest.raises(UsageError, match=r"\.mp4"):
        write_video(tmp_path / "a.avi", gradient(), 10)
    with pytest.raises(UsageError, match="positive"):
        write_video(tmp_path / "a.mp4", gradient(), 0.0)
    with pytest.raises(ResourceError, match="cannot be written"):
        write_video(tmp_path / "absent" / "a.mp4", gradient(), 10)
    with pytest.raises(ValueError, match="h, w, 3"):
        to_uint8(np.zeros((4, 4)))


def test_mosaic_puts_views_where_a_driver_looks():
    names = ("CAM_BACK", "CAM_FRONT_LEFT", "CAM_BACK_RIGHT", "CAM_FRONT", "CAM_FRONT_RIGHT")
    views = [np.full((4, 6, 3), 40 * i + 40, np.uint8) for i in range(5)]
    sheet = rig_mosaic(views, names, labels=False)
    assert sheet.shape == (8, 18, 3)
    cells = [[int(sheet[r, c, 0]) for c in (3, 9, 15)] for r in (2, 6)]
    assert cells[0] == [80, 160, 200] and cells[1][1:] == [40, 120]
    assert cells[1][0] < 40  # nobody looks back left


def test_mosaic_of_videos_of_unequal_sizes():
    views = [np.zeros((2, 8, 12, 3), np.uint8), np.ones((2, 4, 8, 3), np.float32)]
    assert rig_mosaic(views, ("a", "b")).shape == (2, 8, 28, 3)
    assert rig_mosaic(views[:1], ("a",)).shape == (2, 8, 12, 3)


def test_labels_touch_only_their_corner():
    picture = np.full((40, 80, 3), 200, np.uint8)
    labelled = label_picture(picture, "ab")
    assert (labelled[20:] == 200).all() and (labelled[:, 30:] == 200).all()
    assert labelled[:14, :22].min() < 100 and (picture == 200).all()


def test_error_picture_is_black_where_equal_and_white_at_full_scale():
    truth = np.zeros((2, 2, 3), np.uint8)
    wrong = truth.copy()
    wrong[0, 0] = 255
    picture = error_picture(wrong, truth)
    assert picture[0, 0].min() > 150 and picture[1, 1].max() < 10


def test_model_card_has_its_parts():
    card = model_card(
        "codec-tiny",
        "A codec.",
        {"data": "streets"},
        [("PSNR", "28 dB", "jwm evaluate")],
        ["Small."],
    )
    assert card.startswith("# codec-tiny\n") and "- **data**: streets" in card
    assert "| PSNR | 28 dB | jwm evaluate |" in card and "- Small." in card
