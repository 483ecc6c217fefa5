"""A made-up nuScenes key frame: what does not fit together is refused and named."""

import numpy as np
import pytest
from PIL import Image

from jwm_jax.data import load_clip
from jwm_jax.data.checks import check_clip
from jwm_jax.errors import DataError


def write_sample(folder, **changes):
    """Two cameras, one box, twenty points; `changes` replace arrays of sample.npz."""
    eye = np.stack([np.eye(4)] * 2)
    lens = np.array([[16.0, 0, 7.5], [0, 16, 4], [0, 0, 1]])
    arrays = {
        "cams": np.array(["left", "right"]),
        "K": np.stack([lens, lens]),
        "width": 16,
        "height": 9,
        "cam2ego": eye,
        "ego2global_at_cam": eye,
        "cam_t": np.array([0.0, 0.01]),
        "image_files": np.array(["left.png", "right.png"]),
        "lidar_t": 0.0,
        "lidar_file": "points.bin",
        "lidar2ego": np.eye(4),
        "ego2global_at_lidar": np.eye(4),
        "boxes_lidar": np.array([[5.0, 0, 0, 4, 2, 1.5, 0]]),
        "box_label": np.array([0]),
        "box_velocity": np.zeros((1, 2)),
        "class_names": np.array(["car"]),
    }
    np.savez(folder / "sample.npz", **(arrays | changes))
    for name in ("left", "right"):
        Image.new("RGB", (16, 9), "grey").save(folder / f"{name}.png")
    np.ones((20, 5), np.float32).tofile(folder / "points.bin")
    return f"nuscenes:{folder}"


def test_arrays_of_unequal_length_are_refused_and_never_broadcast(tmp_path):
    write_sample(tmp_path)
    with np.load(tmp_path / "sample.npz") as file:
        arrays = dict(file)
    for name, array in arrays.items():
        if array.ndim and name != "class_names":
            other = np.concatenate([array, array]) if len(array) == 1 else array[:1]
            with pytest.raises(DataError, match=r"sample\.npz: \w+ has shape"):
                load_clip(write_sample(tmp_path, **{name: other}))
    assert load_clip(write_sample(tmp_path)).num_views == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cams": np.zeros(2)}, "cams holds float64, expected text"),
        ({"width": np.nan}, r"width and height are \(nan, 9.0\)"),
        ({"lidar_file": np.array(["a", "b"])}, r"lidar_file has shape \[2\], expected a single"),
        ({"boxes_lidar": np.zeros((1, 6))}, "boxes_lidar has 6 columns"),
        ({"box_label": np.array([7])}, "expected box_label to hold 1 indices of the 1 class_names"),
        ({"image_files": np.array(["../left.png", "b"])}, "points out of the folder"),
    ],
)
def test_broken_values_are_named(tmp_path, change, message):
    with pytest.raises(DataError, match=rf"sample\.npz: .*{message}"):
        load_clip(write_sample(tmp_path, **change))


def test_no_boxes_are_no_fault(tmp_path):
    none = {"boxes_lidar": np.zeros((0, 7)), "box_label": np.zeros(0, int)}
    clip = load_clip(write_sample(tmp_path, **none, box_velocity=np.zeros((0, 2))))
    assert clip.tracks.num_tracks == 0


def test_k_follows_pictures_that_were_resized(tmp_path):
    clip = load_clip(write_sample(tmp_path, width=32, height=18))
    np.testing.assert_allclose(clip.cameras[1].K[:2], [[8, 0, 4], [0, 8, 2.25]])
    assert any("says 32x18: K was scaled" in f.message for f in check_clip(clip))
    with pytest.raises(DataError, match="its calibration is for 9x16, which is no plain resize"):
        load_clip(write_sample(tmp_path, width=9, height=16))
