"""Each thing that can be wrong with a clip is found, named, and nothing else is."""

import re
from dataclasses import replace

import numpy as np
import pytest
from plain_clips import plain_clip

from jwm_jax.data import load_clip
from jwm_jax.data.checks import check_clip, require_rigid, trim_frames, validate
from jwm_jax.errors import DataError, UsageError


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def lens(**changes):
    return replace(plain_clip().cameras[0], **changes)


CLIP = plain_clip()
ERRORS = {
    "NaN pose": (
        {"world_from_ego": changed(CLIP.world_from_ego, (2, 0, 3), np.nan)},
        "world_from_ego holds NaN",
    ),
    "scaled pose": (
        {"world_from_camera": changed(CLIP.world_from_camera, (1, 0, 0, 1), 3.0)},
        "world_from_camera is not a rotation",
    ),
    "mirrored pose": (
        {
            "world_from_ego": CLIP.world_from_ego
            * np.array([[1, 1, 1, 1], [-1] * 4, [1] * 4, [1] * 4])
        },
        "world_from_ego is mirrored",
    ),
    "times reversed": (
        {"times": CLIP.times[::-1].copy()},
        "times of view 'view0' are out of order: frame 1",
    ),
    "time twice": (
        {"times": changed(CLIP.times, (3, 1), CLIP.times[2, 1])},
        "times of view 'view1' are out of order: frame 3",
    ),
    "NaN time": ({"times": changed(CLIP.times, (0, 0), np.nan)}, "times hold NaN"),
    "boxes at no time": (
        {"tracks": replace(CLIP.tracks, times=np.array([100.0, np.nan]))},
        "times of the tracks hold NaN",
    ),
    "a category of its own": (
        {"tracks": replace(CLIP.tracks, category=np.array([99], np.int32))},
        "categories of the tracks must be 0 to 7",
    ),
    "skew": (
        {"cameras": (lens(), lens(K=np.array([[15.0, 0.3, 10], [0, 15, 6], [0, 0, 1]])))},
        "K of view 'view1' has a skew of 0.3",
    ),
    "boxes in milliseconds": (
        {"tracks": replace(CLIP.tracks, times=np.array([0.0, 100.0]))},
        "times of the tracks are 100 s apart .* milliseconds",
    ),
    "negative focal length": (
        {"cameras": (lens(), lens(K=np.diag([-15.0, 15, 1])))},
        "K of view 'view1' has focal lengths -15",
    ),
    "size of another lens": (
        {"cameras": (lens(width=21), lens())},
        "images of view 'view0' are 20x12 pixels, but its calibration is for 21x12",
    ),
    "lidar NaN": (
        {"lidar": (*CLIP.lidar[:4], changed(CLIP.lidar[4], (0, 0), np.nan))},
        "1 lidar scans hold NaN or infinity, the first is scan 4",
    ),
    "lidar count": ({"lidar": CLIP.lidar[:2]}, "lidar holds 2 scans for 5 frames"),
    "float images": (
        {"images": tuple(i.astype(np.float32) for i in CLIP.images)},
        "float32",
    ),
    "flat box": (
        {"tracks": replace(CLIP.tracks, sizes=np.array([[4.0, 0, 1.5]]))},
        "1 boxes have a size that is not positive",
    ),
    "NaN box": (
        {"tracks": replace(CLIP.tracks, centers=CLIP.tracks.centers * np.nan)},
        "1 tracks hold NaN",
    ),
    "no rotation": (
        {"tracks": replace(CLIP.tracks, quats=CLIP.tracks.quats * 0)},
        "1 tracks have quaternions of length 0",
    ),
    "ids twice": (
        {"tracks": replace(CLIP.tracks, ids=("a", "b"))},
        "not one name for each of 1: 2 given",
    ),
    "pose count": (
        {"world_from_ego": CLIP.world_from_ego[:3]},
        r"world_from_ego has shape \[3, 4, 4\], expected \[5, 4, 4\]",
    ),
}
WARNINGS = {
    "upside down": (
        {"world_from_camera": CLIP.world_from_camera @ np.diag([-1.0, -1, 1, 1])},
        "upside down",
    ),
    "principal point": (
        {"cameras": (lens(), lens(K=np.array([[15.0, 0, 500], [0, 15, 6], [0, 0, 1]])))},
        "principal point of view 'view1'",
    ),
    "K of a larger size": (
        {"cameras": (lens(), lens(K=np.array([[15.0, 0, 16], [0, 15, 6], [0, 0, 1]])))},
        "principal point of view 'view1'.* is far from the centre",
    ),
    "K of a smaller size": (
        {"cameras": (lens(), lens(K=np.array([[15.0, 0, 8], [0, 15, 4.8], [0, 0, 1]])))},
        r"may belong to another size, such as 16x10. Then multiply its first row by 20/16",
    ),
    "K of the turned picture": (
        {"cameras": (lens(), lens(K=np.array([[15.0, 0, 6], [0, 15, 8.5], [0, 0, 1]])))},
        "such as 12x17",
    ),
    "backward": (
        {"world_from_ego": CLIP.world_from_ego * [[1, 1, 1, -1], *[[1, 1, 1, 1]] * 3]},
        r"drives backward all the way \(2.0 m\).*multiply each from the right by diag",
    ),
    "what a reader took for granted": ({"notes": ("K was scaled.",)}, "^K was scaled.$"),
    "boxes of another clock": (
        {"tracks": CLIP.tracks.shifted(1000.0)},
        "of the tracks and of the frames are 999.6 s apart",
    ),
    "thousands of frames a second": (
        {"times": 100 + (CLIP.times - 100) * 1e-3, "world_from_ego": np.tile(np.eye(4), (5, 1, 1))},
        "the clip has 1e\\+04 frames a second",
    ),
    "too fast": (
        {"world_from_ego": changed(CLIP.world_from_ego, (4, 0, 3), 500.0)},
        "moves at",
    ),
    "missing frame": ({"times": CLIP.times + 3.0 * (np.arange(5) > 3)[:, None]}, "gap of 3.10 s"),
    "black image": (
        {"images": (changed(CLIP.images[0], 3, 0), CLIP.images[1])},
        "1 images of view 'view0' are black, the first is 3",
    ),
    "ground elsewhere": (
        {"lidar": tuple(s - np.float32([0, 0, 1.73, 0]) for s in CLIP.lidar)},
        r"z = -1.7 m",
    ),
}


UNITS = {"milli": 1e3, "micro": 1e6, "nano": 1e9}


@pytest.mark.parametrize("start", [0.0, 1.5e9])
@pytest.mark.parametrize("rate", [2, 10, 30])
@pytest.mark.parametrize("unit", UNITS)
def test_times_that_are_no_seconds_are_named_by_their_unit(unit, rate, start):
    times = (start + np.arange(5)[:, None] / rate + [0, 0.01]) * UNITS[unit]
    for one_view_only in (False, True):
        times[:, :1] = CLIP.times[:, :1] if one_view_only else times[:, :1]
        with pytest.raises(DataError, match=f"looks like {unit}seconds: times are in seconds"):
            validate(plain_clip(times=times, tracks=None))


@pytest.mark.parametrize("unit", UNITS)
def test_a_single_instant_shows_its_unit_too(unit):
    clip = plain_clip(frames=1, views=2, tracks=None)
    seconds = 1.5e9 + np.array([[0.0, 0.04]])
    validate(replace(clip, times=seconds))
    for times in (seconds * UNITS[unit], seconds[:, :1] * UNITS[unit] + [0.0, 0.0]):
        with pytest.raises(DataError, match=f"{unit}seconds"):
            validate(replace(clip, times=times))


def test_a_drive_that_only_turns_back_for_a_while_is_no_finding():
    x = np.array([0.0, 2.0, 4.0, 3.0, 2.5])
    ego = CLIP.world_from_ego.copy()
    ego[:, 0, 3] = x
    cameras = ego[:, None] @ (np.linalg.inv(CLIP.world_from_ego[0]) @ CLIP.world_from_camera[0])
    assert check_clip(plain_clip(world_from_ego=ego, world_from_camera=cameras)) == []


def test_a_good_clip_has_no_findings():
    assert check_clip(CLIP) == []
    assert validate(CLIP) is CLIP


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_found_and_refused(case):
    changes, message = ERRORS[case]
    broken = plain_clip(**changes)
    with pytest.raises(DataError, match=message):
        validate(broken)


@pytest.mark.parametrize("case", WARNINGS)
def test_strange_clips_are_only_warned_about(case):
    changes, message = WARNINGS[case]
    strange = plain_clip(**changes)
    findings = check_clip(strange)
    assert [f.severity for f in findings] == ["warning"] * len(findings)
    assert re.search(message, " ".join(f.message for f in findings))
    validate(strange)


@pytest.mark.parametrize(("have", "limit", "keep"), [(9, None, 9), (12, None, 9), (13, 12, 9)])
def test_trimming_keeps_1_plus_4k_frames_and_says_so(have, limit, keep):
    said = []
    clip = plain_clip(frames=have)
    trimmed = trim_frames(clip, limit, said.append)
    assert trimmed.num_frames == keep
    assert (trimmed is clip) == (have == keep)
    assert said == ([] if have == keep else [said[0]])
    assert all(f"first {keep} of {have} frames: the video model" in text for text in said)


def test_a_limit_is_not_blamed_on_the_model():
    said = []
    assert trim_frames(plain_clip(frames=13), 9, said.append).num_frames == 9
    assert said == ["Using the first 9 of 13 frames."]


def test_too_few_frames_to_generate():
    with pytest.raises(DataError, match="plain has 8 frames; generating needs at least 9"):
        trim_frames(plain_clip(frames=8))
    with pytest.raises(UsageError, match="5 frames were asked for"):
        trim_frames(plain_clip(frames=9), 5)


def test_rotations_are_checked_to_calibration_accuracy():
    rounded = np.round(np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1.0]]) + 1e-7, 6)
    require_rigid(rounded, "a file")
    with pytest.raises(DataError, match=r"a file: is not a rotation"):
        require_rigid(rounded * 1.01, "a file")
    with pytest.raises(DataError, match=r"a file: expected 3x3 or 4x4"):
        require_rigid(np.eye(5), "a file")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kiti:/data", "did you mean kitti:/data"),
        ("/data/kitti", "names no format"),
        ("kitti:", "says no place"),
        ("waymo:/data", "does not read waymo"),
        ("xyz:/data", "Known: kitti:PATH"),
    ],
)
def test_wrong_formats(spec, message):
    with pytest.raises(UsageError, match=message):
        load_clip(spec)


@pytest.mark.parametrize("name", ["kitti", "nuscenes", "folder"])
def test_missing_empty_and_foreign_folders(name, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_clip(f"{name}:{tmp_path / 'absent'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        load_clip(f"{name}:{tmp_path / 'empty'}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        load_clip(f"{name}:{tmp_path / 'file'}")
    with pytest.raises(DataError, match=str(tmp_path)):
        load_clip(f"{name}:{tmp_path}")
