"""What `jwm demo` computes: a scene seen from new places, and a future with and without it."""

from dataclasses import dataclass

import jax
import numpy as np

from jwm_jax.cli.output import left_out
from jwm_jax.data.streets import true_views
from jwm_jax.evaluation.images import psnr
from jwm_jax.evaluation.rollouts import future_of, warped
from jwm_jax.joint import JointWorldModel, Rollout
from jwm_jax.scene import Camera, Clip, Scene
from jwm_jax.worldrec import WorldRec, measured_depth
from jwm_jax.worldrec.pictures import resized_for

CONTEXT_EVERY = 4
LANE_SHIFTS = (2.0, -2.0)
"""Metres to the left of where the drive was."""


@dataclass(frozen=True)
class Seen:
    """A reconstruction and pictures of it; videos are [F, H, W, 3] float in [0, 1].

    Attributes:
        scene: The reconstruction from every fourth instant.
        truth: The drive's front view.
        rendered: The scene at the drive's own poses.
        depth: Of the same, metres [F, H, W].
        shifted: Video by lateral shift in metres.
        shifted_truth: What a camera there would have seen, where that is known.
        frozen: The first camera standing still while time plays.
        psnr: dB of each rendered frame.
        held_out: Which frames WorldRec did not see; none of the one frame of a film.
        seconds: Of the reconstruction, the second time it ran.
        left_out: Sentences about what limits of size left out.
    """

    scene: Scene
    truth: np.ndarray
    rendered: np.ndarray
    depth: np.ndarray
    shifted: dict[float, np.ndarray]
    shifted_truth: dict[float, np.ndarray]
    frozen: np.ndarray
    psnr: np.ndarray
    held_out: np.ndarray
    seconds: float
    left_out: list[str]


@dataclass(frozen=True)
class Future:
    """A generated future of the front view and what it is measured against.

    Attributes:
        rows: Video [F, H, W, 3] float by name; "truth" is what came. Without poses there are no
            rows with a scene.
        psnr: dB of each frame by name.
        layout: What the generator was told, or None.
        joint: The rollout with the prior; None without poses.
        plain: The one without.
        chunk_seconds: Median time to generate 0.4 s, after compilation.
    """

    rows: dict[str, np.ndarray]
    psnr: dict[str, np.ndarray]
    layout: np.ndarray | None
    joint: Rollout | None
    plain: Rollout
    chunk_seconds: float


def show_reconstruction(rec: WorldRec, clip: Clip, front: int, spec: str) -> Seen:
    """Reconstruct a clip from every fourth instant and look at the scene from old and new places.

    Of a clip without poses only the first instant is reconstructed.

    Args:
        rec: The model.
        clip: The drive.
        front: The view to show.
        spec: Where the clip came from; procedural streets know what other places look like.
    """
    import time

    clip = resized_for(rec.config, clip if clip.posed else clip.select([0]))
    context = list(range(0, clip.num_frames, CONTEXT_EVERY))
    source = measured_depth(clip)
    scene = jax.block_until_ready(rec(clip.select(context), source))
    start = time.perf_counter()
    jax.block_until_ready(rec(clip.select(context), source))
    seconds = time.perf_counter() - start

    path = clip.camera_path(front)
    times = (clip.times[:, front] - scene.start).astype(np.float32)
    overflow = 0

    def draw(path):
        nonlocal overflow
        rgb, depth, missing = _video(scene, path, times)
        overflow += missing
        return rgb, depth

    rendered, depth = draw(path)
    shifted, shifted_truth = {}, {}
    for left in LANE_SHIFTS:
        beside = path.translated(-left)
        shifted[left], _ = draw(beside)
        cameras = [beside.at(t) for t in range(clip.num_frames)]
        known = true_views(spec, cameras, clip.times[:, front] - clip.start)
        if known is not None:
            shifted_truth[left] = known.rgb / np.float32(255)
    poses = path.world_from_camera
    frozen, _ = draw(Camera(path.intrinsics, np.broadcast_to(poses[:1], poses.shape)))
    truth = clip.view(front).astype(np.float32) / 255.0
    quality = np.array([float(psnr(a, b)) for a, b in zip(rendered, truth, strict=True)])
    return Seen(
        scene=scene,
        truth=truth,
        rendered=rendered,
        depth=depth,
        shifted=shifted,
        shifted_truth=shifted_truth,
        frozen=frozen,
        psnr=quality,
        held_out=np.arange(clip.num_frames) % CONTEXT_EVERY != 0,
        seconds=seconds,
        left_out=left_out(
            0 if clip.tracks is None else clip.tracks.num_tracks, rec.config.max_tracks, overflow
        ),
    )


def show_future(world: JointWorldModel, clip: Clip, steps: int | None, seed: int) -> Future:
    """Generate what follows the first instant, with that instant's scene and without."""
    lens = clip.cameras[0]
    clip = clip.resized(*world.gen.config.picture_size(lens.height, lens.width))
    start, trajectory = clip.select([0]), future_of(clip)
    plain = world.rollout(start, trajectory, seed=seed, steps=steps, use_prior=False)
    joint = world.rollout(start, trajectory, seed=seed, steps=steps) if clip.posed else None
    count = len(plain.frames)
    truth = clip.view(0)[: count + 1].astype(np.float32) / 255.0
    codec = world.gen.codec
    rows = {"truth": truth[1:], "without": plain.frames[:, 0] / np.float32(255)}
    if joint is not None:
        rows["with the scene"] = joint.frames[:, 0] / np.float32(255)
        rows["scene alone"] = warped(joint, truth[0])
    rows |= {
        "first frame": np.broadcast_to(truth[:1], truth[1:].shape),
        "codec": np.asarray(codec.decode(codec.encode(truth[None])))[0, 1:],
    }
    quality = {
        name: np.array([float(psnr(a, b)) for a, b in zip(video, truth[1:], strict=True)])
        for name, video in rows.items()
        if name != "truth"
    }
    seconds = (joint or plain).metrics["seconds"]["generate"]
    warm = seconds[1:] or seconds
    return Future(
        rows=rows,
        psnr=quality,
        layout=None if plain.layout is None else plain.layout[:, 0],
        joint=joint,
        plain=plain,
        chunk_seconds=float(np.median(warm)),
    )


def lacking(clip: Clip) -> list[str]:
    """Sentences about what a drive did not bring, and what follows from it."""
    sentences = []
    if not clip.posed:
        sentences.append(
            "The drive has no poses: one instant of it was reconstructed, and its future was "
            "generated without scene and ego motion."
        )
    if clip.lidar is None:
        sentences.append("The drive has no lidar: depth is the network's own.")
    if clip.tracks is None:
        sentences.append("The drive has no boxes: what moves was taken as part of the street.")
    return sentences


def _video(scene: Scene, path: Camera, times) -> tuple[np.ndarray, np.ndarray, int]:
    """Pictures and depth along a path of cameras, and the (splat, tile) pairs that did not fit."""
    picture = scene.render(path, times)
    rgb, depth = np.clip(np.asarray(picture.rgb), 0.0, 1.0), np.asarray(picture.depth)
    return rgb, depth, int(picture.overflow.sum())
