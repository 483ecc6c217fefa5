"""Clips survive storage; batches depend on seed and step alone."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from jwm_jax.data.pipeline import (
    PipelineConfig,
    clip_batches,
    clip_dataset,
    mirrored,
    rebased,
    window_arrays,
)
from jwm_jax.data.records import decode_clip, encode_clip
from jwm_jax.data.streets import FIRST_TEST_SEED, make_clip
from jwm_jax.data.streets.make import StreetsConfig, make_dataset
from jwm_jax.data.tfds_clips import load_dataset_clip, open_records, splits_of
from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene import transform_points

VIEWS = ("front_left", "front")
STREETS = StreetsConfig(
    first_seed=4, clips=3, frames=6, height=32, width=48, views=VIEWS, workers=1, image_format="png"
)


@pytest.fixture(scope="module")
def clip():
    return make_clip(4, "easy", num_frames=6, height=32, width=48, views=VIEWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    seen = []
    path = tmp_path_factory.mktemp("streets") / "easy"
    make_dataset(path, STREETS, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    return path


def assert_same_clip(a, b):
    for v in range(a.num_views):
        np.testing.assert_array_equal(a.view(v), b.view(v))
        np.testing.assert_allclose(a.depth[v], b.depth[v], rtol=1e-3)
        np.testing.assert_array_equal(a.cameras[v].K, b.cameras[v].K)
    for name in ("times", "world_from_ego", "world_from_camera"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.view_names == b.view_names
    assert a.style == b.style
    assert a.map.kinds == b.map.kinds
    for p, q in zip(a.map.polylines, b.map.polylines, strict=True):
        np.testing.assert_array_equal(p, q)
    for name in ("times", "centers", "quats", "sizes", "valid", "category"):
        np.testing.assert_array_equal(getattr(a.tracks, name), getattr(b.tracks, name))
    assert a.tracks.ids == b.tracks.ids
    for p, q in zip(a.lidar, b.lidar, strict=True):
        np.testing.assert_allclose(p, q, atol=2e-3)


def test_a_clip_comes_back_from_array_record(clip, folder):
    assert list(folder.glob("*.array_record*"))
    assert not list(folder.parent.glob("*.clips"))
    assert splits_of(folder) == {"train": 3}
    clips = [load_dataset_clip(f"dataset:{folder}?index={i}") for i in range(3)]
    assert sorted(c.name for c in clips) == [f"procedural:easy:{seed}" for seed in (4, 5, 6)]
    (same,) = (c for c in clips if c.name == clip.name)
    assert_same_clip(clip, same)


def test_part_of_a_record_is_the_selected_clip(clip):
    part = decode_clip(encode_clip(clip, "png"), frames=[1, 3], views=[1])
    assert_same_clip(dataclasses.replace(clip.select([1, 3], [1])), part)


def test_a_clip_without_extras_stays_without(clip):
    bare = dataclasses.replace(clip, lidar=None, tracks=None, map=None, style=None, depth=None)
    back = decode_clip(encode_clip(bare))
    assert (back.lidar, back.tracks, back.map, back.style, back.depth) == (None,) * 5
    error = np.abs(back.view(0).astype(float) - clip.view(0)).mean()
    assert error < 3.0


def test_batches_have_static_shapes_and_follow_seed_and_step(folder):
    config = PipelineConfig((str(folder),), batch_size=2, frames=3, depth=True, lidar_points=64)
    first = list(itertools.islice(clip_batches(config), 5))
    assert first[0]["images"].shape == (2, 3, 1, 32, 48, 3)
    assert first[0]["depth"].shape == (2, 3, 1, 32, 48)
    assert first[0]["lidar"].shape == (2, 3, 64, 4)
    assert first[0]["track_centers"].shape == (2, 32, 3, 3)
    start = first[0]["world_from_ego"][:, 0]
    np.testing.assert_allclose(start, np.eye(4)[None].repeat(2, 0), atol=1e-7)
    assert (first[0]["times"][:, 0] == 0).all()
    resumed = list(itertools.islice(clip_batches(config, start=3), 2))
    for key in first[0]:
        np.testing.assert_array_equal(first[3][key], resumed[0][key])
        np.testing.assert_array_equal(first[4][key], resumed[1][key])
    assert not np.array_equal(first[0]["images"], first[1]["images"])
    other = clip_dataset(dataclasses.replace(config, seed=1))
    assert not all(np.array_equal(other[i]["images"], first[i]["images"]) for i in range(3))


def test_hosts_share_the_rows_of_one_global_batch(folder):
    config = PipelineConfig((str(folder),), batch_size=4, frames=2)
    whole = clip_dataset(config)[2]["images"]
    parts = [
        clip_dataset(dataclasses.replace(config, hosts=2, host=h))[2]["images"] for h in (0, 1)
    ]
    np.testing.assert_array_equal(whole, np.stack(parts, 1).reshape(whole.shape))


def test_windows_beyond_a_clip_and_bad_folders_are_refused(folder, tmp_path):
    record = open_records(folder)[0]
    config = PipelineConfig((str(folder),), frames=7)
    with pytest.raises(DataError, match="6 frames"):
        window_arrays(record, config, np.random.default_rng(0))
    with pytest.raises(DataError, match="dataset_info"):
        clip_dataset(PipelineConfig((str(tmp_path),)))
    with pytest.raises(DataError, match="split"):
        open_records(folder, "test")
    with pytest.raises(UsageError, match="index"):
        load_dataset_clip(f"dataset:{folder}?index=3")


def test_a_mirrored_clip_is_consistent_with_itself(clip):
    flipped = mirrored(clip)
    np.testing.assert_allclose(np.linalg.det(flipped.world_from_camera[..., :3, :3]), 1.0)
    mirror = np.array([1.0, -1.0, 1.0])
    points = clip.tracks.centers[:, 2]
    for v in range(clip.num_views):
        uv, depth = clip.camera(2, v).project(points)
        uv_flipped, depth_flipped = flipped.camera(2, v).project(points * mirror)
        ahead = depth > 0.1
        np.testing.assert_allclose(depth, depth_flipped, atol=1e-9)
        width = clip.cameras[v].width
        np.testing.assert_allclose(uv_flipped[ahead, 0], width - uv[ahead, 0], atol=1e-6)
        np.testing.assert_array_equal(flipped.view(v), clip.view(v)[:, :, ::-1])
    boxes, _ = clip.tracks.at(clip.start)
    boxes_flipped, _ = flipped.tracks.at(clip.start)
    front = np.array([[2.0, 0.0, 0.0]])
    there = np.stack([transform_points(b, front)[0] for b in boxes])
    there_flipped = np.stack([transform_points(b, front)[0] for b in boxes_flipped])
    np.testing.assert_allclose(there_flipped, there * mirror, atol=1e-9)


def test_rebasing_keeps_what_cameras_see(clip):
    late = clip.select(frames=slice(3, 6))
    moved = rebased(late)
    np.testing.assert_allclose(moved.world_from_ego[0], np.eye(4), atol=1e-9)
    before, after = late.tracks.at(late.start)[0], moved.tracks.at(late.start)[0]
    uv, _ = late.camera(0, 0).project(before[:, :3, 3])
    uv_moved, _ = moved.camera(0, 0).project(after[:, :3, 3])
    np.testing.assert_allclose(uv, uv_moved, atol=1e-4)
    local = late.camera(0, 1).project(late.map.polylines[0])[1]
    np.testing.assert_allclose(local, moved.camera(0, 1).project(moved.map.polylines[0])[1])


def test_making_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from jwm_jax.data.streets import make as module

    rendered = []
    real = module._render

    def limited(task):
        if len(rendered) == 1:
            raise KeyboardInterrupt
        rendered.append(task[1])
        return real(task)

    config = dataclasses.replace(STREETS, first_seed=FIRST_TEST_SEED, clips=2, frames=2)
    monkeypatch.setattr(module, "_render", limited)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "d", config)
    monkeypatch.setattr(module, "_render", real)
    with pytest.raises(DataError, match="another configuration"):
        make_dataset(tmp_path / "d", dataclasses.replace(config, frames=3))
    starts = []
    make_dataset(tmp_path / "d", config, lambda done, total: starts.append(done))
    assert starts == [1, 2]
    assert splits_of(tmp_path / "d") == {"test": 2}
    with pytest.raises(UsageError, match="not empty"):
        make_dataset(tmp_path / "d", config)
    with pytest.raises(UsageError, match="mix"):
        make_dataset(tmp_path / "e", dataclasses.replace(config, first_seed=FIRST_TEST_SEED - 1))


def test_nothing_imports_tensorflow(folder):
    code = (
        "import sys; from jwm_jax.data.pipeline import PipelineConfig, clip_dataset; "
        f"clip_dataset(PipelineConfig(({str(folder)!r},), frames=2))[0]; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
