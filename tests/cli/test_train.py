"""`jwm train`: flags reach the config, exit codes, the dry run, and where a run is written."""

import json
from pathlib import Path

import pytest

from jwm_jax.cli.main import main

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy_config.py"
    path.write_text(
        f'"""A toy to train."""\nimport sys\nsys.path.insert(0, {str(TESTS)!r})\n'
        "from training.toy import ToyExperiment\nfrom jwm_jax.distributed import MeshConfig\n\n\n"
        "def config():\n    return ToyExperiment(mesh=MeshConfig(data=1), steps=2)\n"
    )
    return str(path)


def test_flags_change_the_config(toy, capsys):
    flags = ["--steps", "5", "--minutes", "1", "--mesh.fsdp", "2", "--batch-size", "4"]
    more = ["--set", "optimizer.learning_rate=1e-3", "name=mine", "--print-config"]
    assert main(["train", toy, *flags, *more]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["steps"], config["max_minutes"], config["batch_size"]) == (5, 1.0, 4)
    assert (config["mesh"]["fsdp"], config["mesh"]["data"]) == (2, 1)
    assert (config["optimizer"]["learning_rate"], config["name"]) == (0.001, "mine")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "optimizer.lr=1"], "'optimizer.lr' is not a field"),
        (["--set", "steps"], "--set takes FIELD=VALUE"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--profile", "5:2"], "--profile takes FIRST:LAST"),
        (["--mesh.data", "64"], "needs 64 devices"),
        (["--resume"], "--resume found no run"),
        (["--processes", "2"], "2 processes were expected"),
    ],
)
def test_a_wrong_flag_ends_with_code_2_and_leaves_nothing(toy, tmp_path, flags, message, capsys):
    assert main(["train", toy, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--set", "source.clips=[]", "init_from=null", "--mesh.data", "1", "--batch-size", "1"]
    assert main(["train", "worldgen_pretrain_tiny", *flags, "--out", "run"]) == 3
    assert "make the data with `jwm data make`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_config_lists_the_known_ones(capsys):
    assert main(["train", "codec_tinny"]) == 2
    assert "Did you mean codec_tiny?" in capsys.readouterr().err
    assert main(["train"]) == 0
    assert "codec_tiny" in capsys.readouterr().out


def test_the_dry_run_shows_the_layout_and_writes_nothing(toy, tmp_path, capsys):
    flags = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2", "--dry-run"]
    assert main(["train", toy, *flags]) == 0
    out = capsys.readouterr().out
    assert "('fsdp', 'tensor')" in out and "272 parameters in 3 tensors" in out
    assert not (tmp_path / "runs").exists()


def test_runs_are_numbered_resumed_and_never_overwritten_silently(toy, tmp_path, capsys):
    assert main(["train", toy]) == 0
    assert "Next:" in capsys.readouterr().out
    first = tmp_path / "runs" / "toy-0001"
    assert (first / "model" / "params.safetensors").is_file()
    assert main(["train", toy, "--resume", "--steps", "3"]) == 0
    assert "resumed at step 2 of 3" in capsys.readouterr().out
    assert main(["train", toy, "--out", str(first), "--seed", "5"]) == 2
    assert "seed: 0 -> 5" in capsys.readouterr().err
    assert main(["train", toy, "--out", str(first), "--seed", "5", "--overwrite"]) == 0
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "end"] == [2]
