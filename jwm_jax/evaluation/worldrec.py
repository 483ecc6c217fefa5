"""Protocol `worldrec-v1`: pictures at held-out instants and from beside the lane.

The front view of a drive at 96 rows, 17 instants at 10 Hz on procedural streets of seeds that no
training has seen; on other drives every instant there is. Every 4th instant is context, the others
are held out. PSNR and SSIM are taken per picture over all pixels and averaged over pictures, then
over drives:

- `held out`: the instants that are not context, where the vehicle was;
- `shift`: those halfway between two context instants, from 2 m left and 2 m right of it, against
  the street's own picture from there; only where a ray-caster can tell what that is.

Rows: WorldRec with its own depth, WorldRec with lidar (where there is any), pixel-aligned Gaussians
on the same backbone, the nearest context frame, and that frame warped by true depth (the target's
depth, or densified lidar where there is no true one). Nothing but the warp sees true depth. Where a
drive has boxes, the reconstructions are given those of all instants, held-out ones included: they
are asked how things look, not where they went.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from jwm_jax.data.streets import FIRST_TEST_SEED, make_clip, true_views
from jwm_jax.errors import DataError
from jwm_jax.evaluation.images import psnr, ssim
from jwm_jax.scene import Camera, Clip
from jwm_jax.worldrec import GivenDepth, LidarDepth, WorldRec
from jwm_jax.worldrec.baselines import nearest_frame, warped_frame
from jwm_jax.worldrec.pictures import resized_for

PROTOCOL = "worldrec-v1"
FRAMES = 17
CONTEXT_EVERY = 4
SHIFTS = (-2.0, 2.0)
"""Metres to the right of the vehicle's way."""


@dataclass(frozen=True)
class Target:
    """A picture to be predicted.

    Attributes:
        camera: Where from.
        time: When, absolute seconds.
        truth: [h, w, 3] in [0, 1].
        depth: True or lidar depth [h, w] in metres, 0 where unknown.
    """

    camera: Camera
    time: float
    truth: np.ndarray
    depth: np.ndarray


Method = Callable[[Target], np.ndarray]
"""Predicts a target's picture [h, w, 3]."""


def streets_of(rung: str, count: int) -> Iterator[Clip]:
    """The protocol's clips of one rung, made as they are used."""
    for i in range(count):
        yield make_clip(FIRST_TEST_SEED + i, rung, num_frames=FRAMES, views=("front",))


def held_out_targets(clip: Clip) -> list[Target]:
    """The instants of view 0 that are not context, with true depth or else lidar's."""
    source = GivenDepth() if clip.depth is not None else None
    if source is None and clip.lidar is not None:
        source = LidarDepth()
    targets = []
    for t in range(clip.num_frames):
        if t % CONTEXT_EVERY:
            camera = clip.camera(t, 0)
            depth = np.zeros((camera.height, camera.width), np.float32)
            depth = depth if source is None else source(clip, t, 0)
            truth = clip.view(0)[t].astype(np.float32) / np.float32(255.0)
            targets.append(Target(camera, float(clip.times[t, 0]), truth, depth))
    return targets


def shifted_targets(clip: Clip) -> list[Target]:
    """Instants halfway between context from beside the lane; none unless the clip is a street."""
    targets = []
    for shift in SHIFTS:
        frames = [t for t in range(clip.num_frames) if t % CONTEXT_EVERY == CONTEXT_EVERY // 2]
        cameras = [clip.camera(t, 0).translated(shift) for t in frames]
        times = clip.times[frames, 0]
        picture = true_views(clip.name, cameras, times - clip.start)
        if picture is None:
            return []
        for camera, time, rgb, depth in zip(
            cameras, times, picture.rgb, picture.depth, strict=True
        ):
            targets.append(
                Target(camera, float(time), rgb.astype(np.float32) / np.float32(255.0), depth)
            )
    return targets


def scene_method(rec: WorldRec, context: Clip, source=None) -> Method:
    """Reconstruct once, render every target."""
    scene = rec(context, source)
    return lambda target: np.asarray(scene.render(target.camera, target.time - scene.start).rgb)


def methods_of(rec: WorldRec, context: Clip, pixel_aligned: WorldRec | None) -> dict[str, Method]:
    """The rows of the protocol's table."""
    methods: dict[str, Method] = {"worldrec": scene_method(rec, context)}
    if context.lidar is not None:
        methods["worldrec, lidar depth"] = scene_method(rec, context, LidarDepth())
    if pixel_aligned is not None:
        methods["pixel-aligned"] = scene_method(pixel_aligned, context)
        if context.lidar is not None:
            methods["pixel-aligned, lidar depth"] = scene_method(
                pixel_aligned, context, LidarDepth()
            )
    methods["nearest frame"] = lambda t: nearest_frame(context, t.time, 0)
    methods["warp by true depth"] = lambda t: warped_frame(context, t.time, 0, t.camera, t.depth)
    return methods


def evaluate_worldrec(
    rec: WorldRec, clips: Iterable[Clip], pixel_aligned: WorldRec | None = None
) -> dict[str, dict[str, float]]:
    """Score a model and the baselines.

    Args:
        rec: The model.
        clips: Drives; view 0 is used. Ones named "procedural:RUNG:SEED" also get lane shifts.
        pixel_aligned: A WorldRec trained with `WorldRecConfig.pixel_aligned`.

    Returns:
        Row to {"PSNR", "SSIM", and where there are lane shifts "PSNR shift", "SSIM shift"}.

    Raises:
        DataError: A clip has fewer than two instants, so that none can be held out.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for clip in clips:
        if clip.num_frames < 2:
            raise DataError(
                f"{clip.name}: expected at least 2 instants, of which every {CONTEXT_EVERY}th is "
                f"context, got {clip.num_frames}."
            )
        clip = resized_for(rec.config, clip.select(views=[0]))
        context = clip.select(list(range(0, clip.num_frames, CONTEXT_EVERY)))
        groups = {"": held_out_targets(clip), " shift": shifted_targets(clip)}
        for name, method in methods_of(rec, context, pixel_aligned).items():
            row = scores.setdefault(name, {})
            for suffix, targets in groups.items():
                if not targets:
                    continue
                pictures = [method(target) for target in targets]
                pairs = list(zip(pictures, (t.truth for t in targets), strict=True))
                row.setdefault("PSNR" + suffix, []).append(np.mean([psnr(*p) for p in pairs]))
                row.setdefault("SSIM" + suffix, []).append(np.mean([ssim(*p) for p in pairs]))
    return {
        name: {column: round(float(np.mean(values)), 3) for column, values in row.items()}
        for name, row in scores.items()
    }
