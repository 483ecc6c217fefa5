"""Key-frame feedback: generated pictures extend the scene where it had holes.

WorldRec reconstructs the key frame as a clip of one instant. Of its Gaussians those stay that

- project only to pixels where the prior was open (alpha < 0.5), so that nothing a sensor saw is
  ever painted over, and
- agree with the scene's scale: the key frame's depth is multiplied by the median ratio of the
  scene's depth to its own over pixels both know.

They are marked with confidence 0.5 and written one after another behind the scene's own, into room
made before; its size does not depend on the horizon, and what does not fit is left out and counted.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from jwm_jax.joint.prior import render_prior
from jwm_jax.scene import (
    Camera,
    Clip,
    Gaussians,
    Scene,
    Tracks,
    inside_image,
    matrix_to_quat,
    quat_multiply,
    stack_cameras,
    transform_points,
)
from jwm_jax.scene.pytree import Array
from jwm_jax.worldrec import WorldRec

GENERATED_CONFIDENCE = 0.5
OPEN_ALPHA = 0.5


def with_room(scene: Scene, rows: int) -> Scene:
    """The scene with `rows` more padding Gaussians at its end."""

    def grown(name, value):
        if value is None:
            return None
        fill = jnp.zeros((rows, *value.shape[1:]), value.dtype)
        if name == "quats":
            fill = fill.at[:, 0].set(1.0)
        if name == "scales":
            fill = fill + 1e-3
        return jnp.concatenate([jnp.asarray(value), fill])

    fields = {n: grown(n, getattr(scene.gaussians, n)) for n in Gaussians.__dataclass_fields__}
    return replace(scene, gaussians=Gaussians(**fields))


def extend_scene(
    rec: WorldRec,
    scene: Scene,
    frames: UInt8[np.ndarray, "v h w 3"],
    cameras: tuple[Camera, ...],
    world_from_ego: Float[np.ndarray, "4 4"],
    time: float,
    tracks: Tracks | None,
    row: int,
) -> tuple[Scene, int, int]:
    """Adds what a generated key frame shows in the scene's holes.

    Args:
        rec: Reconstructs the key frame.
        scene: With room for Gaussians from `row` on.
        frames: Generated pictures of all views.
        cameras: Where they were "taken", world frame, one a view.
        world_from_ego: The ego pose at that instant.
        time: Absolute seconds.
        tracks: Boxes of the scene's things, in its order, on the absolute clock; or None.
        row: First row of the scene's buffer to write.

    Returns:
        The extended scene, how many Gaussians were added, and how many did not fit.
    """
    clip = _instant(frames, cameras, world_from_ego, time, tracks)
    found = rec(clip)
    camera = stack_cameras(
        [Camera(c.intrinsics, p) for c, p in zip(cameras, clip.world_from_camera[0], strict=True)]
    )
    when = np.full(len(cameras), time - scene.start, np.float32)
    known = render_prior(scene, stack_cameras(cameras), when)
    own = render_prior(found, camera, np.zeros(len(cameras), np.float32))
    scale = _depth_scale(known, own)
    addition = _moved(found.gaussians, clip.world_from_camera[0, 0], scale)
    keep = _open_pixels(
        Scene(addition, found.tracks, start=found.start, tau=found.tau), camera, known.alpha
    )
    addition = _to_world(addition, world_from_ego, time - scene.start, keep)
    found, fit = int(keep.sum()), scene.gaussians.capacity - row
    gaussians = _written(scene.gaussians, addition, row)
    return replace(scene, gaussians=gaussians), min(found, fit), max(found - fit, 0)


def _instant(frames, cameras, world_from_ego, time, tracks) -> Clip:
    """The key frame as a clip of one instant whose world is its own ego frame."""
    return Clip(
        images=frames[None],
        times=np.full((1, len(cameras)), time),
        world_from_ego=np.asarray(world_from_ego, np.float64)[None],
        world_from_camera=np.stack([np.asarray(c.world_from_camera) for c in cameras])[None],
        cameras=tuple(c.intrinsics for c in cameras),
        view_names=tuple(f"view{i}" for i in range(len(cameras))),
        tracks=tracks,
    ).rebased()


def _depth_scale(known, own) -> float:
    """Median ratio of the scene's depth to the key frame's where both are sure; 1 if nowhere."""
    sure = (np.asarray(known.alpha) > 0.9) & (np.asarray(own.alpha) > 0.9)
    if sure.sum() < 100:
        return 1.0
    ratio = np.asarray(known.depth)[sure] / np.maximum(np.asarray(own.depth)[sure], 1e-3)
    return float(np.clip(np.median(ratio), 0.5, 2.0))


def _moved(gaussians: Gaussians, ego_from_camera, scale: float) -> Gaussians:
    """Static Gaussians pushed away from the first camera by a factor; actors stay as they are."""
    center = jnp.asarray(ego_from_camera[:3, 3], jnp.float32)
    static = (gaussians.owner == 0)[:, None]
    factor = jnp.where(static, scale, 1.0)
    means = jnp.where(static, center + scale * (gaussians.means - center), gaussians.means)
    return replace(gaussians, means=means, scales=gaussians.scales * factor)


def _open_pixels(scene: Scene, camera: Camera, alpha: Array) -> Bool[np.ndarray, "n"]:
    """Gaussians that project to at least one view, and only to pixels where alpha is low."""
    world = scene.compose(0.0)
    alpha = np.asarray(alpha)
    means = np.asarray(world.means, np.float64)
    keep = np.asarray(world.mask) & (np.asarray(world.opacities) > 1 / 255)
    seen = np.zeros(len(means), bool)
    for view in range(alpha.shape[0]):
        uv, depth = camera.at(view).project(means)
        inside = inside_image(uv, depth, camera.height, camera.width)
        column = np.clip(uv[:, 0].astype(int), 0, camera.width - 1)
        row = np.clip(uv[:, 1].astype(int), 0, camera.height - 1)
        keep &= ~inside | (alpha[view][row, column] < OPEN_ALPHA)
        seen |= inside
    return keep & seen


def _to_world(gaussians: Gaussians, world_from_ego, seconds: float, keep) -> Gaussians:
    """Static Gaussians from the key frame's ego frame to the world, at the key frame's time."""
    pose = jnp.asarray(world_from_ego, jnp.float32)
    static = (gaussians.owner == 0)[:, None]
    means = jnp.where(static, transform_points(pose, gaussians.means), gaussians.means)
    rotation = jnp.broadcast_to(matrix_to_quat(pose[:3, :3]), gaussians.quats.shape)
    quats = jnp.where(static, quat_multiply(rotation, gaussians.quats), gaussians.quats)
    return replace(
        gaussians,
        means=means,
        quats=quats,
        mask=jnp.asarray(keep),
        time=jnp.asarray(gaussians.time) + jnp.float32(seconds),
        confidence=jnp.full_like(gaussians.confidence, GENERATED_CONFIDENCE),
    )


def _written(old: Gaussians, new: Gaussians, row: int) -> Gaussians:
    """The unmasked ones of `new`, side by side from `row` on; none beyond the end."""
    place = row + jnp.cumsum(new.mask) - 1
    place = jnp.where(new.mask, place, old.capacity)

    def write(a, b):
        return jnp.asarray(a).at[place].set(b.astype(a.dtype), mode="drop")

    fields = {
        n: None if getattr(old, n) is None else write(getattr(old, n), getattr(new, n))
        for n in Gaussians.__dataclass_fields__
    }
    return Gaussians(**fields)
