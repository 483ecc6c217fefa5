"""A folder has one owner: living ones keep it, dead ones lose it, one contender wins."""

import json
import os
import platform
import subprocess
import sys
import threading
import time

import pytest

from jwm_jax import folder_lock
from jwm_jax.errors import UsageError
from jwm_jax.folder_lock import FolderLock

NOBODY = 2**22 + 1
"""Above the largest process number."""


def entry(folder):
    return json.loads((folder / "lock.json").read_text())


def leave(folder, **changes):
    """The lock of a process that is gone, with some changes."""
    (folder / "lock.json").unlink(missing_ok=True)
    with FolderLock(folder):
        left = entry(folder) | {"pid": NOBODY, "token": "left"} | changes
    left = {key: value for key, value in left.items() if value is not None}
    (folder / "lock.json").write_text(json.dumps(left))


def age(folder, seconds):
    os.utime(folder / "lock.json", times=(time.time() - seconds,) * 2)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT", 0.3)


def test_one_owner_at_a_time_and_nothing_left_behind(tmp_path):
    refused = pytest.raises(UsageError, match=f"is used by process {os.getpid()} on")
    with FolderLock(tmp_path, "is used by"), refused:
        FolderLock(tmp_path, "is used by")
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_last_owner_removed_is_made_again(tmp_path):
    with FolderLock(tmp_path / "gone" / "folder") as lock:
        assert lock.held


def test_a_number_that_now_belongs_to_another_process_proves_nothing(tmp_path):
    other = subprocess.Popen(["sleep", "60"])
    try:
        for pid in (other.pid, os.getpid(), os.getppid(), 1, NOBODY, 10**30):
            leave(tmp_path, pid=pid, began=1)
            FolderLock(tmp_path).release()
    finally:
        other.kill()
        # until it is waited for, the child is a process without life
        time.sleep(0.2)
        began = folder_lock._read(f"/proc/{other.pid}/stat").split()[21]
        leave(tmp_path, pid=other.pid, began=int(began))
        FolderLock(tmp_path).release()
        other.wait()


def test_a_lock_without_the_time_its_owner_began_is_judged_by_the_time_it_was_made(tmp_path):
    leave(tmp_path, pid=os.getppid(), began=None)
    with pytest.raises(UsageError, match=f"process {os.getppid()}"):
        FolderLock(tmp_path)
    leave(tmp_path, pid=os.getppid(), began=None, started=None, boot=None)
    with pytest.raises(UsageError, match=f"process {os.getppid()}"):
        FolderLock(tmp_path)
    other = subprocess.Popen(["sleep", "60"])
    leave(tmp_path, pid=other.pid, began=None, started=time.time() - 100)
    FolderLock(tmp_path).release()
    other.kill()
    other.wait()


def test_one_of_many_contenders_takes_over(tmp_path):
    for _ in range(60):
        leave(tmp_path)
        start, won, lost = threading.Barrier(8), [], []

        def contend(start=start, won=won, lost=lost):
            start.wait()
            try:
                won.append(FolderLock(tmp_path))
            except UsageError:
                lost.append(1)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        assert won[0].held
        won[0].release()
        assert list(tmp_path.iterdir()) == []


def test_a_contender_that_died_while_taking_over_keeps_nobody_out(tmp_path):
    leave(tmp_path)
    lock = FolderLock(tmp_path)
    lock.release()
    leave(tmp_path)
    marker = lock._marker((tmp_path / "lock.json").read_text())
    marker.touch()
    os.utime(marker, times=(time.time() - 100,) * 2)
    FolderLock(tmp_path).release()
    assert not marker.exists()


@pytest.mark.parametrize("difference", ["host", "boot", "process_numbers"])
def test_an_owner_elsewhere_lives_while_it_touches_its_lock(
    tmp_path, quick, difference, monkeypatch
):
    owner = FolderLock(tmp_path)  # whatever else this process is doing, a thread touches the lock
    mine = {"host": platform, "boot": folder_lock, "process_numbers": folder_lock}[difference]
    name = {"host": "node", "boot": "_boot", "process_numbers": "_process_numbers"}[difference]
    monkeypatch.setattr(mine, name, lambda: "elsewhere")
    with pytest.raises(UsageError, match="is taken over"):
        FolderLock(tmp_path)
    age(tmp_path, 3600)
    with pytest.raises(UsageError, match="is in use by"):
        FolderLock(tmp_path)
    owner.check()
    owner._end.set()  # the other machine breaks down
    owner._thread.join()
    age(tmp_path, 0.5 * folder_lock.SILENCE)
    with pytest.raises(UsageError):
        FolderLock(tmp_path)
    age(tmp_path, 2 * folder_lock.SILENCE)
    successor = FolderLock(tmp_path)
    with pytest.raises(UsageError, match="now the lock of another process"):
        owner.check()
    owner.release()
    assert successor.held
    successor.release()


def test_what_is_no_lock_is_taken_over_only_when_nobody_touches_it(tmp_path, quick):
    for content in ("", "{", "[]", '{"pid": 0, "host": "x"}', '{"pid": "x", "host": "x"}'):
        (tmp_path / "lock.json").write_text(content)
        FolderLock(tmp_path).release()
    (tmp_path / "lock.json").write_text("")
    end = threading.Event()

    def touch():
        while not end.wait(0.05):
            (tmp_path / "lock.json").touch()

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(UsageError, match="being written by another process"):
        FolderLock(tmp_path)
    end.set()
    thread.join()


def test_a_deleted_lock_comes_back_unless_another_process_came_first(tmp_path, quick):
    lock = FolderLock(tmp_path)
    (tmp_path / "lock.json").unlink()
    lock.check()
    deadline = time.monotonic() + 20
    while not lock.held and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lock.held
    lock.release()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from jwm_jax.folder_lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"process {owner.pid}"):
        FolderLock(tmp_path)
    owner.kill()
    owner.wait()
    FolderLock(tmp_path).release()
