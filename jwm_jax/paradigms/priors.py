"""Priors of training examples: what a WorldRec scene shows of the frames that follow.

Of every example the first instant is reconstructed, and the scene is rendered at the poses and
times of all its frames. These pictures, full of real holes and real mistakes, are a condition; the
true frames are the target. Any of the generator's trainings takes them (`WorldGenExperiment.rec`);
with some probability the prior is hidden, so that the same weights generate without one.
"""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from jwm_jax.joint.prior import render_prior
from jwm_jax.scene import Clip
from jwm_jax.worldrec import DepthSource, WorldRec, measured_depth

DEPTHS = ("network", "measured", "mixed")


@dataclass(frozen=True)
class ScenePriors:
    """Renders the priors of clips.

    Attributes:
        source: WorldRec that makes the scenes: a shipped size or a model directory.
        depth: where its depth comes from, one of `DEPTHS`.
    """

    source: str
    depth: str

    @cached_property
    def rec(self) -> WorldRec:
        """The model that makes the scenes."""
        return WorldRec.from_pretrained(self.source)

    @cached_property
    def name(self) -> str:
        """Names the priors by the weights and the depth they come from."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.rec.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return f"first-instant-{self.depth}-{digest.hexdigest()[:12]}"

    def __call__(self, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
        """The scene of a clip's first instant at all of the clip's poses.

        Args:
            clip: T frames of V views of one size.

        Returns:
            Pictures [V, T, H, W, 3] in [0, 1] and alphas [V, T, H, W].
        """
        coin = zlib.crc32(f"{clip.name} {clip.times[0, 0]:.3f} {clip.view_names[0]}".encode()) % 2
        measured = self.depth == "measured" or (self.depth == "mixed" and coin == 1)
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
