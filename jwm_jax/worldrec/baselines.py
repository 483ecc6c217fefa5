"""What a reconstruction has to beat: the nearest context frame, as it is and warped by true depth.

Warping is backward: each pixel u of the target with true depth z comes from the context pixel

    u' = pi(camera_from_world' world_from_camera (z K^-1 (u, 1))),

read bilinearly, as if nothing moved. The target's true depth is something no method is given, so
this is a strong baseline for everything static. Pixels without depth (sky) are placed at 10 km;
pixels that fall outside the context picture, or on a surface nearer than theirs, are read all the
same, held at the border: a hole filled with a neighbour scores better than a black one.

The third baseline, pixel-aligned Gaussians on the same backbone, is a WorldRec with
`WorldRecConfig.pixel_aligned`.
"""

import numpy as np
from jaxtyping import Float

from jwm_jax.scene.cameras import Camera
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.transforms import transform_points

FAR = 1e4
"""Metres at which pixels without depth are placed."""


def nearest_picture(context: Clip, time: float, view: int) -> tuple[int, int]:
    """Frame and view of the context picture of the same view that is nearest in time.

    Args:
        context: Has the view.
        time: Absolute seconds.
        view: Index into the context's views.
    """
    return int(np.abs(context.times[:, view] - time).argmin()), view


def nearest_frame(context: Clip, time: float, view: int) -> Float[np.ndarray, "h w 3"]:
    """The nearest context picture as it is, in [0, 1]."""
    frame, view = nearest_picture(context, time, view)
    return context.view(view)[frame].astype(np.float32) / np.float32(255.0)


def warped_frame(
    context: Clip, time: float, view: int, camera: Camera, depth: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """The nearest context picture seen from another camera.

    Args:
        context: Has the view.
        time: Absolute seconds.
        view: Index into the context's views.
        camera: Of the target, world frame.
        depth: Of the target, metres along z, 0 where there is none.

    Returns:
        Picture in [0, 1] of the target's size.
    """
    frame, view = nearest_picture(context, time, view)
    source = context.camera(frame, view)
    image = context.view(view)[frame].astype(np.float32) / np.float32(255.0)
    rays = np.asarray(camera.intrinsics.pixel_rays(), np.float64)
    local = rays * np.where(depth > 0, depth, FAR)[..., None]
    world = transform_points(np.asarray(camera.world_from_camera, np.float64), local.reshape(-1, 3))
    uv, _ = source.project(world)
    return _read(image, uv).reshape(*depth.shape, 3)


def _read(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    x = np.clip(uv[:, 0] - 0.5, 0, width - 1)
    y = np.clip(uv[:, 1] - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    a, b = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - a) + image[top, left + 1] * a
    lower = image[top + 1, left] * (1 - a) + image[top + 1, left + 1] * a
    return (upper * (1 - b) + lower * b).astype(np.float32)
