"""The joint model: a reconstructed scene and a generator that hold each other straight.

    scene --render at the next poses--> prior --+
    trajectory, boxes --draw--> layout ---------+--> WorldGen chunk --> frames --key frames--> scene

One chunk is what the generator makes at once: four video frames, at the clip's rate, for each of
its latent frames.
"""

import json
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from jwm_jax.errors import DataError
from jwm_jax.files import make_folder, write_beside, write_whole
from jwm_jax.joint.feedback import extend_scene, with_room
from jwm_jax.joint.prior import render_prior
from jwm_jax.scene import (
    Camera,
    Clip,
    Scene,
    Tracks,
    Trajectory,
    ego_motion,
    layout_frames,
)
from jwm_jax.worldgen import Conditions, WorldGen
from jwm_jax.worldgen.conditions import known_style
from jwm_jax.worldrec import WorldRec, measured_depth


@dataclass(frozen=True)
class Rollout:
    """A generated future.

    Attributes:
        frames: Generated pictures [F, V, H, W, 3].
        times: Absolute seconds [F].
        prior: What the scene showed before each chunk, same shape, or None without a prior.
        prior_alpha: Its validity as bytes [F, V, H, W], or None.
        layout: What the generator was told about boxes and lanes, same shape, or None.
        scene: The scene at the end, key frames included, or None without a prior.
        metrics: Seconds spent, holes, key frames with the Gaussians they added and those that did
            not fit ("left_out"), and (splat, tile) pairs that did not fit into the rasterizer's
            capacity ("overflow"); everything JSON can hold.
    """

    frames: UInt8[np.ndarray, "f v h w 3"]
    times: Float[np.ndarray, "f"]
    prior: UInt8[np.ndarray, "f v h w 3"] | None = None
    prior_alpha: UInt8[np.ndarray, "f v h w"] | None = None
    layout: UInt8[np.ndarray, "f v h w 3"] | None = None
    scene: Scene | None = None
    metrics: Mapping[str, object] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write rollout.mp4 (views side by side), rollout.npz, metrics.json and the scene.

        Returns:
            The folder.
        """
        from jwm_jax.export.video import write_video

        folder = Path(folder)
        make_folder(folder)
        rate = 1.0 / float(np.median(np.diff(self.times))) if len(self.times) > 1 else 10.0
        write_video(folder / "rollout.mp4", side_by_side(self.frames), rate)
        arrays = {"frames": self.frames, "times": self.times}
        for name in ("prior", "prior_alpha", "layout"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        with write_beside(folder / "rollout.npz") as file:
            np.savez_compressed(file, **arrays)
        write_whole(folder / "metrics.json", json.dumps(dict(self.metrics), indent=2) + "\n")
        if self.scene is not None:
            self.scene.save(folder / "scene.npz")
            self.scene.save_ply(folder / "scene.ply")
        return folder


def side_by_side(frames: UInt8[np.ndarray, "f v h w 3"]) -> UInt8[np.ndarray, "f h vw 3"]:
    """All views of each frame in one wide picture."""
    return rearrange(frames, "f v h w c -> f h (v w) c")


@dataclass(frozen=True)
class JointWorldModel:
    """WorldRec and WorldGen in one loop.

    Attributes:
        rec: Reconstructs what was seen.
        gen: Generates what comes next.
    """

    rec: WorldRec
    gen: WorldGen

    def rollout(
        self,
        clip: Clip,
        trajectory: Trajectory,
        *,
        seed: int = 0,
        steps: int | None = None,
        use_prior: bool = True,
        tracks: Tracks | None = None,
        scene: Scene | None = None,
        key_frame_every: int = 0,
        key_frame_holes: float = 0.1,
        key_frame_room: int = 4,
    ) -> Rollout:
        """Generate the clip's future along a trajectory.

        The generator starts from the clip's last instant; the scene is reconstructed from the whole
        clip, with depth from lidar where the clip has it. Poses at which no sensor was are what
        the prior is for.

        Args:
            clip: What was seen so far, at least one instant.
            trajectory: Ego poses of the frames to come, in the clip's world frame and on its clock;
                trimmed to whole chunks.
            seed: Of the noise.
            steps: Denoising steps a chunk; the generator's own number if None.
            use_prior: Whether the scene conditions the generator.
            tracks: Boxes over the future (absolute clock); the clip's own if None. The scene's
                things follow those of the same id (or place, where there are no ids), and things
                that are missing are gone.
            scene: An already reconstructed scene to start from, instead of `rec(clip)`.
            key_frame_every: Feed the last frame of every n-th chunk back into the scene; 0 never.
            key_frame_holes: Do so only where at least this share of the prior below the horizon
                was open.
            key_frame_room: Room for key frames in the scene, as a multiple of what WorldRec makes
                of one; whatever the horizon, so that programs are compiled once.

        Raises:
            DataError: The trajectory has fewer frames than a chunk, or a scene is wanted as prior
                for a clip whose poses are unknown. (Without one, such a clip's future is generated
                without ego motion, and of the trajectory only the times count.)
        """
        if use_prior:
            clip.require_poses("a scene that guides the future")
        chunk_frames = self.gen.config.frames_per_chunk
        chunks = trajectory.num_frames // chunk_frames
        if chunks == 0:
            raise DataError(
                f"rollout: the trajectory has {trajectory.num_frames} frames; one chunk needs "
                f"{chunk_frames}."
            )
        lens = clip.cameras[0]
        clip = clip.resized(*self.gen.config.picture_size(lens.height, lens.width))
        edited, tracks = tracks is not None, clip.tracks if tracks is None else tracks
        rig = clip.rig(clip.num_frames - 1)
        seconds = {"reconstruct": 0.0, "prior": [], "generate": [], "feedback": []}

        start = clock.perf_counter()
        if use_prior and scene is None:
            scene = jax.block_until_ready(self.rec(clip, measured_depth(clip)))
        seconds["reconstruct"] = clock.perf_counter() - start
        things = None
        if use_prior and scene.tracks is not None and tracks is not None:
            things = things_of(scene, tracks)
            if edited:
                moved = things.on_device(scene.start, scene.tracks.num_tracks)
                scene = replace(scene, tracks=moved)
        row, added, overflow = 0, [], 0
        if use_prior and key_frame_every:
            row = scene.gaussians.capacity
            size = self.rec.config.picture_size(*clip.images.shape[2:4])
            per_key_frame = self.rec.config.capacity(clip.num_views, *size)
            scene = with_room(scene, per_key_frame * key_frame_room)

        style = known_style(self.gen.config, clip.style)
        here = rig.cameras_at(clip.world_from_ego[-1:])
        layout = _layout(here, tracks, clip.map, clip.times[-1:, 0])
        session = self.gen.start(
            clip.images[-1], rig, seed=seed, conditions=Conditions(layout=layout, style=style)
        )
        motion = _motion(clip, trajectory) if clip.posed else None
        parts: dict[str, list] = {"frames": [], "prior": [], "alpha": [], "layout": []}
        for chunk in range(chunks):
            index = slice(chunk * chunk_frames, (chunk + 1) * chunk_frames)
            cameras = rig.cameras_at(np.asarray(trajectory.world_from_ego[index], np.float64))
            times = np.asarray(trajectory.times[index])
            layout = _layout(cameras, tracks, clip.map, times)
            prior = alpha = None
            if use_prior:
                start = clock.perf_counter()
                prior, alpha, left_out = _prior(scene, cameras, times)
                overflow += left_out
                seconds["prior"].append(clock.perf_counter() - start)
                parts["prior"].append(prior)
                parts["alpha"].append(alpha)
            start = clock.perf_counter()
            conditions = Conditions(
                layout=layout,
                prior=prior,
                prior_alpha=alpha,
                ego_motion=None if motion is None else motion[index],
                style=style,
            )
            frames, session = self.gen.step(session, conditions, steps=steps)
            frames = _bytes(np.asarray(frames))
            seconds["generate"].append(clock.perf_counter() - start)
            parts["frames"].append(frames)
            if layout is not None:
                parts["layout"].append(layout)
            due = use_prior and key_frame_every and (chunk + 1) % key_frame_every == 0
            if due and 1 - alpha[:, -1, alpha.shape[2] // 2 :].mean() >= key_frame_holes:
                start = clock.perf_counter()
                last = tuple(c.at(chunk_frames - 1) for c in cameras)
                scene, count, unfit = extend_scene(
                    self.rec,
                    scene,
                    frames[:, -1],
                    last,
                    np.asarray(trajectory.world_from_ego[index][-1], np.float64),
                    float(times[-1]),
                    things,
                    row,
                )
                row += count
                added.append({"chunk": chunk, "gaussians": count, "left_out": unfit})
                seconds["feedback"].append(clock.perf_counter() - start)

        stack = {k: _frames_first(v) for k, v in parts.items() if v}
        alphas = stack.get("alpha")
        return Rollout(
            frames=stack["frames"],
            times=np.asarray(trajectory.times[: chunks * chunk_frames], np.float64),
            prior=_bytes(stack["prior"]) if use_prior else None,
            prior_alpha=_bytes(alphas) if use_prior else None,
            layout=stack.get("layout"),
            scene=scene if use_prior else None,
            metrics={
                "frames": chunks * chunk_frames,
                "views": clip.num_views,
                "steps": self.gen.config.sampling_steps if steps is None else steps,
                "seed": seed,
                "seconds": seconds,
                "open_share": [] if alphas is None else (1 - alphas.mean((1, 2, 3))).tolist(),
                "key_frames": added,
                "overflow": overflow,
            },
        )


def _motion(clip: Clip, trajectory: Trajectory) -> np.ndarray:
    """Ego motion to each frame of the trajectory, the first from the clip's last instant."""
    times = np.concatenate([clip.times[-1:, 0], np.asarray(trajectory.times)])
    poses = np.concatenate([clip.world_from_ego[-1:], np.asarray(trajectory.world_from_ego)])
    return ego_motion(poses, times)


def _layout(cameras, tracks, lane_map, times) -> np.ndarray | None:
    """Layout frames [V, T, H, W, 3] of cameras that all see the same instants, or None."""
    return layout_frames(cameras, tracks, lane_map, np.stack([times] * len(cameras), axis=1))


def things_of(scene: Scene, tracks: Tracks) -> Tracks:
    """The tracks of a scene's own things, in the scene's order.

    Args:
        scene: Reconstructed with tracks.
        tracks: Host tracks; the scene's things are found by id. Without ids on either side they
            are taken in their order.

    Returns:
        One track a thing of the scene; a thing that `tracks` does not have is never there.

    Raises:
        DataError: Without ids, there are more tracks than the scene has things.
    """
    ids = scene.tracks.ids
    if not ids or not tracks.ids:
        if tracks.num_tracks > scene.tracks.num_tracks:
            raise DataError(
                f"rollout: {tracks.num_tracks} tracks without ids cannot be told apart in a scene "
                f"of {scene.tracks.num_tracks} things; give them the ids of the clip's tracks."
            )
        return tracks
    place = {name: i for i, name in enumerate(tracks.ids)}
    known = np.asarray([name in place for name in ids])
    found = tracks.select(np.asarray([place.get(name, 0) for name in ids]))
    return replace(found, valid=np.asarray(found.valid) & known[:, None], ids=ids)


def _prior(scene: Scene, cameras: tuple[Camera, ...], times) -> tuple[np.ndarray, np.ndarray, int]:
    """Prior pictures [V, T, H, W, 3], their alpha [V, T, H, W], and pairs that did not fit."""
    when = (times - scene.start).astype(np.float32)
    drawn = [render_prior(scene, camera, when) for camera in cameras]
    left_out = sum(int(p.overflow.sum()) for p in drawn)
    return np.stack([p.rgb for p in drawn]), np.stack([p.alpha for p in drawn]), left_out


def _bytes(pictures: np.ndarray) -> np.ndarray:
    return np.round(np.clip(pictures, 0.0, 1.0) * 255.0).astype(np.uint8)


def _frames_first(chunks: list[np.ndarray]) -> np.ndarray:
    """[V, T, ...] chunks to [F, V, ...]."""
    return np.concatenate([np.asarray(c).swapaxes(0, 1) for c in chunks])
