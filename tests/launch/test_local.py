"""The local launcher: exit codes, failures, signals; and a job of 2 processes x 2 devices."""

import json
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "launch" / "local.py"
local = SimpleNamespace(**runpy.run_path(str(LAUNCHER)))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_every_process_learns_its_place():
    env = local.environment(1, 3, 2, 4242)
    assert env["JWM_COORDINATOR"] == "127.0.0.1:4242"
    assert (env["JWM_PROCESS_ID"], env["JWM_NUM_PROCESSES"]) == ("1", "3")
    assert (env["JAX_PLATFORMS"], env["JAX_NUM_CPU_DEVICES"]) == ("cpu", "2")


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 3), 3), ((75, 75), 75), ((0, 75), 75)]
)
def test_the_exit_code_is_that_of_the_job(codes, expected):
    code = f"import os, sys; sys.exit({codes}[int(os.environ['JWM_PROCESS_ID'])])"
    assert local.run_local(python(code), 2) == expected


def test_one_failure_stops_the_others():
    code = """
        import os, sys, time
        if os.environ["JWM_PROCESS_ID"] == "0":
            sys.exit(4)
        time.sleep(60)
    """
    assert local.run_local(python(code), 2, grace=5, timeout=30) == 4


def test_a_job_that_hangs_ends_at_the_timeout():
    assert local.run_local(python("import time; time.sleep(60)"), 1, grace=2, timeout=0.5) == 124


def test_a_signal_reaches_every_process(capfd):
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print("ready", flush=True)
        time.sleep(60)
    """
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert local.run_local(python(code), 2, timeout=30) == 75


def test_a_command_is_needed():
    with pytest.raises(SystemExit) as exit_info:
        local.main(["--processes", "2"])
    assert exit_info.value.code == 2


CONFIG = """
    "A toy for two processes."
    import os, signal, sys, time
    sys.path.insert(0, {tests!r})
    from training.toy import ToyExperiment, ToyTask
    from jwm_jax.distributed import MeshConfig

    class Interrupted(ToyTask):
        def batches(self, start, rows):
            for step, batch in enumerate(super().batches(start, rows), start):
                if step == {kill_at} and os.environ.get("JWM_PROCESS_ID") == "1":
                    while {saved!r} and not os.path.exists({saved!r}):
                        time.sleep(0.05)
                    os.kill(os.getpid(), signal.{signal})
                yield batch

    class Experiment(ToyExperiment):
        def task(self):
            return Interrupted(self.seed, self.batch_size, self.noise)

    def config():
        return Experiment(mesh=MeshConfig({mesh}), steps=8, log_every=4, checkpoint_every=4)
"""


def train(
    folder: Path,
    out: str,
    mesh: str,
    *launcher: str,
    kill_at: int = -1,
    signal: str = "SIGTERM",
    saved: str = "",
) -> int:
    """A run, whose second process may get a signal at a batch, once a file of it is there."""
    path, saved = folder / "toy_config.py", saved and str(folder / out / saved)
    fields = {"mesh": mesh, "kill_at": kill_at, "signal": signal, "saved": saved}
    path.write_text(textwrap.dedent(CONFIG.format(tests=str(ROOT / "tests"), **fields)))
    jwm = [sys.executable, "-m", "jwm_jax.cli.main", "train", str(path), "--out", str(folder / out)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    return subprocess.run([*launcher, *jwm], env=env, timeout=240, check=False).returncode


@pytest.mark.multiprocess
@pytest.mark.parametrize("mesh", ["data=4", "data=1, fsdp=2, tensor=2"])
def test_two_processes_train_what_one_does_and_share_a_stop_signal(tmp_path, mesh):
    from jwm_jax.checkpoint.model_dir import flatten, load_params

    two = [sys.executable, str(LAUNCHER), "--processes", "2", "--devices", "2"]
    two += ["--timeout", "200", "--"]
    assert train(tmp_path, "one", mesh) == 0
    assert train(tmp_path, "two", mesh, *two, kill_at=5) == 75
    stopped = sorted(int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir())[-1]
    assert 0 < stopped < 8
    assert train(tmp_path, "two", mesh, *two) == 0
    rows = [
        [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("one", "two")
    ]
    rows = [[row for row in run if row["kind"] != "end"] for run in rows]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        if a["kind"] == "train":
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    one = load_params(tmp_path / "one" / "model", "codec")
    both = load_params(tmp_path / "two" / "model", "codec")
    for name, value in flatten(one).items():
        np.testing.assert_allclose(flatten(both)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.multiprocess
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_one_killed_or_frozen_ends_the_others_and_the_restart_goes_on(
    tmp_path, monkeypatch, signal
):
    from jwm_jax.checkpoint.model_dir import flatten, load_params

    monkeypatch.setenv("JWM_HEARTBEAT_SECONDS", "10")
    two = [sys.executable, str(LAUNCHER), "--processes", "2", "--devices", "2", "--grace", "5"]
    two += ["--timeout", "150", "--"]
    began = time.monotonic()
    when = {"kill_at": 6, "saved": "checkpoints/00000004/manifest.json"}
    code = train(tmp_path, "two", "data=4", *two, signal=signal, **when)
    assert code not in (0, 75, 124) and time.monotonic() - began < 100, code
    steps = [int(p.name) for p in (tmp_path / "two/checkpoints").iterdir() if p.name.isdigit()]
    assert steps == [4]
    assert train(tmp_path, "two", "data=4", *two) == 0
    assert train(tmp_path, "one", "data=4") == 0
    one, both = (flatten(load_params(tmp_path / n / "model", "codec")) for n in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_allclose(both[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.multiprocess
def test_a_process_that_is_left_alone_fails_loudly(tmp_path):
    launcher = [sys.executable, str(LAUNCHER), "--processes", "2", "--"]
    code = """
        import os
        for name in ("JWM_COORDINATOR", "JWM_NUM_PROCESSES", "JWM_PROCESS_ID"):
            del os.environ[name]
        from jwm_jax.distributed import HostConfig, initialize
        initialize(HostConfig(expected_processes=2))
    """
    done = subprocess.run(
        [*launcher, *python(code)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "2 processes were expected, but this job has 1" in done.stdout


@pytest.mark.multiprocess
def test_rows_of_a_process_may_lie_apart_on_the_mesh():
    code = """
        import jax, numpy as np
        from jax.sharding import AxisType, Mesh
        from jwm_jax.distributed import MESH_AXES, initialize, local_rows, put_batch
        initialize()
        order = np.array(jax.devices()).reshape(2, 2).T.reshape(4, 1, 1, 1)
        mesh = Mesh(order, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
        rows = local_rows(mesh, 8)
        assert rows.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]][jax.process_index()], rows
        batch = put_batch({"x": (10.0 * rows)[None]}, mesh, 8)["x"]
        for shard in batch.addressable_shards:
            np.testing.assert_array_equal(shard.data[0], 10.0 * np.arange(8)[shard.index[1]])
    """
    two = [sys.executable, str(LAUNCHER), "--processes", "2", "--devices", "2", "--timeout", "100"]
    assert subprocess.run([*two, "--", *python(code)], timeout=120, check=False).returncode == 0
