"""One owner a folder: a lock file that dead owners lose and living ones keep.

`<folder>/lock.json` names the owner. It is made with its contents in one step (a hard link), so a
reader never sees half of one, and a thread of the owner touches it every few seconds.

- Same machine, same boot, same process numbers: the owner lives if the process of that number began
  when the owner began, so a number that the system has given to another program proves nothing.
- Elsewhere (another host, a container with its own process numbers, before a reboot) only the
  touches tell: after `SILENCE` seconds without one, by the clock of the file system, and still none
  while watched for two more beats, the owner counts as dead.

A dead owner's lock is replaced, by an atomic rename, by the one contender who made the marker of
that very lock: a contender that judged an earlier lock cannot remove a later one.
"""

import hashlib
import json
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jwm_jax.errors import ResourceError, UsageError
from jwm_jax.files import make_folder

LOCK = "lock.json"
BEAT = 5.0
"""Seconds between touches."""
SILENCE = 180.0
"""Seconds without a touch after which an owner elsewhere may be dead."""

TAKING = 30.0
"""Seconds after which a contender who was taking over counts as dead; it needs milliseconds."""


def _read(path: str) -> str | None:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return None


def _boot() -> str | None:
    """Identity of this run of the operating system; None where it has none."""
    text = _read("/proc/sys/kernel/random/boot_id")
    return text and text.strip()


def _process_numbers() -> str | None:
    """Identity of the name space that process numbers belong to; None where there is one only."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _began(pid: int) -> int | None:
    """Clock tick since boot at which a running process began; None if it is gone or unknown."""
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])


def _began_wall_clock(pid: int) -> float | None:
    """The same as seconds since 1970, to about a second."""
    ticks, uptime = _began(pid), _read("/proc/uptime")
    if ticks is None or uptime is None:
        return None
    return time.time() - float(uptime.split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _touched(path: Path) -> float:
    """When a file was touched last; opening it makes network file systems look afresh."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime
    return float("inf")


def _lives_here(entry: dict[str, Any]) -> bool:
    """Whether the owner, a process of this machine, is still the process of its number."""
    pid = int(entry["pid"])
    if not _exists(pid):
        return False
    began = _began(pid)
    if began is None:
        # a finished child that waits for its parent has an entry; no entry: hidden, or no Linux
        return _read(f"/proc/{pid}/stat") is None
    if entry.get("began") is not None:
        return began == entry["began"]
    wall = _began_wall_clock(pid)
    return "started" not in entry or wall is None or wall < float(entry["started"]) + 2


class FolderLock:
    """Keeps other processes, and other threads of this one, out of a folder until `release`."""

    def __init__(self, folder: Path, doing: str = "is in use by") -> None:
        """Take the lock.

        Args:
            folder: Made if it is absent.
            doing: What is said of the folder before the owner's name, such as "is trained by".

        Raises:
            UsageError: A living process holds it.
            ResourceError: The lock cannot be written.
        """
        self._folder, self._doing = Path(folder).absolute(), doing
        self._path = self._folder / LOCK
        self._entry = {
            "pid": os.getpid(),
            "host": platform.node(),
            "began": _began(os.getpid()),
            "boot": _boot(),
            "process_numbers": _process_numbers(),
            "started": time.time(),
            "token": os.urandom(16).hex(),
        }
        self._end = threading.Event()
        try:
            self._take()
        except OSError as error:
            raise ResourceError(
                f"{self._path}: cannot be written ({error.strerror or error}); choose another "
                "folder."
            ) from error
        self._thread = threading.Thread(target=self._beat, name="folder lock", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while True:
            found = self._found()
            if found is None:
                try:
                    if self._create():
                        return
                except FileNotFoundError:  # whoever had the lock removed the folder with it
                    make_folder(self._folder)
                continue
            text, entry = found
            if self._is_here(entry):
                alive = _lives_here(entry)
            else:
                alive = bool(entry) and self._silence(self._path) < SILENCE
                alive = alive or self._is_touched_while_watched()
            if alive:
                raise UsageError(self._refusal(entry))
            if self._take_over(text):
                return

    def _write(self) -> Path:
        """Write the contents beside the lock, under a name that is litter."""
        temporary = self._path.with_name(f".{LOCK}-{self._entry['token']}.tmp")
        try:
            temporary.write_text(json.dumps(self._entry), encoding="utf-8")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _create(self) -> bool:
        """Make the lock file, whole and only if there is none."""
        temporary = self._write()
        try:
            os.link(temporary, self._path)
            return True
        except FileExistsError:
            return False
        except PermissionError:  # a file system without hard links
            with suppress(FileExistsError), self._path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(self._entry))
                return True
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def _found(self) -> tuple[str, dict[str, Any]] | None:
        """Text and contents of the lock that is there; empty contents where it is no lock."""
        text = _read(str(self._path))
        if text is None:
            return None
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(text)
            if int(entry["pid"]) > 0 and entry["host"] and float(entry.get("started", 0)) >= 0:
                return text, entry
        return text, {}

    def _is_here(self, entry: dict[str, Any]) -> bool:
        """Whether the owner's process number means a process that this one can see."""
        same = ("host", "boot", "process_numbers")
        return bool(entry) and all(
            entry.get(key, self._entry[key]) == self._entry[key] for key in same
        )

    def _silence(self, path: Path) -> float:
        """Seconds since a file was touched, by the clock that stamped it."""
        probe = self._path.with_name(f".{LOCK}-{self._entry['token']}.now")
        try:
            touched = _touched(path)
            probe.touch()
            return probe.stat().st_mtime - touched
        finally:
            probe.unlink(missing_ok=True)

    def _is_touched_while_watched(self) -> bool:
        before, end = _touched(self._path), time.monotonic() + 2 * BEAT
        while time.monotonic() < end:
            time.sleep(BEAT / 10)
            if _touched(self._path) != before:
                return True
        return False

    def _marker(self, judged: str) -> Path:
        """The file whose maker may replace the lock of this text."""
        digest = hashlib.sha256(judged.encode()).hexdigest()[:16]
        return self._path.with_name(f".{LOCK}-{digest}.taking")

    def _take_over(self, judged: str) -> bool:
        """Replace the lock that was judged dead, unless another contender does or has done so."""
        marker = self._marker(judged)
        try:
            marker.open("x").close()
        except FileExistsError:
            if self._silence(marker) > TAKING:
                marker.unlink(missing_ok=True)
            time.sleep(0.01)
            return False
        try:
            if _read(str(self._path)) != judged:
                return False
            self._write().replace(self._path)
            return True
        finally:
            marker.unlink(missing_ok=True)

    def _refusal(self, entry: dict[str, Any]) -> str:
        if not entry:
            return f"{self._path} is being written by another process; try again."
        way = f"or delete {self._path} when that process is gone"
        if not self._is_here(entry):
            way += f" (a lock that is not touched for {SILENCE / 60:.0f} minutes is taken over)"
        return (
            f"{self._folder} {self._doing} process {entry['pid']} on {entry['host']}; stop it "
            f"first, {way}."
        )

    @property
    def held(self) -> bool:
        """Whether the lock file is still the one of this process."""
        found = self._found()
        return found is not None and found[1].get("token") == self._entry["token"]

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(OSError):
                if self.held or self._create():
                    os.utime(self._path)

    def check(self) -> None:
        """Make sure that the folder is still ours.

        Raises:
            UsageError: Another process has taken it over, as after a long sleep of this machine.
        """
        if not self.held and self._found() is not None:
            raise UsageError(
                f"{self._path} is now the lock of another process, which is at work in the folder; "
                "this one stops."
            )

    def release(self) -> None:
        """Give the lock back; what another process holds by now is left alone."""
        self._end.set()
        self._thread.join()
        with suppress(OSError):
            if self.held and os.getpid() == self._entry["pid"]:
                self._path.unlink()

    def __enter__(self) -> "FolderLock":
        """The lock, which the block holds."""
        return self

    def __exit__(self, *error: object) -> None:
        """Release it."""
        self.release()
