"""Files appear whole or not at all, numbered folders go to one caller each, litter is no data."""

import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from data.plain_clips import plain_clip

from jwm_jax import files
from jwm_jax.data.folder import save_folder_clip
from jwm_jax.errors import ResourceError, UsageError
from jwm_jax.export import write_video
from jwm_jax.export.report import Report
from jwm_jax.scene import Scene
from jwm_jax.scene.gaussians import make_gaussians


@pytest.fixture
def little_room():
    """No file may grow beyond 1000 bytes: what a full disk looks like to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def scene():
    some = np.random.default_rng(0).uniform(0.1, 0.9, (500, 3)).astype(np.float32)
    return Scene(make_gaussians(some, some, some, some[:, 0], np.tile(some[:, :1], (1, 4))))


WRITERS = {
    "scene.ply": lambda path: scene().save_ply(path),
    "scene.npz": lambda path: scene().save(path),
    "report.html": lambda path: Report("Title").write(path),
    "a.webp": lambda path: write_video(path, np.random.default_rng(0).random((3, 64, 64, 3)), 5),
    "a.txt": lambda path: files.write_whole(path, "x" * 2000),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("before", [None, b"the earlier one"])
def test_a_file_that_cannot_be_written_whole_changes_nothing(tmp_path, name, before, little_room):
    path = tmp_path / name
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(ResourceError, match=f"{name}: cannot be written"):
        WRITERS[name](path)
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else [name])
    assert before is None or path.read_bytes() == before


def test_a_folder_that_cannot_be_written_whole_is_not_there(tmp_path, little_room):
    clip = plain_clip()
    (tmp_path / "made").mkdir()
    for name in ("made", "new/deep"):
        with pytest.raises(ResourceError, match="cannot be written"):
            save_folder_clip(clip, tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["made"]


def test_an_interrupted_block_writes_nothing(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.write_beside(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old"
    with pytest.raises(KeyboardInterrupt), files.folder_beside(tmp_path / "folder") as part:
        (part / "x").touch()
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_links_modes_and_devices_stay_what_they_are(tmp_path):
    real = tmp_path / "real"
    real.write_text("old")
    real.chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    files.write_whole(tmp_path / "link", "new \udce9")
    assert (tmp_path / "link").is_symlink()
    assert real.read_bytes() == rb"new \udce9" and real.stat().st_mode & 0o777 == 0o640
    files.write_whole(os.devnull, "nothing")
    assert Path(os.devnull).is_char_device()


def test_a_folder_replaces_litter_but_nothing_else(tmp_path):
    target = tmp_path / "folder"
    (target / ".Trash-1").mkdir(parents=True)
    (target / ".DS_Store").touch()
    with files.folder_beside(target) as part:
        (part / "x").write_text("new")
    assert [p.name for p in target.iterdir()] == ["x"]
    with pytest.raises(UsageError, match="not empty"), files.folder_beside(target):
        raise AssertionError("never begun")
    assert (target / "x").read_text() == "new"


@pytest.mark.parametrize(
    ("path", "litter"),
    [
        (".DS_Store", True),
        ("._scene.ply", True),
        (".nfs00000001", True),
        ("params/Thumbs.db", True),
        ("desktop.ini", True),
        (".AppleDouble/x", True),
        ("__MACOSX/x", True),
        ("x/.Trash-1000/y", True),
        ("thumbs.dbx", False),
        ("manifest.ocdbt", False),
        ("_METADATA", False),
        ("a.b/c", False),
    ],
)
def test_what_is_litter(path, litter):
    assert files.is_litter(path) == litter


def test_numbered_folders_go_to_one_caller_each(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a-0007").mkdir()
    start, got = threading.Barrier(8), []

    def take(name):
        start.wait()
        with files.numbered_kept_if_used(name, tmp_path / "runs") as folder:
            (folder / "used").touch()
            got.append(folder.name)

    threads = [threading.Thread(target=take, args=("a" if i % 4 else "[x]",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {f"a-{n:04d}" for n in range(8, 14)} | {"[x]-0001", "[x]-0002"}
    assert len(got) == 8 and set(got) == wanted
    with files.numbered_kept_if_used("b", tmp_path / "other") as folder:
        assert folder.is_dir()
    assert not (tmp_path / "other").exists()


def test_folders_are_made_while_others_remove_them(tmp_path):
    def work(errors):
        for _ in range(200):
            try:
                with files.folder_kept_if_used(tmp_path / "a" / "b" / "c"):
                    pass
                files.check_writable(tmp_path / "a" / "b")
            except Exception as error:
                errors.append(error)

    errors: list[Exception] = []
    threads = [threading.Thread(target=work, args=(errors,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
