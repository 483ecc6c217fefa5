"""Make a dataset of street clips: worker processes render, this process packs.

Every finished clip is kept as one file in `OUT.clips/` until all are there; then they are packed
into the dataset folder and removed. A run that was stopped goes on with the clips that are missing;
while it lasts, a lock in that folder keeps a second one out.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jwm_jax.data.records import encode_clip, encode_image
from jwm_jax.data.streets.clip import DEFAULT_VIEWS, make_clip, make_rig
from jwm_jax.data.streets.street import RUNGS, split_of_seed
from jwm_jax.data.tfds_clips import write_dataset
from jwm_jax.errors import DataError, UsageError
from jwm_jax.files import (
    discard,
    entries,
    expand_user,
    folder_kept_if_used,
    make_folder,
    move_folder,
    remove_empty,
    write_beside,
    write_whole,
)
from jwm_jax.folder_lock import LOCK, FolderLock


@dataclass(frozen=True)
class StreetsConfig:
    """What to make.

    Attributes:
      rung: one of `RUNGS`.
      first_seed: seed of the first clip; below 1,000,000 for training, from there on for tests.
      clips: how many; clip i has seed first_seed + i.
      frames: instants a clip.
      rate: instants a second.
      height: rows.
      width: columns.
      views: names of the rig's cameras.
      image_format: "jpeg" (quality 95, no chroma subsampling) or "png" (lossless).
      workers: processes that render.

    Raises:
      UsageError: a value is unknown or out of range, or seeds lie on both sides of the split.
    """

    rung: str = "easy"
    first_seed: int = 0
    clips: int = 100
    frames: int = 25
    rate: float = 10.0
    height: int = 96
    width: int = 160
    views: tuple[str, ...] = DEFAULT_VIEWS
    image_format: str = "jpeg"
    workers: int = 2

    def __post_init__(self) -> None:
        if self.rung not in RUNGS:
            raise UsageError(f"rung: expected one of {RUNGS}, got {self.rung!r}.")
        for name in ("clips", "frames", "height", "width", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected 1 or more, got {getattr(self, name)}.")
        if self.first_seed < 0:
            raise UsageError(f"first_seed: expected 0 or more, got {self.first_seed}.")
        if not 0 < self.rate < float("inf"):
            raise UsageError(f"rate: expected a positive number, got {self.rate}.")
        if len(set(self.views)) < len(self.views) or not self.views:
            raise UsageError(f"views: expected different names, got {', '.join(self.views)}.")
        last = self.first_seed + self.clips - 1
        if split_of_seed(self.first_seed) != split_of_seed(last):
            raise UsageError(
                f"seeds {self.first_seed} to {last} mix training and test streets; stay on one "
                "side of 1,000,000."
            )
        make_rig(self.views, self.height, self.width)
        encode_image(np.zeros((1, 1, 3), np.uint8), self.image_format)


def _render(task: tuple[StreetsConfig, int, str]) -> int:
    """Write the record of one seed; whole or not at all."""
    config, seed, path = task
    clip = make_clip(
        seed, config.rung, config.frames, config.rate, config.height, config.width, config.views
    )
    with write_beside(path) as file:
        np.savez(file, **encode_clip(clip, config.image_format))
    return seed


def _start_worker(counter, cores: list[int]) -> None:
    """Give each worker one core of its own: XLA thread pools on the same cores slow each other."""
    with counter.get_lock():
        mine = counter.value
        counter.value += 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores[mine % len(cores)]})


def make_dataset(
    folder: str | Path,
    config: StreetsConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Make a TFDS folder of street clips, with a split "train" or "test" by the seeds' rule.

    Args:
      folder: the dataset to make.
      config: what to make.
      progress: called with (clips done, clips in all) at the start and after each clip.

    Returns:
      The folder.

    Raises:
      UsageError: the folder is not empty, or another process is making it.
      DataError: clips of another configuration lie in `FOLDER.clips`.
      ResourceError: a file or folder cannot be written.
    """
    folder = expand_user(folder).absolute()
    _check_empty(folder)
    store = folder.with_name(f"{folder.name}.clips")
    with ExitStack() as stack:
        stack.enter_context(folder_kept_if_used(store))
        stack.callback(remove_empty, [store])  # also if an earlier run or a contender made it
        stack.enter_context(FolderLock(store, "is being filled by"))
        _check_empty(folder)  # again: whoever held the lock may have finished
        _check_same(store / "config.json", config)
        done = False
        try:
            _render_and_pack(folder, store, config, progress)
            done = True
        finally:
            if done or not any(store.glob("*.npz")):
                _empty(store)
    return folder


def _empty(store: Path, pattern: str = "*") -> None:
    """Delete what is in the store; contenders for its lock are the only others who write there."""
    for path in store.glob(pattern):
        if LOCK not in path.name:
            discard(path)


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or entries(folder)):
        raise UsageError(f"{folder} is not empty; choose another folder or empty it.")


def _render_and_pack(
    folder: Path, store: Path, config: StreetsConfig, progress: Callable[[int, int], None]
) -> None:
    """Render the clips that are missing in the store, and pack all of them."""
    for left in (".jwm-*", "packed"):  # by a run that was killed
        _empty(store, left)
    seeds = range(config.first_seed, config.first_seed + config.clips)
    paths = {seed: store / f"{seed:08d}.npz" for seed in seeds}
    missing = [seed for seed in seeds if not paths[seed].exists()]
    progress(config.clips - len(missing), config.clips)
    tasks = [(config, seed, str(paths[seed])) for seed in missing]
    for done, _ in enumerate(_rendered(tasks, config.workers), config.clips - len(missing) + 1):
        progress(done, config.clips)

    def records() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for seed, path in paths.items():
            with np.load(path) as arrays:
                yield f"{config.rung}-{seed:08d}", dict(arrays)

    packed = write_dataset(store / "packed", {split_of_seed(config.first_seed): records()})
    make_folder(folder.parent)
    move_folder(packed, folder)


def _check_same(path: Path, config: StreetsConfig) -> None:
    """Refuse to mix clips of two configurations; what only changes how fast or how many is free."""
    content = asdict(config)
    for free in ("clips", "workers"):
        del content[free]
    text = json.dumps(content, sort_keys=True)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise DataError(
            f"{path.parent} holds clips of another configuration; remove it to start over."
        )
    write_whole(path, text)


def _rendered(tasks: list[tuple[StreetsConfig, int, str]], workers: int) -> Iterator[int]:
    if workers <= 1 or len(tasks) < 2:
        yield from map(_render, tasks)
        return
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    counter = context.Value("i", 0)
    with context.Pool(workers, _start_worker, (counter, cores)) as pool:
        yield from pool.imap_unordered(_render, tasks)
