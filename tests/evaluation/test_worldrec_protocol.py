"""PSNR and the baselines of the WorldRec protocol."""

import numpy as np
import pytest

from jwm_jax.evaluation.images import psnr, ssim
from jwm_jax.evaluation.worldrec import held_out_targets
from jwm_jax.scene import EGO_FROM_OPENCV, Clip, Intrinsics, make_transform
from jwm_jax.worldrec.baselines import nearest_frame, warped_frame


@pytest.fixture(scope="module")
def wall() -> Clip:
    """A smooth wall at 20 m, seen from five places; true depth everywhere."""
    height, width = 32, 48
    K = np.array([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]])
    lens = Intrinsics(K=K, width=width, height=height)
    images, poses, depths = [], [], []
    for t in range(5):
        pose = make_transform(np.eye(3), np.array([0.8 * t, 0.3 * t, 1.5])) @ EGO_FROM_OPENCV
        gap = 20.0 - pose[0, 3]
        point = (np.asarray(lens.pixel_rays()) * gap) @ pose[:3, :3].T + pose[:3, 3]
        wave = 0.5 + 0.3 * np.sin(point @ np.array([[0, 0, 0], [0.5, 0.3, 0.2], [0.2, 0.4, 0.3]]))
        images.append(np.round(wave * 255).astype(np.uint8))
        poses.append(pose)
        depths.append(np.full((height, width), gap, np.float32))
    times = 5.0 + 0.1 * np.arange(5)
    return Clip(
        images=(np.stack(images),),
        times=times[:, None],
        world_from_ego=np.stack(poses) @ np.linalg.inv(EGO_FROM_OPENCV),
        world_from_camera=np.stack(poses)[:, None],
        cameras=(lens,),
        view_names=("front",),
        depth=(np.stack(depths),),
    )


def test_psnr_of_a_known_error():
    truth = np.full((4, 4, 3), 0.5, np.float32)
    np.testing.assert_allclose(psnr(truth + 0.1, truth), 20.0, atol=1e-4)
    assert psnr(truth, truth) == 100.0
    assert psnr(truth + 9.0, truth) == psnr(np.ones_like(truth), truth)
    assert ssim(np.tile(truth, (4, 4, 1)), np.tile(truth, (4, 4, 1))) == pytest.approx(1.0)


def test_targets_are_the_instants_between_the_context(wall):
    targets = held_out_targets(wall)
    assert [round(t.time - 5.0, 3) for t in targets] == [0.1, 0.2, 0.3]
    assert all((t.depth > 0).all() for t in targets)


def test_warping_by_true_depth_shows_what_the_target_sees(wall):
    context = wall.select([0, 4])
    target = held_out_targets(wall)[1]
    warped = warped_frame(context, target.time, 0, target.camera, target.depth)
    still = nearest_frame(context, target.time, 0)
    inner = (slice(6, -6), slice(6, -6))
    assert psnr(warped[inner], target.truth[inner]) > 45.0
    assert psnr(still[inner], target.truth[inner]) < 30.0


def test_the_nearest_frame_is_the_nearest_in_time(wall):
    context = wall.select([0, 4])
    first = nearest_frame(context, 5.1, 0)
    np.testing.assert_array_equal(first, wall.view(0)[0].astype(np.float32) / np.float32(255))
