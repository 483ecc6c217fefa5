"""The `jwm` command: instant help, exit codes, plain messages, nothing written over."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jwm_jax.cli.main import VERBS, main
from jwm_jax.cli.output import claim
from jwm_jax.errors import UsageError

HEAVY = ("jax", "numpy", "PIL", "rich", "grain", "flax", "orbax", "tensorflow_datasets", "av")


@pytest.fixture
def drive(tmp_path):
    """A plain folder of nine frames that the readers accept."""
    folder = tmp_path / "drive"
    (folder / "front").mkdir(parents=True)
    for t in range(9):
        Image.fromarray(np.full((12, 20, 3), 90 + t, np.uint8)).save(
            folder / "front" / f"{t:03d}.jpg", quality=95
        )
    ego = np.tile(np.eye(4), (9, 1, 1))
    ego[:, 0, 3] = np.arange(9)
    view = {"name": "front", "K": [[15, 0, 10], [0, 15, 6], [0, 0, 1]]}
    description = {"views": [view], "world_from_ego": ego.tolist()}
    (folder / "cameras.json").write_text(json.dumps(description))
    return folder


def test_help_lists_every_verb_with_an_example(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS) and "Example:" in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_light_and_has_an_example(verb):
    """Importing nothing heavy is what makes it instant; user time is immune to other load."""
    program = (
        "import sys; from jwm_jax.cli.main import main\n"
        f"try: main({[*verb.split(), '--help']!r})\n"
        "except SystemExit as leave: assert leave.code == 0, leave.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert f"Example: jwm {verb}" in done.stdout
    assert after.ru_utime - before.ru_utime < 0.5


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["dmo"], 2, "Did you mean `jwm demo`?"),
        (["data", "chek"], 2, "Did you mean `jwm data check`?"),
        (["data", "check", "kiti:/x"], 2, "did you mean kitti:/x"),
        (["data", "check", "kitti:/nowhere"], 3, "/nowhere: no such folder"),
        (["reconstruct", "kitti:/nowhere"], 3, "/nowhere: no such folder"),
        (["generate", "kitti:/nowhere"], 3, "/nowhere: no such folder"),
        (["generate", "kitti:/nowhere", "--steps", "0"], 2, "--steps 0: expected 1 or more"),
        (["demo", "--steps", "0"], 2, "--steps 0: expected 1 or more"),
        (["evaluate", "worldgen", "--steps", "0"], 2, "--steps 0: expected 1 or more"),
        (["generate", "procedural:easy:x"], 2, "procedural:easy:SEED"),
    ],
)
def test_errors_are_a_sentence_and_a_code(words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # not even an empty folder


@pytest.mark.parametrize("words", [["data", "check", "--fols", "x"], ["reconstruct"]])
def test_unknown_and_missing_arguments(words, capsys):
    with pytest.raises(SystemExit) as leave:
        main(words)
    assert leave.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("no room"), 4, "out of memory or disk space: no room"),
        (OSError(28, "No space left on device"), 4, "No space left"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), 4, "RESOURCE_EXHAUSTED"),
        (KeyError("bug"), 1, "failed with KeyError: 'bug'. Run the same command with --verbose"),
    ],
)
def test_failures_have_codes(error, code, message, capsys, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setattr("jwm_jax.cli.doctor.run", fail)
    assert main(["doctor"]) == code
    assert message in capsys.readouterr().err
    if isinstance(error, KeyError):
        with pytest.raises(KeyError):
            main(["doctor", "--verbose"])


def test_exit_code_of_a_verb_is_passed_on(monkeypatch):
    monkeypatch.setattr("jwm_jax.cli.doctor.run", lambda options: 75)
    assert main(["doctor"]) == 75


def test_output_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert claim(None, "demo").create() == Path("runs/demo-0001")
    assert claim(None, "demo").create() == Path("runs/demo-0002")
    assert claim(None, "check").create() == Path("runs/check-0001")
    claim("new/deep", "demo")
    assert not Path("new").exists()
    (claim("new/deep", "demo").create() / "result").write_text("kept")
    with pytest.raises(UsageError, match=r"new/deep is not empty; .* add --overwrite"):
        claim("new/deep", "demo")
    with pytest.raises(UsageError, match=r"name a new folder\.$"):
        claim("new/deep", "streets", overwrite=None)
    assert claim("new/deep", "demo", overwrite=True).create() == Path("new/deep")
    assert claim("new/deep", "demo", resume=True).create() == Path("new/deep")
    with pytest.raises(UsageError, match="is a file"):
        claim("new/deep/result", "demo", overwrite=True)
    assert Path("new/deep/result").read_text() == "kept"


@pytest.mark.parametrize("verb", [["data", "check"], ["reconstruct"], ["generate"]])
def test_a_folder_with_things_in_it_is_refused_before_any_work(verb, tmp_path, capsys):
    (tmp_path / "old.txt").write_text("old")
    assert main([*verb, "kitti:/nowhere", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]


def test_check_draws_a_good_drive(drive, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "check", f"folder:{drive}", "--out", str(out), "--frames", "2"]) == 0
    text = capsys.readouterr().out
    assert "9 frames at 10 Hz" in text and "8.0 m driven" in text and "no problems found" in text
    assert f"jwm reconstruct folder:{drive}" in text
    assert Image.open(out / "check.png").size[0] > 40


def test_check_explains_a_broken_drive(drive, tmp_path, capsys):
    path = drive / "cameras.json"
    description = json.loads(path.read_text())
    description["times"] = [0, 1, 2, 3, 5, 4, 6, 7, 8]
    description["views"][0]["K"][0][0] = -1
    path.write_text(json.dumps(description))
    assert main(["data", "check", f"folder:{drive}", "--out", str(tmp_path / "out")]) == 3
    captured = capsys.readouterr()
    assert "frame 5 at 4.000000 s does not come after" in captured.out
    assert "both must be positive" in captured.out
    assert "2 errors in drive" in captured.err
    assert not (tmp_path / "out").exists()


def test_too_short_a_drive_to_generate(drive, tmp_path, capsys):
    for t in range(1, 9):
        (drive / "front" / f"{t:03d}.jpg").unlink()
    path = drive / "cameras.json"
    description = json.loads(path.read_text())
    description["world_from_ego"] = description["world_from_ego"][:1]
    path.write_text(json.dumps(description))
    out = tmp_path / "out"
    assert main(["generate", f"folder:{drive}", "--out", str(out)]) == 3
    assert "drive has 1 frame; generating needs at least 9" in capsys.readouterr().err
    assert not out.exists()
    assert main(["data", "check", f"folder:{drive}", "--out", str(out)]) == 0


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "restored afterwards")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("jwm_jax.cli.doctor.run", lambda options: None)
    assert main(["doctor"]) == 0
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jwm_jax" / "xla")
