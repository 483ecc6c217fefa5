"""`jwm export` of a run: the checkpoint's own bits, from any step, without a trace in the run."""

import json

import jax
import numpy as np
import pytest
from training.toy import ToyExperiment

from jwm_jax.checkpoint import load_params
from jwm_jax.checkpoint.inspection import read_item
from jwm_jax.cli.main import main
from jwm_jax.errors import DataError, UsageError
from jwm_jax.training.exporting import export_run
from jwm_jax.training.loop import fit

CONFIG = """from training.toy import ToyExperiment


def config():
    return ToyExperiment()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of eight steps, two of them saved, and the file it was started from."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    config = ToyExperiment(checkpoint_every=4)
    fit(config, config.task(), out, quiet=True)
    file = out.with_name("toy_config.py")
    file.write_text(CONFIG)
    return out, str(file)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize(
    ("step", "weights", "item"), [(8, "averaged", "ema"), (4, "raw", "params")]
)
def test_weights_are_those_of_the_checkpoint_bit_by_bit(run, tmp_path, step, weights, item):
    out, file = run
    folder = out / "checkpoints" / f"{step:08d}"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    arguments = [str(out if step == 8 else folder), "--out", str(tmp_path / "m")]
    assert main(["export", *arguments, "--weights", weights, "--config", file]) == 0
    assert same(load_params(tmp_path / "m", "codec"), read_item(folder, item)["model"])
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_the_last_step_is_what_the_run_exports_at_its_end(run, tmp_path):
    out, file = run
    assert export_run(out, tmp_path / "m", config=file) == 8
    whole = load_params(tmp_path / "m", "codec")
    assert same(whole, load_params(out / "model", "codec"))
    export_run(out, tmp_path / "half", half=True, config=file)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), whole)
    assert same(load_params(tmp_path / "half", "codec"), rounded)


def test_what_cannot_be_exported_is_refused_and_nothing_written(run, tmp_path, capsys):
    out, file = run
    target = tmp_path / "m"
    for arguments, said in (
        ([str(out)], "no config 'toy'"),
        ([str(out), "--format", "wan", "--config", file], "is a run: export it as safetensors"),
        (["tiny"], "is no run's folder"),
        ([str(tmp_path)], "is no run's folder"),
        (["tiny", "--format", "wan"], "this network has parts that Wan 2.1 does not have"),
    ):
        assert main(["export", *arguments, "--out", str(target)]) == UsageError.exit_code
        assert said in capsys.readouterr().err and not target.exists()
    file_of_weights = next((out / "checkpoints/00000008/ema").rglob("d/*"))
    raw = file_of_weights.read_bytes()
    file_of_weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    try:
        with pytest.raises(DataError, match=r"other contents.*nothing was written"):
            export_run(out, target, config=file)
    finally:
        file_of_weights.write_bytes(raw)
    changed = json.loads((out / "config.json").read_text()) | {"experiment": "Other"}
    (tmp_path / "checkpoints").symlink_to(out / "checkpoints")
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=r"made as Other, but the config .* a ToyExperiment"):
        export_run(tmp_path, target, config=file)
