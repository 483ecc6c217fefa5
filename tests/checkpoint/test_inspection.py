"""`jwm checkpoint list | verify | diff`: what they print, and that they only look."""

import jax.numpy as jnp
import pytest

from jwm_jax.checkpoint.inspection import differences, read_item, step_folder
from jwm_jax.checkpoint.manager import MANIFEST, CheckpointManager
from jwm_jax.cli.main import main
from jwm_jax.errors import DataError, UsageError


def save(root, step, weight=1.0, **more):
    """A checkpoint of one network under a run's folder."""
    checkpoints = CheckpointManager(root / "checkpoints", 5)
    tree = {"model": {"w": jnp.full((4, 3), weight), **more}}
    checkpoints.save(step, {"params": tree, "opt": {"count": jnp.int32(step)}}, {"step": step})
    checkpoints.wait()
    return checkpoints.folder(step)


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path):
    """Two whole steps, one unfinished, and one that was set aside."""
    root = tmp_path / "run"
    first, _ = save(root, 3), save(root, 20)
    first.with_name("00000001.corrupt").mkdir()
    unfinished = first.with_name("00000021")
    unfinished.mkdir()
    return root


def test_steps_are_listed_with_their_parts(run, capsys):
    before = content(run)
    assert main(["checkpoint", "list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["3", "20", "21"]
    assert lines[0].endswith("data opt params") and lines[2].endswith("not finished")
    assert lines[3].startswith("00000001.corrupt")
    assert content(run) == before and step_folder(run).name == "00000020"


def test_a_flipped_bit_is_named_and_nothing_is_renamed(run, capsys):
    assert main(["checkpoint", "verify", str(run), "--step", "20"]) == 0
    path = next(p for p in sorted((run / "checkpoints/00000020/params").rglob("*")) if p.is_file())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    before = content(run)
    assert main(["checkpoint", "verify", str(run)]) == DataError.exit_code
    out, err = capsys.readouterr()
    assert f"{path} has other contents" in out and "1 of 2 checkpoints" in err
    assert "21  not finished" in out
    assert content(run) == before
    assert main(["checkpoint", "verify", str(run), "--step", "7"]) == UsageError.exit_code
    assert "no step 7; it has 3, 20, 21" in capsys.readouterr().err


def test_differences_are_named_array_by_array(tmp_path, capsys):
    a, b = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    assert main(["checkpoint", "diff", str(tmp_path / "a"), str(b)]) == 0
    c = save(tmp_path / "c", 4, weight=1.5, extra=jnp.zeros(2))
    found = {d.name: d.what for d in differences(a, c)}
    assert found["params.model.w"] == "differs by up to 0.5; its largest entry is 1"
    assert found["params.model.extra"] == f"only in {c}"
    assert set(found) == {"params.model.w", "params.model.extra", "opt.count"}
    assert main(["checkpoint", "diff", str(a), str(c), "--most", "1"]) == 1
    assert "and 2 more" in capsys.readouterr().out


def test_what_is_not_there_is_said(tmp_path, run):
    with pytest.raises(UsageError, match="does not exist"):
        step_folder(tmp_path / "none")
    with pytest.raises(UsageError, match="has no checkpoints"):
        step_folder(tmp_path)
    with pytest.raises(DataError, match="has no item 'ema'; it has data, opt, params"):
        read_item(run / "checkpoints/00000003", "ema")
    (run / "checkpoints/00000003" / MANIFEST).unlink()
    (run / "checkpoints/00000020" / MANIFEST).write_text("[]")
    with pytest.raises(UsageError, match="no finished checkpoint"):
        step_folder(run)


def test_folders_may_be_relative_and_runs_named_by_numbers(tmp_path, monkeypatch, capsys):
    save(tmp_path / "runs/7", 3)
    save(tmp_path / "runs/8", 3, weight=2.0)
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", "list", "runs/7"]) == 0
    assert main(["checkpoint", "diff", "runs/7", "runs/7/checkpoints/00000003"]) == 0
    assert main(["checkpoint", "diff", "runs/7", "runs/8"]) == 1
    assert "params.model.w: differs by up to 1" in capsys.readouterr().out
    assert main(["checkpoint", "list", "runs"]) == UsageError.exit_code
