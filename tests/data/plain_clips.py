"""A small made-up drive that tests break in one way each."""

import numpy as np

from jwm_jax.scene import EGO_FROM_OPENCV, Clip, Intrinsics, LaneMap, Tracks

HEIGHT, WIDTH = 12, 20


def plain_clip(frames: int = 5, views: int = 2, **changes) -> Clip:
    """A drive straight ahead at 5 m/s; `changes` replace fields of the clip."""
    rng = np.random.default_rng(0)
    ego = np.tile(np.eye(4), (frames, 1, 1))
    ego[:, 0, 3] = 0.5 * np.arange(frames)
    mount = EGO_FROM_OPENCV.copy()
    mount[:3, 3] = [1.5, 0.0, 1.5]
    mounts = np.stack([mount] * views)
    mounts[:, 1, 3] = np.arange(views)
    lens = Intrinsics(
        K=np.array([[15.0, 0, 10], [0, 15, 6], [0, 0, 1]]), width=WIDTH, height=HEIGHT
    )
    ground = np.stack([np.linspace(4, 12, 200), np.zeros(200), np.zeros(200), np.ones(200)], 1)
    fields = {
        "images": tuple(
            rng.integers(30, 255, (frames, HEIGHT, WIDTH, 3), np.uint8) for _ in range(views)
        ),
        "times": 100.0 + 0.1 * np.arange(frames)[:, None] + 0.01 * np.arange(views),
        "world_from_ego": ego,
        "world_from_camera": ego[:, None] @ mounts,
        "cameras": (lens,) * views,
        "view_names": tuple(f"view{v}" for v in range(views)),
        "lidar": tuple(ground.astype(np.float32) for _ in range(frames)),
        "tracks": Tracks(
            times=np.array([100.0, 100.5]),
            centers=np.array([[[8.0, 0, 1], [9.0, 0, 1]]]),
            quats=np.array([[[1.0, 0, 0, 0], [np.cos(0.2), 0, 0, np.sin(0.2)]]]),
            sizes=np.array([[4.0, 2, 1.5]]),
            valid=np.array([[True, True]]),
            category=np.array([0], np.int32),
            ids=("car-0",),
        ),
        "map": LaneMap((np.array([[0.0, 2, 0], [30, 2, 0]]),), ("road_edge",)),
        "style": {"weather": "sun"},
        "name": "plain",
    }
    return Clip(**(fields | changes))
