"""The shipped models on one street that no training has seen: they beat the simplest answer."""

import numpy as np
import pytest

from jwm_jax.evaluation.images import psnr
from jwm_jax.evaluation.rollouts import evaluate_rollouts, streets_of
from jwm_jax.joint import JointWorldModel
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec
from jwm_jax.worldrec.baselines import nearest_frame


@pytest.fixture(scope="module")
def world():
    return JointWorldModel(WorldRec.from_pretrained("tiny"), WorldGen.from_pretrained("tiny"))


@pytest.fixture(scope="module")
def street():
    return next(streets_of("easy", 1))


def test_worldrec_beats_the_nearest_frame_at_an_unseen_instant(world, street):
    context = street.select([8, 12])
    scene = world.rec(context)
    truth = street.view(0)[10].astype(np.float32) / 255
    seen = scene.render(street.camera(10, 0), float(street.times[10, 0] - scene.start)).rgb
    held = nearest_frame(context, float(street.times[10, 0]), 0)
    assert psnr(np.asarray(seen), truth) > psnr(held, truth) + 4.0


def test_futures_with_the_scene_beat_holding_the_first_frame(world, street):
    table = evaluate_rollouts(world, [street])
    for horizon, decibels in (("0.4 s", 3.0), ("1 s", 4.0), ("2 s", 2.0)):
        assert table["prior"][horizon] > table["copy"][horizon] + decibels
    assert table["prior"]["1 s"] > table["no prior"]["1 s"] + 2.0
