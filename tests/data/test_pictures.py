"""Pictures come the way up and as bright as they were taken."""

import io

import numpy as np
import pytest
from PIL import Image

from jwm_jax.data.files import lens_of_pictures, read_image
from jwm_jax.errors import DataError
from jwm_jax.scene import shift_half_pixel

ORIENTATION = 0x0112
STORED = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.swapaxes(0, 1),
    6: lambda up: np.rot90(up, 1),
    7: lambda up: up[::-1, ::-1].swapaxes(0, 1),
    8: lambda up: np.rot90(up, -1),
}
"""How a camera stores an upright picture for each EXIF orientation (TIFF 6.0, tag 274)."""


def smooth(height=24, width=40):
    """Every corner of its own colour, so that no two ways up look alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 250 // width, y * 250 // height, (x + y) * 2], -1).astype(np.uint8)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_exif_orientation_is_turned_upright(tmp_path, suffix, orientation):
    upright, exif = smooth(), Image.Exif()
    exif[ORIENTATION] = orientation
    exact = {"jpg": {"quality": 98, "subsampling": 0}, "png": {}, "webp": {"lossless": True}}
    path = tmp_path / f"a.{suffix}"
    stored = np.ascontiguousarray(STORED[orientation](upright))
    Image.fromarray(stored).save(path, exif=exif, **exact[suffix])
    got = read_image(path)
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).mean() < (3 if suffix == "jpg" else 1e-9)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_broken_exif_leaves_the_picture_as_it_is(tmp_path, exif):
    path = tmp_path / "a.png"
    Image.fromarray(smooth()).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), smooth())


def test_16_bit_grey_keeps_its_order_and_range(tmp_path):
    path, levels = tmp_path / "a.png", np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(levels).save(path)
    got = read_image(path)
    assert got.shape == (20, 30, 3) and (got[0, 0] == 0).all() and (got[-1, -1] == 255).all()
    np.testing.assert_allclose(got[..., 1], levels / 257.0, atol=1.0)


def test_pixels_without_a_known_white_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path, "tiff")
    with pytest.raises(DataError, match=r"a\.png: this image has 32 bits a pixel"):
        read_image(path)


def test_bytes_are_named_as_asked():
    with pytest.raises(DataError, match="frame 3: this image cannot be decoded"):
        read_image(io.BytesIO(b"GIF89a"), "frame 3")


K = shift_half_pixel(np.array([[721.5, 0, 609.6], [0, 721.5, 172.9], [0, 0, 1]]))


@pytest.mark.parametrize("size", [(1490, 450), (932, 281), (621, 188), (640, 192)])
def test_k_follows_a_plain_resize_and_says_so(size):
    lens, notes = lens_of_pictures(K, (1242, 375), np.zeros((1, *size[::-1], 3)), "calib: S_rect")
    scale = np.array([[size[0] / 1242], [size[1] / 375], [1]])
    np.testing.assert_allclose(lens.K, K * scale)
    assert (lens.width, lens.height) == size
    assert "calib: S_rect says 1242x375: K was scaled" in notes[0]


@pytest.mark.parametrize("size", [(1216, 352), (375, 1242), (512, 256)])
def test_what_is_no_plain_resize_keeps_the_calibrated_size(size):
    """Which `check_clip` then refuses, since it is not that of the pictures."""
    lens, notes = lens_of_pictures(K, (1242, 375), np.zeros((1, *size[::-1], 3)), "calib")
    assert (lens.width, lens.height) == (1242, 375) and notes == ()
    np.testing.assert_array_equal(lens.K, K)
