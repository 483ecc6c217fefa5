"""The rollout protocol takes the right frames, with a world whose errors are known."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

import jwm_jax.evaluation.rollouts as protocol
import jwm_jax.paradigms.held_out
import jwm_jax.worldgen
import jwm_jax.worldrec
from jwm_jax.cli.main import main
from jwm_jax.joint import JointWorldModel, Rollout
from jwm_jax.scene import Clip
from jwm_jax.scene.cameras import Intrinsics
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec

HEIGHT, WIDTH = 16, 24


def grey_clip() -> Clip:
    """Frame t is of grey 5 t."""
    frames = protocol.FRAMES
    lens = Intrinsics(K=np.asarray([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]), width=24, height=16)
    grey = 5 * np.arange(frames, dtype=np.uint8)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    return Clip(
        images=(np.broadcast_to(grey[:, None, None, None], (frames, HEIGHT, WIDTH, 3)),),
        times=0.1 * np.arange(frames, dtype=np.float64)[:, None],
        world_from_ego=poses,
        world_from_camera=poses[:, None],
        cameras=(lens,),
        view_names=("front",),
        name="grey",
    )


class KnownErrors(JointWorldModel):
    """Futures that miss the truth by 51 grey levels with a scene, by 102 without."""

    def rollout(self, clip, trajectory, *, use_prior=True, **options):
        assert clip.num_frames == 1 and trajectory.num_frames == 24
        truth = grey_clip().view(0)[1:]
        frames = (truth + np.uint8(51 if use_prior else 102))[:, None]
        return Rollout(
            frames=frames,
            times=trajectory.times,
            prior=(truth + np.uint8(25))[:, None],
            prior_alpha=np.full((24, 1, HEIGHT, WIDTH), 255, np.uint8),
        )


def a_world() -> KnownErrors:
    """Its codec adds 0.01."""
    gen = Mock(spec=WorldGen)
    gen.codec = SimpleNamespace(encode=lambda x: x, decode=lambda x: x + 0.01)
    return KnownErrors(Mock(spec=WorldRec), gen)


def test_each_row_is_compared_at_its_horizon():
    table = protocol.evaluate_rollouts(a_world(), [grey_clip()])

    def decibels(levels):
        return round(-20 * np.log10(levels / 255), 2)

    assert list(table["copy"]) == ["0.4 s", "1 s", "2 s"]
    assert list(table["copy"].values()) == pytest.approx([decibels(5 * t) for t in (4, 10, 20)])
    for row, levels in {"prior": 51, "no prior": 102, "warp": 25, "codec": 2.55}.items():
        assert list(table[row].values()) == pytest.approx([decibels(levels)] * 3, abs=0.011)


def test_scores_and_pictures_are_kept_where_asked(monkeypatch, tmp_path, capsys):
    loader = SimpleNamespace(from_pretrained=lambda name: None)
    monkeypatch.setattr(jwm_jax.worldrec, "WorldRec", loader)
    monkeypatch.setattr(jwm_jax.worldgen, "WorldGen", loader)
    monkeypatch.setattr(jwm_jax.joint, "JointWorldModel", lambda rec, gen: a_world())
    monkeypatch.setattr(protocol, "streets_of", lambda rung, count: iter([grey_clip()] * count))
    loss = {"prior": {"flow loss": 0.5}}
    monkeypatch.setattr(jwm_jax.paradigms.held_out, "held_out_flow_loss", lambda *a: loss)
    words = ["evaluate", "worldgen", "--rung", "easy", "--count", "1", "--out", str(tmp_path / "o")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "PSNR, easy, 1 streets (streets-rollout-v1)" in text and "0.500" in text
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["easy.jpg", "scores.json"]
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err
