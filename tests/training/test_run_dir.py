"""A run folder is held from before anything is written: what lives is never cleared."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from training.toy import ToyExperiment

from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.errors import UsageError
from jwm_jax.training.loop import fit
from jwm_jax.training.run_dir import RunFolder, RunLock, new_dir, newest_dir

CONFIG = ToyExperiment(mesh=MeshConfig(data=1))
LIVING = f"is being trained by process {os.getpid()}"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def a_run(folder: Path) -> Path:
    """What a trainer that was stopped leaves."""
    run = RunFolder(folder, CONFIG)
    (folder / "checkpoints" / "00000003").mkdir(parents=True)
    (folder / "checkpoints" / "00000003" / "manifest.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("{}\n")
    run.release()
    return folder


@pytest.mark.parametrize("flags", [{"overwrite": True}, {"resume": True}, {}], ids=str)
@pytest.mark.parametrize("seed", [0, 5])
def test_the_folder_of_a_living_trainer_is_left_as_it_is(tmp_path, flags, seed):
    out = a_run(tmp_path / "run")
    with RunLock(out):
        before = snapshot(out)
        refusal = LIVING if seed == 0 or "overwrite" in flags else "other settings"
        with pytest.raises(UsageError, match=refusal):
            RunFolder(out, ToyExperiment(mesh=MeshConfig(data=1), seed=seed), **flags)
        assert snapshot(out) == before


def test_a_living_trainer_is_respected_before_anything_is_computed(tmp_path):
    class Task(type(CONFIG.task())):
        def nets(self, config):
            raise AssertionError("the second trainer began to work")

    out = a_run(tmp_path / "run")
    with RunLock(out), pytest.raises(UsageError, match=LIVING):
        fit(CONFIG, Task(), out, overwrite=True, quiet=True)
    assert (out / "checkpoints" / "00000003").is_dir()


def test_the_folder_is_held_all_through_a_training(tmp_path):
    out, seen = tmp_path / "run", []

    class Watched(type(CONFIG.task())):
        def look(self, when):
            for flags in ({}, {"overwrite": True}):
                with pytest.raises(UsageError, match=LIVING):
                    RunFolder(out, CONFIG, **flags)
            seen.append(when)

        def init(self, key):
            self.look("init")
            return super().init(key)

        def evaluate(self, params):
            self.look("evaluate")
            return super().evaluate(params)

        def save(self, params, directory):
            self.look("save")
            super().save(params, directory)

    fit(CONFIG, Watched(), out, quiet=True)
    assert {"init", "evaluate", "save"} <= set(seen)
    RunFolder(out, CONFIG, resume=True).release()


def test_overwriting_clears_a_run_that_nobody_holds(tmp_path):
    out = a_run(tmp_path / "run")
    (out / "notes.txt").write_text("mine")
    other = ToyExperiment(mesh=MeshConfig(data=1), seed=5)
    folder = RunFolder(out, other, overwrite=True)
    assert not folder.continued
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "lock.json", "notes.txt"]
    assert json.loads((out / "config.json").read_text())["seed"] == 5
    folder.release()
    assert RunFolder(out, other).continued


def test_a_refusal_and_a_worthless_run_leave_nothing(tmp_path):
    with pytest.raises(UsageError, match="holds no training run"):
        RunFolder(tmp_path / "a" / "b", CONFIG, resume=True)
    with pytest.raises(UsageError, match="exclude each other"):
        RunFolder(tmp_path / "a", CONFIG, resume=True, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "file" / "run", CONFIG)
    folder = RunFolder(tmp_path / "a" / "b", CONFIG)
    folder.clear()
    folder.release()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_another_trainer_took_over_is_not_cleared(tmp_path):
    folder = RunFolder(tmp_path / "run", CONFIG)
    lock = tmp_path / "run" / "lock.json"
    entry = json.loads(lock.read_text())
    lock.write_text(json.dumps({**entry, "token": "another"}))
    with pytest.raises(UsageError, match="now the lock of another process"):
        folder.check()
    folder.clear()
    folder.release()
    assert (tmp_path / "run" / "config.json").is_file() and lock.is_file()


def test_litter_does_not_make_a_folder_occupied(tmp_path):
    for name in (".DS_Store", "Thumbs.db", "._run"):
        (tmp_path / name).write_text("")
    folder = RunFolder(tmp_path, CONFIG)
    assert not folder.continued
    folder.release()


def test_runs_begun_at_once_have_folders_of_their_own(tmp_path):
    start, taken = threading.Barrier(6), []

    def begin():
        start.wait()
        with new_dir("toy", tmp_path / "runs") as out:
            taken.append(out)
            folder = RunFolder(out, CONFIG)
            folder.release()

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in taken) == [f"toy-{n:04d}" for n in range(1, 7)]
    assert newest_dir("toy", tmp_path / "runs").name == "toy-0006"
    with pytest.raises(UsageError, match="found no run"):
        newest_dir("other", tmp_path / "runs")


def test_the_folder_of_a_killed_trainer_is_continued(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from training.toy import ToyExperiment\n"
        "from jwm_jax.distributed.mesh import MeshConfig\n"
        "from jwm_jax.training.run_dir import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]), ToyExperiment(mesh=MeshConfig(data=1)))\n"
        "print('held', flush=True); time.sleep(60)"
    )
    tests = str(Path(__file__).resolve().parents[1])
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": tests}
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"process {owner.pid}"):
        RunFolder(tmp_path / "run", CONFIG, overwrite=True)
    owner.kill()
    owner.wait()
    folder = RunFolder(tmp_path / "run", CONFIG)
    assert folder.continued
    folder.release()
