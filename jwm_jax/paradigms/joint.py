"""The joint stage: teacher forcing with priors that a WorldRec scene renders.

Of every example the first instant is reconstructed, and the scene is rendered at the poses and
times of the frames that follow. These pictures, full of real holes and real mistakes, are the
condition; the true frames are the target. With some probability the prior is hidden, so that the
same weights generate without one.
"""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from jwm_jax.errors import UsageError
from jwm_jax.joint.prior import render_prior
from jwm_jax.paradigms.latents import Prior
from jwm_jax.paradigms.teacher_forcing import (
    TeacherForcingExperiment,
    TeacherForcingTask,
)
from jwm_jax.scene import Clip
from jwm_jax.worldrec import DepthSource, WorldRec, measured_depth

DEPTHS = ("network", "measured", "mixed")


@dataclass(frozen=True, kw_only=True)
class JointExperiment(TeacherForcingExperiment):
    """Teacher forcing with rendered priors.

    Attributes:
        rec: WorldRec that makes the scenes: a shipped size or a model directory; None
            for no priors.
        depth: where its depth comes from: ``network``, ``measured`` (lidar, for clips that have
            it) or ``mixed``, which is measured for every second example, so that the generator
            learns the mistakes of both.
    """

    rec: str | None = "tiny"
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
        if self.config.rec is None:
            return "none"
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.rec.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return f"first-instant-{self.config.depth}-{digest.hexdigest()[:12]}"

    @property
    def prior(self) -> Prior | None:
        """Renders the prior of a clip; None without a WorldRec."""
        return None if self.config.rec is None else self._prior

    def _prior(self, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
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
    for view in range(clip.num_views):
        times = (clip.times[:, view] - scene.start).astype(np.float32)
        drawn = render_prior(scene, clip.camera_path(view), times)
        pictures.append(np.asarray(drawn.rgb))
        alphas.append(np.asarray(drawn.alpha))
    return np.stack(pictures), np.stack(alphas)
