"""A small WorldRec and a small analytic drive: ground, a wall, a box that drives ahead, sky."""

import numpy as np
import pytest

from jwm_jax.scene import EGO_FROM_OPENCV, Clip, Intrinsics, Tracks, make_transform
from jwm_jax.worldrec import StageConfig, WorldRec, WorldRecConfig

HEIGHT, WIDTH = 48, 80


@pytest.fixture(scope="session")
def config() -> WorldRecConfig:
    return WorldRecConfig(
        height=HEIGHT,
        cell=(4, 4),
        children=(2, 2),
        width=16,
        hidden=16,
        weight_hidden=8,
        stem=8,
        stages=(
            StageConfig(8, 1, 1, 1, True),
            StageConfig(8, 1, 2, 2, True),
            StageConfig(16, 2, 2, 2, False),
        ),
        pyramid=8,
        norm_group=4,
        max_tracks=2,
        sky=(6, 16),
        buckets=(1, 3),
    )


@pytest.fixture(scope="session")
def rec(config) -> WorldRec:
    import jax

    return WorldRec.initialize(config, jax.random.key(0))


def paint(pose: np.ndarray, K: np.ndarray, box_x: float) -> tuple[np.ndarray, np.ndarray]:
    """Picture and depth of the analytic world from one camera."""
    rays = np.asarray(Intrinsics(K, WIDTH, HEIGHT).pixel_rays(), np.float64)
    d, o = rays @ pose[:3, :3].T, pose[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(d[..., 2] < 0, -o[2] / d[..., 2], np.inf)
        side = (np.sign(d[..., 1]) * 6.0 - o[1]) / d[..., 1]
        low = (np.array([box_x - 2, -1, 0.0]) - o) / d
        high = (np.array([box_x + 2, 1, 1.5]) - o) / d
    height = o[2] + side * d[..., 2]
    side = np.where((side > 0) & (height < 4) & (height > 0), side, np.inf)
    enter = np.minimum(low, high).max(-1)
    box = np.where((enter < np.maximum(low, high).min(-1)) & (enter > 0), enter, np.inf)
    depth = np.minimum(np.minimum(ground, side), box)
    point = o + np.where(np.isinf(depth), 0.0, depth)[..., None] * d
    wave = 0.5 + 0.2 * np.sin(point @ np.array([[1.0, 0.4, 0.1], [0.3, 1.1, 0.5], [0.5, 0.2, 1.0]]))
    image = np.where((depth == side)[..., None], wave * [1.0, 0.8, 0.6], wave)
    image = np.where((depth == box)[..., None], [0.8, 0.1, 0.1], image)
    image = np.where(np.isinf(depth)[..., None], [0.6, 0.7, 0.9], image)
    depth = np.where(np.isinf(depth) | (depth > 60), 0.0, depth)
    return np.round(image * 255).astype(np.uint8), depth.astype(np.float32)


@pytest.fixture(scope="session")
def clip() -> Clip:
    """Five instants of one view, 1 m apart; the box drives at 1.2 m an instant."""
    K = np.array([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
    steps = np.arange(5)
    ego = np.stack([make_transform(np.eye(3), np.array([1.0 * t, 0.0, 0.0])) for t in steps])
    mount = make_transform(np.eye(3), np.array([1.0, 0.0, 1.5])) @ EGO_FROM_OPENCV
    poses = ego @ mount
    times = 100.0 + 0.1 * steps
    box_x = 10.0 + 1.2 * steps
    pairs = [paint(p, K, x) for p, x in zip(poses, box_x, strict=True)]
    centers = np.stack([np.array([x, 0.0, 0.75]) for x in box_x])[None]
    tracks = Tracks(
        times=times,
        centers=centers,
        quats=np.tile([1.0, 0, 0, 0], (1, 5, 1)),
        sizes=np.array([[4.0, 2.0, 1.5]]),
        valid=np.ones((1, 5), bool),
        category=np.zeros(1, np.int32),
        ids=("red",),
    )
    rays = np.asarray(Intrinsics(K, WIDTH, HEIGHT).pixel_rays())
    lidar = []
    for _, depth in pairs:
        keep = (depth > 0) & (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) % 3 == 0)
        points = (rays * depth[..., None])[keep] @ mount[:3, :3].T + mount[:3, 3]
        lidar.append(np.concatenate([points, np.ones((len(points), 1))], -1).astype(np.float32))
    return Clip(
        images=(np.stack([p[0] for p in pairs]),),
        times=times[:, None],
        world_from_ego=ego,
        world_from_camera=poses[:, None],
        cameras=(Intrinsics(K=K, width=WIDTH, height=HEIGHT),),
        view_names=("front",),
        lidar=tuple(lidar),
        tracks=tracks,
        depth=(np.stack([p[1] for p in pairs]),),
        name="analytic",
    )
