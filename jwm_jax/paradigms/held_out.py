"""The joint stage's own loss on clips that no training has seen, with and without the prior."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.paradigms.latent_encoding import encode_clip, encode_prior
from jwm_jax.paradigms.latents import LatentSet, LatentSource
from jwm_jax.paradigms.priors import first_instant_prior
from jwm_jax.paradigms.teacher_forcing import teacher_forcing_loss
from jwm_jax.paradigms.worldgen_task import NoiseConfig
from jwm_jax.scene import Clip
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldgen.conditions import drop_conditions
from jwm_jax.worldrec import WorldRec, measured_depth


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
        kind = {"held_out": np.asarray(True), "real": np.asarray(False)}
        rows.append({**row, **kind, "prior": prior, "prior_mask": mask})
    data = LatentSet(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    frames = data.latents.shape[2]
    windows = [jax.tree.map(jnp.asarray, data.window(i, 0, frames)) for i in range(len(rows))]

    @jax.jit
    def score(latents, conditions, key):
        rows = teacher_forcing_loss(
            gen.config, NoiseConfig(), gen.params, latents, conditions, key, {}, 0.0
        )
        return jax.tree.map(jnp.mean, rows)

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
