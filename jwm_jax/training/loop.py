"""The loop that every paradigm runs on: start or resume, step, log, evaluate, save, stop cleanly.

    prepare the folder -> sharded init -> resume the newest good checkpoint, or warm start
    -> for every step: batch (loaded ahead) -> jitted step -> log / evaluate / checkpoint / stop?
    -> evaluate the averaged weights, export the model

A run is resumed by repeating its command. On the same mesh, JAX version and flags the result is
bitwise that of a run without interruption; on another mesh sums are ordered differently and agree
to rounding.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jwm_jax.checkpoint.manager import CheckpointManager
from jwm_jax.distributed.mesh import make_mesh
from jwm_jax.distributed.sharding import gather_to_host, local_rows, put_batch
from jwm_jax.errors import JwmError, UsageError
from jwm_jax.files import expand_user, make_folder, write_whole
from jwm_jax.training.config import ExperimentConfig, config_hash
from jwm_jax.training.ledger import STEP, Ledger
from jwm_jax.training.metrics import MetricsWriter, RunningMean
from jwm_jax.training.progress import Progress, duration
from jwm_jax.training.run_dir import RunFolder
from jwm_jax.training.sampling import Prefetch, stacked
from jwm_jax.training.start import (
    check_sources,
    counters,
    fresh_state,
    frozen_digests,
    frozen_params,
    items,
    layout,
    restored_state,
)
from jwm_jax.training.state import TrainState
from jwm_jax.training.task import Task

EXIT_PREEMPTED = 75


@dataclass(frozen=True)
class FitResult:
    """How training ended.

    Attributes:
        status: "finished", "early" (out of patience), "budget" (out of minutes, resumable) or
            "preempted" (saved on a signal).
        step: Steps done.
        state: The last state, on the mesh.
        metrics: Means of the last logged interval.
        evaluation: What the task measured at the end; empty if the status is "preempted".
    """

    status: str
    step: int
    state: TrainState
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 75 when a signal stopped the run after it was saved."""
        return EXIT_PREEMPTED if self.status == "preempted" else 0


class _StopSignal:
    """Remembers SIGTERM or SIGINT; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None:
            sys.exit(128 + number)
        self.received = signal.Signals(number).name

    @contextmanager
    def installed(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _together(flags: list[bool]) -> list[bool]:
    """Or of each flag over all processes, so that they all decide alike."""
    if jax.process_count() == 1:
        return flags
    from jax.experimental import multihost_utils

    return [bool(x) for x in multihost_utils.process_allgather(np.array(flags)).any(axis=0)]


def _primary_first(action: Callable[[], Any]) -> Any:
    """Run an action on process 0 alone and make every process fail when it fails there."""
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except JwmError as caught:
            error = caught
    failed = _together([error is not None])[0]
    if error is not None:
        raise error
    if failed:
        raise UsageError("process 0 refused to start; its message says why.")
    return result


class _Run:
    """One invocation of `fit`: the parts that steps, logging and saving share."""

    def __init__(
        self,
        config: ExperimentConfig,
        task: Task,
        out: Path,
        mesh: Mesh,
        quiet: bool,
        profile: tuple[int, int] | None = None,
    ) -> None:
        self.profile, self.tracing = profile, False
        self.ledger = Ledger()
        self.config, self.task, self.out, self.mesh = config, task, out, mesh
        self.primary = jax.process_index() == 0
        self.progress: Progress | None = None
        self.loud = self.primary and not quiet
        self.checkpoints = CheckpointManager(
            out / "checkpoints", config.keep_checkpoints, config_hash(config)
        )
        self.means = RunningMean()
        self.pending: tuple[int, dict[str, Any]] | None = None
        self.skipped_steps: dict[str, list[int]] = {}
        self.last_metrics: dict[str, float] = {}
        self.saved_at = time.monotonic()
        self.seconds = 0.0
        self.step = 0
        self.evaluated: tuple[int, dict[str, float]] = (-1, {})
        self.lowest: dict[str, Any] = {"value": None, "step": 0, "since": 0}

    def say(self, message: str) -> None:
        if self.progress is not None:
            self.progress.say(message)
        elif self.loud:
            print(message, flush=True)

    def start(self, folder: RunFolder | None) -> None:
        """Make or restore the state."""
        began = time.monotonic()
        self.folder = folder
        place = layout(self.config, self.task, self.mesh)
        self.per_step = self.task.schedule.batches(place.plan.phases)
        self.say(self._headline(place))
        newest, rejected = self.checkpoints.newest_verified()
        for reason in rejected:
            self.say(f"checkpoint set aside: {reason}")
        check_sources(place, resumed=newest is not None)
        if newest is None:
            abstract = jax.tree.leaves(items(place.abstract_state()))
            self.checkpoints.check_space(sum(x.size * x.dtype.itemsize for x in abstract))
            self.state, self.step = fresh_state(self.config, place), 0
        else:
            data = self.checkpoints.read_data(newest)
            trees = self.checkpoints.restore(newest, items(place.abstract_state()))
            self.state = restored_state(self.config, place, trees, data)
            self.step = data["step"]
            self.means = RunningMean(data["means"])
            self.seconds = data["seconds"]
            self.lowest = data.get("lowest", self.lowest)
            self.ledger.resume(data.get("spent", {}))
            self.say(f"resumed at step {self.step} of {self.config.steps}")
        self.writer = MetricsWriter(self.out / "metrics.jsonl", self.step, self.primary)
        self.frozen = frozen_params(self.config, place)
        self.digests = frozen_digests(place.nets)
        self.jitted = jax.jit(
            partial(self.task.schedule, place.plan),
            out_shardings=(place.state_shardings(), place.replicated),
            donate_argnums=0,
        )
        if self.profile is not None and self.step > self.profile[0]:
            self.say(f"step {self.profile[0]}, where the trace should begin, is past: no trace")
        self.ledger.add("start", time.monotonic() - began)

    def _headline(self, place: Any) -> str:
        parts = []
        for name, net in place.nets.items():
            count = sum(x.size for x in jax.tree.leaves(place.params[name]))
            label = f"{name}{' (frozen)' if net.frozen else ''} " if len(place.nets) > 1 else ""
            parts.append(f"{label}{count:,} parameters")
        axes = ", ".join(f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1)
        return (
            f"{self.config.name}: {', '.join(parts)}, batch {self.config.batch_size}, "
            f"{self.mesh.size} device(s){f' ({axes})' if axes else ''}, writing to {self.out}"
        )

    def advance(self, batch: Any) -> None:
        """Dispatch one step and read the metrics of the one before, which is done by then."""
        if self.profile is not None and self.step == self.profile[0]:
            jax.profiler.start_trace(self.out / "profile")
            self.tracing = True
        batch = put_batch(batch, self.mesh, self.config.batch_size)
        with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
            self.state, metrics = self.jitted(self.state, self.frozen, batch)
        self.step += 1
        if self.tracing and self.step == self.profile[1]:
            jax.block_until_ready(metrics)
            self.stop_tracing()
        self.drain()
        self.pending = self.step, metrics

    def stop_tracing(self) -> None:
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
            self.say(f"traced steps {self.profile[0]} to {self.step}: {self.out / 'profile'}")

    def drain(self) -> None:
        """Take in the metrics of the last step; give up after too many bad ones in a row."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        in_a_row = {n: values.pop(n) for n in list(values) if n.endswith("skipped")}
        in_a_row = {n: x for n, x in in_a_row.items() if x == x}  # of networks whose turn it was
        for name, count in in_a_row.items():
            known = self.skipped_steps.get(name, [])
            self.skipped_steps[name] = [*known, step] if count else []
        worst = max(in_a_row, key=in_a_row.get)
        skipped = in_a_row[worst]
        values = {name: values.pop(name) for name in list(values) if name.endswith("loss")} | values
        self.means.add(values)
        if skipped >= self.config.max_skipped:
            row = {"skipped_in_a_row": int(skipped), "skipped_steps": self.skipped_steps[worst]}
            self.writer.write(step, "abort", row)
            raise JwmError(
                f"the loss or gradient was not finite, or a spike, for {int(skipped)} updates in a "
                f"row up to step {step}; the weights are as before them. Lower "
                "optimizer.learning_rate or check the data, then run the command again to go on "
                "from the last checkpoint."
            )

    def log(self) -> None:
        with self.ledger.on(STEP):
            self.drain()
        self.last_metrics = self.means.take()
        values: dict[str, Any] = {**self.last_metrics}
        total = self.skipped_total()
        if total:
            values["skipped_total"] = total
        rate = {"steps_per_s": round(self.progress.rate, 4)}
        self.writer.write(self.step, "train", {**values, **rate})
        self.progress.report(values)
        if self.folder is not None:
            self.folder.check()

    def skipped_total(self) -> int:
        """Updates skipped in the whole run: those that were due less those that were done."""
        schedule, phases = self.task.schedule, self.task.phases()
        return sum(
            schedule.updates(phases, name, self.step) - clock["updates"]
            for name, clock in counters(self.state).items()
        )

    def evaluate(self) -> dict[str, float]:
        with self.ledger.on(STEP):
            self.drain()
        self.progress.pause()
        averaged = self.state.nets[self.task.product].averaged
        with self.ledger.on("evaluate"):
            found = self.task.evaluate(averaged)
        values = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
        self.evaluated = (self.step, values)
        self.keep_pictures({name: x for name, x in found.items() if np.ndim(x)})
        if values:
            self.writer.write(self.step, "evaluation", values)
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"evaluation at step {self.step}  {numbers}")
        if self.config.best:
            self.keep_best(values)
        return values

    def keep_pictures(self, pictures: dict[str, Any]) -> None:
        """Write an evaluation's pictures to the folder "pictures"."""
        if not pictures or not self.primary:
            return
        from jwm_jax.export.pictures import picture_bytes

        folder = self.out / "pictures"
        make_folder(folder)
        for name, picture in pictures.items():
            file = folder / f"{self.step:08d}_{name}.png"
            write_whole(file, picture_bytes(np.asarray(picture), "png"))

    def keep_best(self, values: dict[str, float]) -> None:
        """Export the weights if the value that is to fall is lower than ever."""
        name, lowest = self.config.best, self.lowest
        if name not in values:
            raise UsageError(
                f"best = {name!r} is no value of this evaluation; there are {', '.join(values)}."
            )
        value = values[name]
        if lowest["value"] is not None and not value < lowest["value"]:
            self.lowest = {**lowest, "since": lowest["since"] + 1}
            return
        self.lowest = {"value": value, "step": self.step, "since": 0}
        self.export("best")

    def export(self, name: str) -> None:
        """Write the product's averaged weights as a model in a folder of the run."""
        with self.ledger.on("export"):
            host = gather_to_host(self.state.nets[self.task.product].averaged)
            if self.primary:
                self.task.save(host, self.out / name)

    def out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.lowest["since"]

    def save_at_last(self) -> None:
        """Save and wait until it is on disk."""
        self.save()
        with self.ledger.on("save"):
            self.checkpoints.wait()

    def save(self) -> None:
        with self.ledger.on(STEP):
            self.drain()
        self.progress.pause()
        data = {
            "step": self.step,
            "nets": counters(self.state),
            "frozen": self.digests,
            "means": self.means.state,
            "seconds": self.total_seconds(),
            "lowest": self.lowest,
            "spent": self.ledger.everything(),
        }
        with self.ledger.on("save"):
            self.checkpoints.save(self.step, items(self.state), data)
        self.saved_at = time.monotonic()

    def total_seconds(self) -> float:
        """Seconds of training in all invocations that led to this state."""
        return self.seconds + time.monotonic() - self.began

    def checkpoint_due(self) -> tuple[bool, bool]:
        every, minutes = self.config.checkpoint_every, self.config.checkpoint_minutes
        by_time = minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes
        return bool(every) and self.step % every == 0, by_time

    def out_of_time(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and time.monotonic() - self.began > 60 * limit

    def steps(self, stop: _StopSignal) -> str:
        """Train until the steps, the minutes or a signal end it; returns the status."""
        config = self.config
        self.began = self.saved_at = time.monotonic()
        self.compiled = False
        self.progress = Progress(self.step, config.steps, config.max_minutes, self.loud)
        rows = local_rows(self.mesh, config.batch_size)
        first = self.step * self.per_step
        batches = Prefetch(stacked(self.task.batches(first, rows), self.per_step))
        agree_every = 1 if jax.process_count() == 1 else min(config.log_every, 10)
        try:
            while self.step < config.steps and not self.out_of_patience():
                with self.ledger.on("data"):
                    batch = next(batches, None)
                if batch is None:
                    raise JwmError(
                        f"the batches ended at step {self.step} of {config.steps}; a task has to "
                        "yield them without end."
                    )
                with self.ledger.on(STEP if self.compiled else "compile"):
                    self.advance(batch)
                self.compiled = True
                self.progress.step()
                by_step, by_time = self.checkpoint_due()
                ended = timeout = False
                if self.step % agree_every == 0:
                    with self.ledger.on(STEP):  # the others' step, where they are slower
                        ended, timeout, by_time = _together(
                            [stop.received is not None, self.out_of_time(), by_time]
                        )
                else:
                    by_time = False
                if self.step % config.log_every == 0:
                    self.log()
                if config.eval_every and self.step % config.eval_every == 0:
                    self.evaluate()
                if ended or timeout:
                    self.save_at_last()
                    return "preempted" if ended else "budget"
                if (by_step or by_time) and self.step < config.steps:
                    self.save()
            self.save_at_last()
            return "finished" if self.step == config.steps else "early"
        finally:
            batches.close()

    def finish(self, status: str) -> FitResult:
        """Evaluate and export, unless a signal wants the process gone."""
        if self.means.state:
            self.last_metrics = RunningMean(self.means.state).take()
        evaluation: dict[str, float] = {}
        if status != "preempted":
            at, values = self.evaluated
            evaluation = values if at == self.step else self.evaluate()
            self.export("model")
        spent = self.total_seconds()
        end = {"status": status, "seconds": round(spent, 1)}
        parts = {name: round(x, 4) for name, x in self.ledger.everything().items()}
        ledger = {"goodput": round(self.ledger.goodput, 4), "spent": parts}
        self.writer.write(self.step, "end", {**end, **ledger})
        self.say(
            f"{status} at step {self.step} of {self.config.steps} after {duration(spent)}, "
            f"{100 * self.ledger.goodput:.0f} % of all seconds in steps"
        )
        return FitResult(status, self.step, self.state, self.last_metrics, evaluation)

    def close(self) -> None:
        self.stop_tracing()
        if self.progress is not None:
            self.progress.close()
        if hasattr(self, "writer"):
            self.writer.close()


def fit(
    config: ExperimentConfig,
    task: Task,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    devices: Any = None,
    quiet: bool = False,
    profile: tuple[int, int] | None = None,
) -> FitResult:
    """Train a task, or continue its run when `out` holds one of the same config.

    Args:
        config: The experiment.
        task: The paradigm; usually `config.task()`.
        out: Folder of the run.
        resume: Insist that `out` already holds the run.
        overwrite: Start again, deleting a run in `out`.
        devices: Devices of the mesh; all of them by default.
        quiet: Print nothing.
        profile: Trace the steps after the first number up to the second into the folder "profile".

    Returns:
        How it ended, with the last state.

    Raises:
        UsageError: When `out` holds something else, or the mesh or batch does not fit the devices.
        DataError: When checkpoints exist but none is whole.
        ResourceError: When a checkpoint cannot be written.
        JwmError: After `max_skipped` steps in a row that were not finite, or spikes.
    """
    out = expand_user(out).absolute()
    mesh = make_mesh(config.mesh, devices)
    local_rows(mesh, config.batch_size)
    stop = _StopSignal()

    folder: RunFolder | None = _primary_first(
        lambda: RunFolder(out, config, resume=resume, overwrite=overwrite)
    )
    run, worthless = None, False
    try:
        with jax.set_mesh(mesh), stop.installed():
            run = _Run(config, task, out, mesh, quiet, profile)
            run.start(folder)
            status = run.steps(stop)
            return run.finish(status)
    except Exception:
        worthless = folder is not None and not folder.continued and (run is None or run.step == 0)
        raise
    finally:
        if run is not None:
            run.close()
            run.checkpoints.join()
        if worthless:
            folder.clear()
        if folder is not None:
            folder.release()
