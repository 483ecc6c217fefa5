"""The joint stage: teacher forcing with priors that a WorldRec scene renders.

Of every example the first instant is reconstructed, and the scene is rendered at the poses and
times of the frames that follow. These pictures, full of real holes and real mistakes, are the
condition; the true frames are the target. With some probability the prior is hidden, so that the
same weights generate without one.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from jwm_jax.joint.prior import render_prior
from jwm_jax.scene import Camera, Clip, Intrinsics
from jwm_jax.training.teacher_forcing import TeacherForcingExperiment, TeacherForcingTask
from jwm_jax.worldrec import WorldRec


@dataclass(frozen=True, kw_only=True)
class JointExperiment(TeacherForcingExperiment):
    """Teacher forcing with rendered priors.

    Attributes:
        rec: WorldRec that makes the scenes: a shipped name or a model directory.
    """

    rec: str = "tiny"

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
        """Names the priors by the weights they come from."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.rec.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return f"first-instant-{digest.hexdigest()[:12]}"

    def prior(self, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
        """The scene of a clip's first instant at all of the clip's poses.

        Args:
            clip: T frames of V views of one size.

        Returns:
            Pictures [V, T, H, W, 3] in [0, 1] and alphas [V, T, H, W].
        """
        scene = self.rec(clip.select([0]))
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
