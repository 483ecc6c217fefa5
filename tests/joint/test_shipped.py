"""The shipped models on one street that no training has seen: they beat the simplest answer."""

import pytest

from jwm_jax.evaluation.rollouts import evaluate_rollouts, streets_of
from jwm_jax.evaluation.worldrec import evaluate_worldrec
from jwm_jax.evaluation.worldrec import streets_of as streets_to_reconstruct
from jwm_jax.joint import JointWorldModel
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec


@pytest.fixture(scope="module")
def rec():
    return WorldRec.from_pretrained("tiny")


def test_worldrec_beats_the_nearest_frame_at_unseen_instants_and_places(rec):
    table = evaluate_worldrec(rec, streets_to_reconstruct("easy", 1))
    for column, decibels in (("PSNR", 3.0), ("PSNR shift", 5.0)):
        assert table["worldrec"][column] > table["nearest frame"][column] + decibels


def test_futures_with_the_scene_beat_holding_the_first_frame(rec):
    world = JointWorldModel(rec, WorldGen.from_pretrained("tiny"))
    table = evaluate_rollouts(world, streets_of("easy", 1))
    for horizon, decibels in (("0.4 s", 3.0), ("1 s", 4.0), ("2 s", 2.0)):
        assert table["prior"][horizon] > table["copy"][horizon] + decibels
    assert table["prior"]["1 s"] > table["no prior"]["1 s"] + 3.0
