"""The `jwm` command: instant help, exit codes, plain messages, nothing written over."""

import io
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
        (["reconstruct", "kitti:/nowhere", "--frames", "0"], 2, "--frames 0: expected 1 or more"),
        (["reconstruct", "kitti:/x", "--video-frames", "-1"], 2, "--video-frames -1: expected 1"),
        (["data", "check", "kitti:/nowhere", "--frames", "0"], 2, "--frames 0: expected 1"),
        (["demo", "--frames", "0"], 2, "--frames 0: expected 1 or more"),
        (["evaluate", "codec", "--count", "0"], 2, "--count 0: expected 1 or more"),
        (["data", "make", "--first-seed", "-5"], 2, "first_seed: expected 0 or more"),
        (["data", "make", "--rate", "inf"], 2, "rate: expected a positive number"),
        (["data", "make", "--views", "front", "front"], 2, "expected different names"),
        (["data", "check", "kiti:/x"], 2, "did you mean kitti:/x"),
        (["data", "check", "kitti:/nowhere"], 3, "/nowhere: no such folder"),
        (["reconstruct", "kitti:/nowhere"], 3, "/nowhere: no such folder"),
        (["generate", "kitti:/nowhere"], 3, "/nowhere: no such folder"),
        (["generate", "kitti:/nowhere", "--steps", "0"], 2, "--steps 0: expected 1 or more"),
        (["demo", "--steps", "0"], 2, "--steps 0: expected 1 or more"),
        (["evaluate", "worldgen", "--steps", "0"], 2, "--steps 0: expected 1 or more"),
        (["generate", "procedural:easy:x"], 2, "procedural:RUNG:SEED"),
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


def written(folder):
    """Writes a file into a claimed folder; the folder."""
    with folder.made() as path:
        (path / "result").write_text("kept")
    return path


def test_output_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert written(claim(None, "demo")) == Path("runs/demo-0001")
    assert written(claim(None, "demo")) == Path("runs/demo-0002")
    assert written(claim(None, "check")) == Path("runs/check-0001")
    claim("new/deep", "demo")
    assert not Path("new").exists()
    assert written(claim("new/deep", "demo")) == Path("new/deep")
    with pytest.raises(UsageError, match=r"new/deep is not empty; .* add --overwrite"):
        claim("new/deep", "demo")
    with pytest.raises(UsageError, match=r"name a new folder\.$"):
        claim("new/deep", "streets", overwrite=None)
    assert written(claim("new/deep", "demo", overwrite=True)) == Path("new/deep")
    assert written(claim("new/deep", "demo", resume=True)) == Path("new/deep")
    with pytest.raises(UsageError, match="is a file"):
        claim("new/deep/result", "demo", overwrite=True)
    assert Path("new/deep/result").read_text() == "kept"


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (None, "new/deep"):
        with pytest.raises(ZeroDivisionError), claim(out, "demo").made() as path:
            assert path.is_dir()
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with claim("mine", "demo").made():
        pass
    assert (tmp_path / "mine").is_dir()


def test_what_the_system_leaves_in_a_folder_does_not_fill_it(tmp_path):
    for name in (".DS_Store", "._x", "Thumbs.db", "desktop.ini", ".nfs0001"):
        (tmp_path / name).write_text("")
    claim(tmp_path, "demo")


@pytest.mark.parametrize("verb", [["data", "check"], ["reconstruct"], ["generate"]])
def test_a_folder_with_things_in_it_is_refused_before_any_work(verb, tmp_path, capsys):
    (tmp_path / "old.txt").write_text("old")
    assert main([*verb, "kitti:/nowhere", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]


def test_a_place_where_no_folder_can_be_made_is_refused_before_any_work(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("a file")
    (tmp_path / "link").symlink_to("nowhere")
    for out, code in (
        ("note.txt", 2),
        ("note.txt/scene", 2),
        ("link", 2),
        (f"{'x' * 300}/scene", 4),
        ("/proc/scene", 4),
    ):
        assert main(["reconstruct", "kitti:/nowhere", "--out", out]) == code
        assert out.split("/")[0] in capsys.readouterr().err
    (tmp_path / "runs").write_text("a file too")
    for words in (["reconstruct", "kitti:/nowhere"], ["data", "make"], ["demo"]):
        assert main(words) == 2
        assert "runs is a file" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "note.txt", "runs"]


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


def test_without_a_home_folder_programs_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "restored afterwards")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    monkeypatch.setattr("jwm_jax.cli.doctor.run", lambda options: None)
    assert main(["doctor"]) == 0
    assert main(["reconstruct", "kitti:/nowhere", "--out", str(tmp_path / "out")]) == 3
    assert main(["reconstruct", "kitti:/nowhere", "--out", "~/out"]) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert main(["doctor"]) == 0
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_text_that_the_output_lacks_is_escaped(drive, tmp_path, monkeypatch):
    named = drive.rename(tmp_path / "\u9a7e\u9a76")
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    words = ["data", "check", f"folder:{named}", "--frames", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    sys.stdout.flush()
    assert b"\\u9a7e\\u9a76" in output.getvalue()
    assert (tmp_path / "out" / "check.png").is_file()


def test_a_backend_that_is_not_here_is_named(monkeypatch, capsys):
    def fail(*arguments):
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "quantum")
    monkeypatch.setattr("jax.devices", fail)
    assert main(["doctor"]) == 0
    assert "devices: none; JAX_PLATFORMS=quantum asks for" in capsys.readouterr().out
    monkeypatch.setattr("jwm_jax.data.load_clip", fail)
    assert main(["generate", "kitti:/nowhere"]) == 4
    assert "JAX_PLATFORMS=quantum asks for a backend" in capsys.readouterr().err


def test_doctor_names_a_backend_that_was_passed_over():
    words = [sys.executable, "-m", "jwm_jax", "doctor"]
    environment = {**os.environ, "JAX_PLATFORMS": "cuda,cpu"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "names cuda, which is not here" in done.stdout, done.stderr
