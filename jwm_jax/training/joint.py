"""The joint stage: teacher forcing with priors that a WorldRec scene renders.

Of every example the first instant is reconstructed, and the scene is rendered at the poses and
times of the frames that follow. These pictures, full of real holes and real mistakes, are the
condition; the true frames are the target. With some probability the prior is hidden, so that the
same weights generate without one.
"""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.errors import UsageError
from jwm_jax.joint.prior import render_prior
from jwm_jax.scene import Camera, Clip, Intrinsics
from jwm_jax.training.latents import LatentSet, LatentSource, encode_clip, encode_prior
from jwm_jax.training.teacher_forcing import (
    TeacherForcingExperiment,
    TeacherForcingTask,
    teacher_forcing_loss,
)
from jwm_jax.training.worldgen_task import NoiseConfig
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldgen.conditions import drop_conditions
from jwm_jax.worldrec import DepthSource, WorldRec, measured_depth

DEPTHS = ("network", "measured", "mixed")


@dataclass(frozen=True, kw_only=True)
class JointExperiment(TeacherForcingExperiment):
    """Teacher forcing with rendered priors.

    Attributes:
        rec: WorldRec that makes the scenes: a shipped size or a model directory.
        depth: where its depth comes from: ``network``, ``measured`` (lidar, for clips that have
            it) or ``mixed``, which is measured for every second example, so that the generator
            learns the mistakes of both.
    """

    rec: str = "tiny"
    depth: str = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in DEPTHS:
            raise UsageError(f"depth must be one of {', '.join(DEPTHS)}, got {self.depth!r}.")

    def task(self) -> "JointTask":
        """Builds the task."""
        return JointTask(self)


class JointTask(TeacherForcingTask):
    """The joint stage as the loop sees it."""

    @cached_property
    def rec(self) -> WorldRec:
        """The model that makes the scenes."""
        return WorldRec.from_pretrained(self.config.rec)

    @cached_property
    def prior_name(self) -> str:
        """Names the priors by the weights and the depth they come from."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.rec.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return f"first-instant-{self.config.depth}-{digest.hexdigest()[:12]}"

    def prior(self, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
        """The scene of a clip's first instant at all of the clip's poses.

        Args:
            clip: T frames of V views of one size.
        """
        chosen = self.config.depth
        coin = zlib.crc32(f"{clip.name} {clip.times[0, 0]:.3f} {clip.view_names[0]}".encode()) % 2
        measured = chosen == "measured" or (chosen == "mixed" and coin == 1)
        return first_instant_prior(self.rec, clip, measured_depth(clip) if measured else None)


def first_instant_prior(
    rec: WorldRec, clip: Clip, depth: DepthSource | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The scene of a clip's first instant at all of the clip's poses.

    Args:
        rec: makes the scene.
        clip: T frames of V views of one size.
        depth: instead of the network's own.

    Returns:
        Pictures [V, T, H, W, 3] in [0, 1] and alphas [V, T, H, W].
    """
    scene = rec(clip.select([0]), depth)
    pictures, alphas = [], []
    for view, lens in enumerate(clip.cameras):
        K = np.broadcast_to(np.asarray(lens.K, np.float32), (clip.num_frames, 3, 3))
        poses = clip.world_from_camera[:, view].astype(np.float32)
        camera = Camera(Intrinsics(K=K, width=lens.width, height=lens.height), poses)
        times = (clip.times[:, view] - scene.start).astype(np.float32)
        drawn = render_prior(scene, camera, times)
        pictures.append(np.asarray(drawn.rgb))
        alphas.append(np.asarray(drawn.alpha))
    return np.stack(pictures), np.stack(alphas)


def held_out_flow_loss(
    rec: WorldRec, gen: WorldGen, clips: Iterable[Clip]
) -> dict[str, dict[str, float]]:
    """The teacher-forced flow loss on clips that no training has seen, without and with the prior.

    Every clip's frames after the first are denoised once from their true past, at noise levels
    drawn as in training from a fixed key. The scene is that of `JointWorldModel.rollout`: the
    first instant, with measured depth where the clip has it.

    Args:
        rec: makes the scenes.
        gen: the generator.
        clips: one-view clips of 1 + 4k frames whose sides the codec divides.

    Returns:
        Row to {"flow loss", "x0 mse"}, both in units of a latent's variance.
    """
    rows = []
    for clip in clips:
        height, width = clip.images[0].shape[1:3]
        source = LatentSource(
            frames=clip.num_frames,
            window=1 + clip.num_frames // 4,
            height=height,
            width=width,
            mirror=False,
        )
        (row,) = encode_clip(clip, source, gen.config, gen.codec)
        pictures = clip.view(0)[None]
        rendered = first_instant_prior(rec, clip, measured_depth(clip))
        prior, mask = encode_prior(pictures, *rendered, gen.codec)
        rows.append({**row, "prior": prior, "prior_mask": mask, "held_out": np.asarray(True)})
    data = LatentSet(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    frames = data.latents.shape[2]
    windows = [jax.tree.map(jnp.asarray, data.window(i, 0, frames)) for i in range(len(rows))]

    @jax.jit
    def score(latents, conditions, key):
        return teacher_forcing_loss(
            gen.config, NoiseConfig(), gen.params, latents, conditions, key, {}, 0.0
        )

    def mean(hidden: float) -> dict[str, float]:
        parts = []
        for i, (latents, conditions) in enumerate(windows):
            key = jax.random.key(i)
            given = drop_conditions(key, conditions, {"prior": hidden})
            parts.append(score(latents, given, key))
        return {
            "flow loss": round(float(np.mean([p[0] for p in parts])), 4),
            "x0 mse": round(float(np.mean([p[1]["x0_mse"] for p in parts])), 4),
        }

    return {"no prior": mean(1.0), "prior": mean(0.0)}
