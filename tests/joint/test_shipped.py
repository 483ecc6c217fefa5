"""The shipped models on a street that no training has seen: they beat the simplest answers."""

import numpy as np
import pytest

from jwm_jax.cli.demo_work import show_reconstruction
from jwm_jax.data.streets import FIRST_TEST_SEED, make_clip, true_views
from jwm_jax.evaluation.images import psnr
from jwm_jax.evaluation.rollouts import evaluate_rollouts, streets_of
from jwm_jax.evaluation.worldrec import evaluate_worldrec
from jwm_jax.joint import JointWorldModel
from jwm_jax.scene import Camera
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec


@pytest.fixture(scope="module")
def world():
    return JointWorldModel(WorldRec.from_pretrained("tiny"), WorldGen.from_pretrained("tiny"))


@pytest.fixture(scope="module")
def start():
    """Five instants, of which the first and the last are context."""
    return make_clip(FIRST_TEST_SEED, "easy", num_frames=5, views=("front",))


def test_worldrec_beats_the_nearest_frame_between_and_beside(world, start):
    table = evaluate_worldrec(world.rec, [start])
    ours, nearest = table["worldrec"], table["nearest frame"]
    assert ours["PSNR"] > nearest["PSNR"] + 4.0 and ours["SSIM"] > nearest["SSIM"]
    assert ours["PSNR shift"] > nearest["PSNR shift"] + 6.0
    assert "worldrec, lidar depth" in table and "warp by true depth" in table


def test_the_demo_looks_to_the_side_it_says(world, start):
    seen = show_reconstruction(world.rec, start, 0, start.name)
    assert seen.held_out.tolist() == [False, True, True, True, False]
    assert seen.psnr.min() > 24.0
    path = start.camera_path(0)
    for left, video in seen.shifted.items():
        beside = np.array(path.world_from_camera)
        beside[:, :3, 3] += left * start.world_from_ego[:, :3, 1]
        cameras = [Camera(start.cameras[0], pose) for pose in beside]
        here = true_views(start.name, cameras, start.times[:, 0] - start.start).rgb
        np.testing.assert_allclose(seen.shifted_truth[left], here / np.float32(255), atol=1e-6)
        assert psnr(video, seen.shifted_truth[left]) > psnr(video, seen.shifted_truth[-left]) + 4.0
    standing = np.abs(seen.frozen - seen.frozen[:1]).mean()
    assert standing < 0.5 * np.abs(seen.rendered - seen.rendered[:1]).mean()


def test_futures_with_the_scene_beat_holding_the_first_frame(world):
    table = evaluate_rollouts(world, streets_of("easy", 1))
    for horizon, decibels in (("0.4 s", 3.0), ("1 s", 4.0), ("2 s", 2.0)):
        assert table["prior"][horizon] > table["copy"][horizon] + decibels
    assert table["prior"]["1 s"] > table["no prior"]["1 s"] + 2.0
