"""WorldRec at 8 context pictures: every mesh of 8 devices gives one device's loss and gradient.

Each mesh compiles two programs in a process of its own, with the compiler's optimisations.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(__file__).with_name("worldrec_on_meshes.py"))
QUICK = "--xla_backend_optimization_level=0"

pytestmark = pytest.mark.slow


def check(line: str) -> dict:
    """What holds on every mesh; returns what the script measured."""
    result = json.loads(line)
    assert result["loss"] < 1e-6, result
    assert result["error"] < 1e-5, result
    assert result["flops"] < 1.15, result
    along_data = [m for m in result["moves"] if set(m[1:-1]) & {"data", "fsdp"}]
    assert {m[-1] for m in along_data} <= {"parameters", "scalars"}, result
    return result


@pytest.mark.parametrize("mesh", ["context=8", "data=8", "fsdp=8", "data=2,fsdp=2,context=2"])
def test_a_mesh_divides_the_work_and_changes_nothing(mesh):
    done = subprocess.run(
        [sys.executable, SCRIPT, mesh],
        env={**os.environ, "XLA_FLAGS": QUICK},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = check(done.stdout.splitlines()[-1])
    if "data" in mesh and "context" not in mesh:
        assert {m[0] for m in result["moves"]} == {"all-reduce"}


@pytest.mark.multiprocess
def test_two_processes_of_four_devices_are_one_mesh(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICK)
    run_local = runpy.run_path(str(ROOT / "launch" / "local.py"))["run_local"]
    command = [sys.executable, SCRIPT, "fsdp=2,context=4"]
    assert run_local(command, 2, devices=4, timeout=1800) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if '{"mesh"' in line]
    assert len(lines) == 1
    check(lines[0][lines[0].index("{") :])
