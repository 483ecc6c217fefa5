"""Verbs around the models: what they hand on, what they write, and what they refuse."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jwm_jax.joint
import jwm_jax.worldgen
import jwm_jax.worldrec
from jwm_jax.cli.main import main
from jwm_jax.scene import Scene, make_gaussians

FRAMES = 14


@pytest.fixture
def drive(tmp_path):
    """A plain folder of 14 frames, one metre apart."""
    return write_drive(tmp_path / "drive", FRAMES)


def write_drive(folder, frames):
    (folder / "front").mkdir(parents=True)
    for t in range(frames):
        Image.fromarray(np.full((24, 32, 3), 90 + t, np.uint8)).save(
            folder / "front" / f"{t:03d}.png"
        )
    ego = np.tile(np.eye(4), (frames, 1, 1))
    ego[:, 0, 3] = np.arange(frames)
    view = {"name": "front", "K": [[30, 0, 16], [0, 30, 12], [0, 0, 1]]}
    description = {"views": [view], "world_from_ego": ego.tolist()}
    (folder / "cameras.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Models that note what they are asked for."""
    notes = SimpleNamespace()

    def load(kind):
        def from_pretrained(name):
            setattr(notes, kind, name)
            return SimpleNamespace(kind=kind, config=SimpleNamespace(frames_per_chunk=4))

        return SimpleNamespace(from_pretrained=from_pretrained)

    class World:
        def __init__(self, rec, gen):
            assert (rec.kind, gen.kind) == ("rec", "gen")

        def rollout(self, clip, trajectory, **options):
            notes.clip, notes.trajectory, notes.options = clip, trajectory, options
            return SimpleNamespace(frames=trajectory.times, save=lambda folder: folder)

    monkeypatch.setattr(jwm_jax.worldrec, "WorldRec", load("rec"))
    monkeypatch.setattr(jwm_jax.worldgen, "WorldGen", load("gen"))
    monkeypatch.setattr(jwm_jax.joint, "JointWorldModel", World)
    return notes


def test_generate_shows_the_first_frames_and_drives_on(drive, asked, tmp_path, capsys):
    words = ["--seen", "5", "--seed", "3", "--steps", "2", "--no-prior", "--gen", "small"]
    assert main(["generate", f"folder:{drive}", "--out", str(tmp_path / "out"), *words]) == 0
    assert (asked.rec, asked.gen) == ("tiny", "small")
    assert asked.options == {"seed": 3, "steps": 2, "use_prior": False}
    assert asked.clip.num_frames == 5
    np.testing.assert_allclose(asked.trajectory.world_from_ego[:, 0, 3], np.arange(5, 13))
    np.testing.assert_allclose(asked.trajectory.times, 0.1 * np.arange(5, 13))
    text = capsys.readouterr().out
    assert "Using the first 13 of 14 frames" in text and "Leaving out" not in text
    assert f"jwm generate folder:{drive} --seed 4" in text


def test_generate_says_what_does_not_fill_a_chunk(drive, asked, tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--seen", "3"]
    assert main(["generate", f"folder:{drive}", *words]) == 0
    assert asked.trajectory.num_frames == 8
    assert "Leaving out the last 2 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "8"], "8 frames were asked for"),
        (["--seen", "10"], "--seen 10: expected 1 to 9"),
        (["--seen", "0"], "--seen 0: expected 1 to 9"),
    ],
)
def test_generate_refuses_numbers_out_of_range(drive, asked, tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert main(["generate", f"folder:{drive}", "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists() and not hasattr(asked, "clip")


def a_scene():
    """A wall of grey blobs ten metres ahead."""
    y, z = np.meshgrid(np.linspace(-4, 4, 8), np.linspace(0, 3, 4))
    means = np.stack([np.full(y.size, 10.0), y.ravel(), z.ravel()], axis=1).astype(np.float32)
    n = len(means)
    gaussians = make_gaussians(
        means=jnp.asarray(means),
        quats=jnp.tile(jnp.array([1.0, 0, 0, 0]), (n, 1)),
        scales=jnp.full((n, 3), 0.6),
        opacities=jnp.full(n, 0.9),
        colors=jnp.full((n, 3), 0.5),
    )
    return Scene(gaussians=gaussians)


@pytest.mark.parametrize(("frames", "suffix"), [(3, "mp4"), (1, "png")])
def test_reconstruct_writes_scene_and_views(frames, suffix, tmp_path, monkeypatch, capsys):
    drive = write_drive(tmp_path / "drive", frames)
    seen = []

    class Model:
        config = jwm_jax.worldrec.WorldRecConfig()

        def __call__(self, clip, depth_source):
            assert depth_source is None, "a plain folder has no lidar"
            seen.append(clip.num_frames)
            return a_scene()

    models = SimpleNamespace(from_pretrained=lambda name: Model())
    monkeypatch.setattr(jwm_jax.worldrec, "WorldRec", models)
    out = tmp_path / "out"
    words = ["--frames", "2", "--video-frames", "2"]
    assert main(["reconstruct", f"folder:{drive}", "--out", str(out), *words]) == 0
    assert seen == [min(frames, 2)]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"] == []
    assert summary["gaussians"] == 32 and summary["views"] == ["front"]
    expected = {"scene.ply", "scene.npz", "views.png", f"left_2_m.{suffix}"}
    assert expected <= set(summary["files"]) == {p.name for p in out.iterdir()} - {"summary.json"}
    assert Scene.load(out / "scene.npz").gaussians.means.shape == (32, 3)
    assert ("jwm generate" in capsys.readouterr().out) == (frames >= 9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "0"], "clips: expected 1 or more, got 0"),
        (["--frames", "0"], "frames: expected 1 or more, got 0"),
        (["--views", "top"], "expected views out of"),
        (["--first-seed", "999999", "--clips", "2"], "mix training and test streets"),
    ],
)
def test_data_make_refuses_before_it_makes_a_folder(tmp_path, words, message, capsys):
    assert main(["data", "make", *words, "--out", str(tmp_path / "set")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_data_make_hands_its_flags_on(tmp_path, monkeypatch, capsys):
    from jwm_jax.data.streets import make

    calls = []
    monkeypatch.setattr(make, "make_dataset", lambda *arguments: calls.append(arguments))
    words = ["--rung", "full", "--clips", "3", "--first-seed", "7"]
    words += ["--frames", "9", "--views", "front", "--workers", "1"]
    assert main(["data", "make", *words, "--out", str(tmp_path / "set")]) == 0
    folder, config, _ = calls[0]
    assert folder == tmp_path / "set"
    assert (config.rung, config.clips, config.first_seed, config.frames) == ("full", 3, 7, 9)
    assert config.views == ("front",) and config.workers == 1
    assert f"jwm data check dataset:{folder}" in capsys.readouterr().out
