"""Clips survive storage; batches depend on step and row alone."""

import dataclasses
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from jwm_jax.data.pipeline import batches_of
from jwm_jax.data.records import decode_clip, encode_clip
from jwm_jax.data.streets import FIRST_TEST_SEED, make_clip
from jwm_jax.data.streets.make import StreetsConfig, make_dataset
from jwm_jax.data.tfds_clips import load_dataset_clip, open_records, splits_of
from jwm_jax.errors import DataError, ResourceError, UsageError

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


@pytest.mark.parametrize("threads", [0, 3])
def test_batches_depend_on_step_and_row_alone(threads):
    def example(step, row):
        time.sleep(0.01 * (row % 2))
        return {"place": np.array([step, row])}

    batches = batches_of(example, 5, [1, 2, 3], threads)
    for step in (5, 6, 7):
        expected = [[step, row] for row in (1, 2, 3)]
        np.testing.assert_array_equal(next(batches)["place"], expected)


def test_several_threads_read_a_dataset_at_once(folder):
    records = open_records(folder)

    def example(step, row):
        clip = decode_clip(records[row % 3], frames=[step])
        return np.stack([clip.view(v)[0] for v in range(clip.num_views)])

    alone, together = (batches_of(example, 0, range(6), threads) for threads in (0, 4))
    for _ in range(3):
        batch = next(together)
        assert batch.shape == (6, 2, 32, 48, 3)
        np.testing.assert_array_equal(batch, next(alone))


def test_a_broken_example_is_reported_as_what_it_is():
    def example(step, row):
        if step == 2:
            raise DataError("record 7 is broken")
        return np.zeros(1)

    batches = batches_of(example, 0, range(2))
    assert [next(batches).shape for _ in range(2)] == [(2, 1)] * 2
    with pytest.raises(DataError, match="record 7"):
        next(batches)


def test_bad_folders_and_places_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="dataset_info"):
        open_records(tmp_path)
    with pytest.raises(DataError, match="split"):
        open_records(folder, "test")
    with pytest.raises(UsageError, match="index"):
        load_dataset_clip(f"dataset:{folder}?index=3")


def cut(path, keep=0.9):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("*array_record*", cut),
        ("*array_record*", lambda path: path.write_text("no records")),
        ("*array_record*", lambda path: path.unlink()),
        ("dataset_info.json", cut),
        ("features.json", lambda path: path.write_text("{}")),
        ("features.json", lambda path: path.unlink()),
    ],
)
def test_broken_data_sets_are_named(folder, tmp_path, name, change):
    copy = tmp_path / "streets"
    shutil.copytree(folder, copy)
    change(next(copy.glob(name)))
    with pytest.raises(DataError, match=rf"dataset {copy}: .* cannot be read"):
        load_dataset_clip(str(copy))


def test_reading_on_past_the_last_record_ends(folder):
    records = open_records(folder)
    assert len(list(records)) == len(records) == 3
    with pytest.raises(IndexError):
        records[3]


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


def test_a_second_making_of_the_same_folder_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    from jwm_jax.data.streets import make as module

    real, refusals = module._render, []
    config = dataclasses.replace(STREETS, clips=1, frames=2, workers=1)

    def meanwhile(task):
        for other in (config, dataclasses.replace(config, frames=3)):
            with pytest.raises(UsageError, match="is being filled by process") as refused:
                make_dataset(tmp_path / "d", other)
            refusals.append(refused)
        return real(task)

    monkeypatch.setattr(module, "_render", meanwhile)
    make_dataset(tmp_path / "d", config)
    assert len(refusals) == 2 and splits_of(tmp_path / "d") == {"train": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_what_a_killed_making_left_is_cleared_away(tmp_path, monkeypatch):
    from jwm_jax.data.streets import make as module

    def killed(folder, splits):
        (folder / ".jwm-1-x.tmp").mkdir(parents=True)
        (folder.parent / ".jwm-2-x.tmp").touch()
        raise KeyboardInterrupt

    config = dataclasses.replace(STREETS, clips=1, frames=2, workers=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_dataset", killed)
        make_dataset(tmp_path / "d", config)
    assert [p.name for p in tmp_path.iterdir()] == ["d.clips"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".DS_Store").touch()
    make_dataset(tmp_path / "d", config)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_making_that_fails_before_its_first_clip_leaves_nothing(tmp_path, monkeypatch):
    from jwm_jax.data.streets import make as module

    def fail(task):
        raise ResourceError("the disk is full.")

    monkeypatch.setattr(module, "_render", fail)
    with pytest.raises(ResourceError):
        make_dataset(tmp_path / "new" / "d", dataclasses.replace(STREETS, workers=1))
    assert list(tmp_path.iterdir()) == []


def test_nothing_imports_tensorflow(folder):
    code = (
        "import sys; from jwm_jax.data.pipeline import batches_of; "
        "from jwm_jax.data.tfds_clips import open_records; "
        f"records = open_records({str(folder)!r}); "
        "next(batches_of(lambda step, row: records[row]['times'], 0, range(2))); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
