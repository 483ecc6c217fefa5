"""Where the depth of training's priors comes from."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from jwm_jax.errors import UsageError
from jwm_jax.paradigms import priors
from jwm_jax.paradigms.priors import ScenePriors
from jwm_jax.paradigms.worldgen_task import WorldGenExperiment, WorldGenTask
from jwm_jax.scene import Clip, Intrinsics
from jwm_jax.worldrec import LidarDepth, WorldRec


def clips(count: int, lidar: bool = True):
    spin = (np.zeros((1, 4), np.float32),)
    clip = Clip(
        images=(np.zeros((1, 8, 8, 3), np.uint8),),
        times=np.zeros((1, 1)),
        world_from_ego=np.eye(4)[None],
        world_from_camera=np.eye(4)[None, None],
        cameras=(Intrinsics(K=np.diag([8.0, 8.0, 1.0]), width=8, height=8),),
        view_names=("front",),
        lidar=spin if lidar else None,
    )
    return [replace(clip, name=f"clip {index}") for index in range(count)]


def measured(monkeypatch, depth: str, lidar: bool = True) -> list[bool]:
    """For each of some clips, whether its prior was made from measured depth."""
    prior = WorldGenTask(WorldGenExperiment(name="test", rec="tiny", depth=depth)).prior
    vars(prior)["rec"] = Mock(spec=WorldRec)
    made = Mock(return_value=(np.zeros(1), np.zeros(1)))
    monkeypatch.setattr(priors, "first_instant_prior", made)
    for clip in clips(40, lidar):
        prior(clip)
    depths = [call.args[2] for call in made.call_args_list]
    assert all(depth is None or isinstance(depth, LidarDepth) for depth in depths)
    return [depth is not None for depth in depths]


def test_mixed_depth_is_measured_for_about_half_of_the_clips_and_always_the_same(monkeypatch):
    first = measured(monkeypatch, "mixed")
    assert 10 <= sum(first) <= 30
    assert first == measured(monkeypatch, "mixed")
    assert all(measured(monkeypatch, "measured")) and not any(measured(monkeypatch, "network"))


def test_clips_without_lidar_leave_depth_to_the_network(monkeypatch):
    assert not any(measured(monkeypatch, "measured", lidar=False))


def test_priors_of_other_depth_have_another_name():
    rec = Mock(spec=WorldRec, params={"w": np.ones(3)})
    names = set()
    for depth in priors.DEPTHS:
        prior = ScenePriors("tiny", depth)
        vars(prior)["rec"] = rec
        names.add(prior.name)
    assert len(names) == len(priors.DEPTHS)


def test_a_training_without_a_scene_has_no_priors():
    task = WorldGenTask(WorldGenExperiment(name="test"))
    assert task.prior is None and task.prior_name == "none"


def test_an_unknown_depth_is_refused():
    with pytest.raises(UsageError, match="network, measured, mixed"):
        WorldGenExperiment(name="test", depth="lidar")
