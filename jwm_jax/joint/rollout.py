"""The joint model: a reconstructed scene and a generator that hold each other straight.

    scene --render at the next poses--> prior --+
    trajectory, boxes --draw--> layout ---------+--> WorldGen chunk --> frames --key frames--> scene

One chunk is what the generator makes at once: four video frames, at the clip's rate, for each of
its latent frames. `session` has the steps.
"""

import json
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from jwm_jax.errors import DataError
from jwm_jax.files import make_folder, write_beside, write_whole
from jwm_jax.joint.session import (
    Chunk,
    JointState,
    KeyFrames,
    as_bytes,
    start_joint,
    step_joint,
)
from jwm_jax.scene import Clip, Scene, Tracks, Trajectory
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec


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

    def start(
        self,
        clip: Clip,
        *,
        seed: int = 0,
        use_prior: bool = True,
        scene: Scene | None = None,
        tracks: Tracks | None = None,
        key_frames: KeyFrames | None = None,
    ) -> JointState:
        """Begin a future at the clip's last instant.

        The scene is reconstructed from the whole clip, with depth from lidar where the clip has it.

        Args:
            clip: What was seen so far, at least one instant.
            seed: Of the noise.
            use_prior: Whether the scene conditions the generator.
            scene: An already reconstructed scene to start from, instead of `rec(clip)`.
            tracks: Boxes (absolute clock); the clip's own if None. The scene's things follow those
                of the same id (or place, where there are no ids), and things that are missing are
                gone.
            key_frames: When generated frames go back into the scene; None for never.

        Raises:
            DataError: A scene is wanted for a clip whose poses are unknown.
        """
        options = {"scene": scene, "tracks": tracks, "key_frames": key_frames}
        return start_joint(self.rec, self.gen, clip, seed=seed, use_prior=use_prior, **options)

    def step(
        self,
        state: JointState,
        poses: Float[np.ndarray, "t 4 4"],
        tracks: Tracks | None = None,
        times: Float[np.ndarray, "n"] | None = None,
        steps: int | None = None,
    ) -> tuple[Chunk, JointState]:
        """The next chunk: where the vehicle goes, and what its cameras see there.

        Args:
            state: From `start` or an earlier step; it stays usable.
            poses: Ego poses of the chunk's frames, in the clip's world frame. Poses at which no
                sensor was are what the prior is for.
            tracks: Boxes from now on, as in `start`; None leaves them.
            times: Absolute seconds of the frames; at the clip's rate if None.
            steps: Denoising steps; the generator's own number if None.

        Returns:
            The chunk, and the state after it.

        Raises:
            DataError: Another number of poses than a chunk has frames, or poses that are not
                finite.
        """
        return step_joint(self.rec, self.gen, state, poses, tracks, times, steps)

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
        key_frames: KeyFrames | None = None,
    ) -> Rollout:
        """Generate the clip's future along a whole trajectory: a loop over `step`.

        Args:
            clip: As for `start`.
            trajectory: Ego poses of the frames to come, in the clip's world frame and on its clock;
                trimmed to whole chunks.
            seed: As for `start`.
            steps: As for `step`.
            use_prior: As for `start`.
            tracks: Boxes over the whole future, as for `start`.
            scene: As for `start`.
            key_frames: As for `start`.

        Raises:
            DataError: The trajectory has fewer frames than a chunk, or a scene is wanted as prior
                for a clip whose poses are unknown. (Without one, such a clip's future is generated
                without ego motion, and of the trajectory only the times count.)
        """
        length = self.gen.config.frames_per_chunk
        count = trajectory.num_frames // length
        if count == 0:
            raise DataError(
                f"rollout: the trajectory has {trajectory.num_frames} frames; one chunk needs "
                f"{length}."
            )
        began = clock.perf_counter()
        options = {"scene": scene, "tracks": tracks, "key_frames": key_frames}
        state = self.start(clip, seed=seed, use_prior=use_prior, **options)
        seconds = {"start": clock.perf_counter() - began}
        chunks: list[Chunk] = []
        for index in range(count):
            part = slice(index * length, (index + 1) * length)
            poses, times = trajectory.world_from_ego[part], np.asarray(trajectory.times[part])
            chunk, state = self.step(state, np.asarray(poses), times=times, steps=steps)
            chunks.append(chunk)
        for name in ("prior", "generate", "feedback"):
            seconds[name] = [c.seconds[name] for c in chunks if name in c.seconds]
        alpha = _joined(chunks, "alpha")
        return Rollout(
            frames=_joined(chunks, "frames"),
            times=_joined(chunks, "times"),
            prior=as_bytes(_joined(chunks, "prior")) if use_prior else None,
            prior_alpha=as_bytes(alpha) if use_prior else None,
            layout=_joined(chunks, "layout"),
            scene=state.scene,
            metrics={
                "frames": count * length,
                "views": clip.num_views,
                "steps": self.gen.config.sampling_steps if steps is None else steps,
                "seed": seed,
                "seconds": seconds,
                "open_share": [] if alpha is None else (1 - alpha.mean((1, 2, 3))).tolist(),
                "key_frames": [
                    {"chunk": i, "gaussians": c.key_frame[0], "left_out": c.key_frame[1]}
                    for i, c in enumerate(chunks)
                    if c.key_frame is not None
                ],
                "overflow": sum(c.overflow for c in chunks),
            },
        )


def _joined(chunks: list[Chunk], name: str) -> np.ndarray | None:
    """One field of all chunks, one after another; None where it is absent."""
    parts = [getattr(chunk, name) for chunk in chunks]
    return None if parts[0] is None else np.concatenate(parts)
