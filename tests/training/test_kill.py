"""SIGKILL at random moments: every restart goes on from a whole checkpoint to the same weights."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jwm_jax.checkpoint.model_dir import flatten, load_params

KILLS = 50

TESTS = Path(__file__).resolve().parents[1]

CONFIG = f'''"""A toy."""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
from training.toy import ToyExperiment, ToyTask
from jwm_jax.distributed import MeshConfig

class Slow(ToyTask):
    def batches(self, start_step, rows):
        for batch in super().batches(start_step, rows):
            time.sleep(0.02)
            yield batch

class Experiment(ToyExperiment):
    def task(self):
        return Slow(self.seed, self.batch_size, self.noise)

def config():
    return Experiment(mesh=MeshConfig(data=1), steps=1500, checkpoint_every=5)
'''


def _until_it_trains(folder: Path, chance: random.Random) -> float:
    """Waits for a new checkpoint of the run, and returns the seconds that are left to it."""
    saved = folder / "killed" / "checkpoints"
    before, deadline = set(saved.glob("*")), time.monotonic() + 100
    while not set(saved.glob("*")) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    return chance.uniform(0.0, 0.5)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path):
    path = tmp_path / "toy_config.py"
    path.write_text(CONFIG)
    jwm = [sys.executable, "-m", "jwm_jax.cli.main", "train", str(path), "--out"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run([*jwm, str(tmp_path / "whole")], env=env, check=True, timeout=400)
    chance = random.Random(0)
    kills = 0
    for _ in range(KILLS + 1):
        child = subprocess.Popen([*jwm, str(tmp_path / "killed")], env=env)
        try:
            code = child.wait(
                timeout=_until_it_trains(tmp_path, chance) if kills < KILLS else 300.0
            )
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
            continue
        assert code == 0
        break
    assert kills == KILLS
    leftovers = [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert not any("tmp" in name for name in leftovers)
    whole = flatten(load_params(tmp_path / "whole" / "model", "codec"))
    killed = flatten(load_params(tmp_path / "killed" / "model", "codec"))
    for name, value in whole.items():
        assert np.array_equal(killed[name], value)
