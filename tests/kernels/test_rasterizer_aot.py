"""The TPU kernels really compile for v5e and v6e, without a TPU: needs the libtpu wheel."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_for_tpu.py")

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the libtpu wheel is not installed: pip install 'jwm_jax[tpu-aot]'",
    ),
]


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_forward_and_gradient_compile(topology):
    """Layouts and memories of Mosaic have to fit; a gradient contains two kernels.

    A TPU keeps a row in 512 bytes: the table and its gradient may be such arrays, the list not.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    known = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), topology],
        env={**known, "PYTHONPATH": path},  # libtpu has flags of its own, not those of the CPU
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == 10
    for result in results:
        assert result["kernels"] == (2 if result["name"].startswith("gradient") else 1), result
        if "rows" in result:
            most = 1024 * result["rows"] + 150 * result["entries"] + 16 * result["values"]
            assert result["temp_bytes"] <= most, result
