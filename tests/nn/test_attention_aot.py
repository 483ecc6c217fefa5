"""Attention really compiles for TPU, tokens split over four chips, without a TPU: needs libtpu."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_attention_for_tpu.py")

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the libtpu wheel is not installed: pip install 'jwm_jax[tpu-aot]'",
    ),
]


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_kernels_fit_and_tokens_become_heads(topology):
    """Layouts and memories of Mosaic have to fit, and no logits exist: under 1 GB for 30 GB."""
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
        assert result["kernels"] >= (3 if result["name"].startswith("gradient") else 1), result
        assert result["all_to_all"] >= 4, result
        assert result["temp_bytes"] < 1e9, result
