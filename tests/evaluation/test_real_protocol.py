"""The protocol for real drives takes the right frames, with models whose errors are known."""

import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

import jwm_jax.data
import jwm_jax.evaluation.real as protocol
import jwm_jax.joint
import jwm_jax.worldgen
import jwm_jax.worldrec
from jwm_jax.cli.main import main
from jwm_jax.errors import DataError
from jwm_jax.evaluation.images import energy
from jwm_jax.joint import JointWorldModel, Rollout
from jwm_jax.scene import Clip, Intrinsics
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec

HEIGHT, WIDTH = 16, 24
CHECKS = (np.indices((HEIGHT, WIDTH)).sum(0) % 2).astype(np.uint8)[..., None]


def drive(frames: int) -> Clip:
    """Frame t is a checkerboard of greys t and t + 40."""
    lens = Intrinsics(K=np.asarray([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]), width=24, height=16)
    grey = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    poses = np.tile(np.eye(4), (frames, 1, 1))
    return Clip(
        images=(np.repeat(grey + 40 * CHECKS, 3, axis=-1),),
        times=0.1 * np.arange(frames, dtype=np.float64)[:, None],
        world_from_ego=poses,
        world_from_camera=poses[:, None],
        cameras=(lens,),
        view_names=("front",),
        name="checks",
    )


class KnownErrors(JointWorldModel):
    """Futures 51 grey levels too bright with a scene; 102 and blurred without."""

    def rollout(self, clip, trajectory, *, use_prior=True, **options):
        assert clip.num_frames == 1
        start = round(float(clip.times[0, 0]) * 10)
        count = trajectory.num_frames // 4 * 4
        truth = drive(200).view(0)[start + 1 : start + 1 + count]
        frames = truth + 51 if use_prior else np.full_like(truth, 20) + truth[:, :1, :1] + 102
        return Rollout(
            frames=frames[:, None],
            times=trajectory.times[:count],
            prior=(truth + np.uint8(25))[:, None],
            prior_alpha=np.full((count, 1, HEIGHT, WIDTH), 255, np.uint8),
        )


@pytest.fixture
def world(monkeypatch) -> KnownErrors:
    """Its codec adds 0.01, and its reconstruction misses by 0.1."""
    monkeypatch.setattr(protocol, "_perceptual", lambda: None)
    monkeypatch.setattr(
        protocol,
        "methods_of",
        lambda rec, context, baseline: {
            "worldrec": lambda target: target.truth + 0.1,
            "warp by true depth": lambda target: target.truth,
        },
    )
    gen = Mock(spec=WorldGen)
    gen.config = SimpleNamespace(picture_size=lambda height, width: (HEIGHT, WIDTH))
    gen.codec = SimpleNamespace(encode=lambda x: x, decode=lambda x: x + 0.01)
    return KnownErrors(Mock(spec=WorldRec), gen)


def decibels(error):
    return round(-20 * np.log10(error), 3)


def test_each_row_is_compared_at_its_horizon_over_three_windows(world):
    scores = protocol.evaluate_drive(world, drive(100))
    assert scores.windows == 3 and protocol.window_starts(drive(100)) == [0, 39, 79]
    assert scores.reconstruction == {"worldrec": {"PSNR": 20.0, "energy": 1.0}}
    columns = [f"{m} {h} s" for m in ("PSNR", "energy") for h in ("0.4", "1", "2")]
    assert list(scores.future["joint"]) == columns
    wanted = {"joint": 51 / 255, "scene alone": 25 / 255, "codec": 0.01}
    for row, error in wanted.items():
        assert [scores.future[row][c] for c in columns] == pytest.approx(
            [decibels(error)] * 3 + [1.0] * 3, abs=0.02
        )
    held = [scores.future["first frame held"][c] for c in columns[:3]]
    assert held == pytest.approx([decibels(t / 255) for t in (4, 10, 20)], abs=0.01)
    assert [scores.future["generator alone"][c] for c in columns[3:]] == [0.0] * 3
    assert scores.strips["truth, future"].shape == (3, HEIGHT, WIDTH, 3)


def test_a_short_drive_has_fewer_horizons_and_one_without_poses_no_scene(world):
    short = protocol.evaluate_drive(world, drive(16))
    assert short.windows == 1 and set(short.future["joint"]) == {
        f"{m} {h} s" for m in ("PSNR", "energy") for h in ("0.4", "1")
    }
    film = protocol.evaluate_drive(world, replace(drive(30), posed=False))
    assert film.reconstruction == {}
    assert set(film.future) == {"first frame held", "generator alone", "codec"}
    with pytest.raises(DataError, match="needs 5 instants at about 10 Hz, and the drive has 4"):
        protocol.prepared(drive(4), print)


def test_energy_is_one_for_the_same_and_less_when_blurred():
    noise = np.random.default_rng(0).uniform(size=(2, 12, 14, 3))
    padded = np.pad(noise, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    blurred = sum(
        weights[i, j] * padded[:, i : i + 12, j : j + 14] for i in range(3) for j in range(3)
    )
    inner = (slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(
        energy(noise), ((noise - blurred)[inner] ** 2).mean((1, 2, 3)), rtol=1e-12
    )
    assert (energy(blurred) < 0.2 * energy(noise)).all()


def test_the_verb_prints_tables_and_keeps_sheets(world, monkeypatch, tmp_path, capsys):
    loader = SimpleNamespace(from_pretrained=lambda name: None)
    monkeypatch.setattr(jwm_jax.worldrec, "WorldRec", loader)
    monkeypatch.setattr(jwm_jax.worldgen, "WorldGen", loader)
    monkeypatch.setattr(jwm_jax.joint, "JointWorldModel", lambda rec, gen: world)
    monkeypatch.setattr(jwm_jax.data, "load_clip", lambda spec: drive(30 if spec == "a:b" else 3))
    words = ["evaluate", "real", "--clips", "a:b", "--out", str(tmp_path / "o")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "Reconstruction, a:b, 3 windows (real-v1)" in text and "first frame held" in text
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["00_checks.jpg", "scores.json"]
    scores = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert scores["protocol"] == "real-v1"
    assert main(["evaluate", "real", "--clips", "a:b", "c:d"]) == 3
    assert "checks: protocol real-v1 needs 5 instants" in capsys.readouterr().err
    assert main(["evaluate", "real"]) == 2
    assert main(["evaluate", "codec", "--clips", "a:b"]) == 2
