"""From latents, sigma and conditions to tokens and modulations: Wan 2.1's embeddings, and ours
beside them.

    x    = Linear(patch of the noisy latent)                     + one linear map per condition
    e    = Linear(SiLU(Linear(sinusoid(1000 sigma))))            + ego motion + guidance strength
    e0   = Linear(SiLU(e)) in 6 parts, shared by all layers
    text = Linear(GELU(Linear(embedding)))

Every map of ours starts at zero, so that weights which do not know a condition are undisturbed by
it. Layout, prior and the previous latent are concatenated with the noisy latent, written as a sum
of linear maps; rays too, and their tokens tell views apart; ego motion and style are tokens for
cross-attention.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from jwm_jax.nn.layers import Embedding, Linear, Mlp, parameter, sinusoidal_embedding
from jwm_jax.worldgen.conditions import LatentConditions
from jwm_jax.worldgen.config import WorldGenConfig

Latents = Float[jax.Array, "b v copies f h w c"]

ZEROS = nn.initializers.zeros_init()
SMALL = nn.initializers.normal(0.02)


class Embedded(NamedTuple):
    """What the blocks are given.

    Attributes:
        x: tokens [b, v, copies, f, s, d], float32.
        e: embedding of sigma [b, copies, f, d], which modulates the head.
        e0: time projection [b, copies, f, 6, d].
        context: condition tokens [b, copies, f, m, d], or None.
        rays: embedded rays [b, v, s, d], or None.
    """

    x: jax.Array
    e: jax.Array
    e0: jax.Array
    context: jax.Array | None
    rays: jax.Array | None


class ConditionTokens(nn.Module):
    """Tokens for cross-attention: one a sub-step of ego motion and one a style property."""

    config: WorldGenConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, conditions: LatentConditions) -> Float[jax.Array, "b f m d"]:
        """Returns the condition tokens of every latent frame, motion first; null tokens where
        absent."""
        config, width = self.config, self.config.dim
        tokens = []
        if config.takes("ego_motion"):
            motion = conditions.ego_motion * jnp.asarray(config.motion_scale)
            axes = ("condition", "mlp", "embed")
            motion = Mlp(width, width, axes, self.dtype, name="motion")(motion)
            axes, steps = (None, "embed"), (config.frames_per_latent, width)
            null = parameter(self, "no_motion", SMALL, axes, (1, width))
            step = parameter(self, "step", SMALL, axes, steps)
            known = conditions.ego_valid[..., None, None] > 0
            tokens.append(jnp.where(known, motion, null) + step)
        if config.takes("style") and config.styles:
            style = [
                Embedding(1 + len(words), width, name=name)(conditions.style[:, i])
                for i, (name, words) in enumerate(config.styles)
            ]
            style = jnp.stack(style, axis=1)[:, None]
            frames = conditions.ego_motion.shape[1]
            tokens.append(jnp.broadcast_to(style, (style.shape[0], frames, *style.shape[2:])))
        return jnp.concatenate(tokens, axis=2)


class Embeddings(nn.Module):
    """Tokens and modulations of some copies of a clip.

    Attributes:
        config: widths and conditions.
        offsets: index, among the conditions' frames, of the first frame of each copy.
        dtype: compute type.
    """

    config: WorldGenConfig
    offsets: tuple[int, ...] = (0,)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        noisy: Latents,
        sigma: Float[jax.Array, "b copies f"],
        previous: Latents | None,
        conditions: LatentConditions,
    ) -> Embedded:
        """Embeds everything once.

        Args:
            noisy: latents at ``sigma``.
            sigma: diffusion time of each latent frame, in [0, 1].
            previous: clean latent before the chunk of each frame.
            conditions: of the frames that the copies are taken from.
        """
        config = self.config

        def embed(name: str, latents: jax.Array, **kwargs: Any) -> jax.Array:
            linear = Linear(
                config.dim, ("condition", "embed"), dtype=self.dtype, name=name, **kwargs
            )
            return linear(patchify(latents, config.patch))

        def adapt(name: str, latents: jax.Array) -> jax.Array:
            return embed(name, latents, use_bias=False, kernel_init=ZEROS)

        x = embed("patch_embedding", noisy)
        if config.previous_input:
            x = x + adapt("embed_previous", previous)
        given, mask = [], conditions.prior_mask
        if config.takes("layout"):
            valid = conditions.layout_valid[..., None, None, None]
            valid = jnp.broadcast_to(valid, mask.shape)
            given.append(
                adapt("embed_layout", jnp.concatenate([conditions.layout, valid], axis=-1))
            )
        if config.takes("prior"):
            prior = jnp.concatenate([conditions.prior * mask, mask], axis=-1)
            given.append(adapt("embed_prior", prior))
        if given:
            x = x + self._copies(sum(given), noisy.shape[3], axis=2)
        rays = adapt("embed_rays", conditions.rays) if config.takes("rays") else None
        if rays is not None:
            x = x + rays[:, :, None, None]

        context = None
        e = sinusoidal_embedding(1000.0 * sigma, config.freq_dim)
        e = Linear(config.dim, ("condition", "embed"), SMALL, name="time_1")(e)
        e = Linear(config.dim, ("embed", "mlp"), SMALL, name="time_2")(nn.silu(e))
        if config.has_tokens:
            tokens = ConditionTokens(config, self.dtype, name="condition_tokens")(conditions)
            context = self._copies(tokens, noisy.shape[3], axis=1)
        if config.takes("ego_motion"):
            motion = context[..., : config.frames_per_latent, :].mean(-2)
            e = e + Linear(config.dim, ("embed", "mlp"), ZEROS, name="motion_to_time")(motion)
        if config.guidance_input:
            strength = sinusoidal_embedding(conditions.guidance, config.freq_dim)
            linear = Linear(config.dim, ("condition", "embed"), ZEROS, name="guidance_to_time")
            e = e + linear(strength)[:, None, None]
        e0 = Linear(6 * config.dim, ("embed", "mlp"), name="time_projection")(nn.silu(e))
        e0 = rearrange(e0, "b n f (parts d) -> b n f parts d", parts=6)
        return Embedded(x.astype(jnp.float32), e, e0, context, rays)

    def _copies(self, features: jax.Array, frames: int, axis: int) -> jax.Array:
        """Stacks, on a new axis before the frames, the frames of each copy."""
        parts = [
            jax.lax.slice_in_dim(features, offset, offset + frames, axis=axis)
            for offset in self.offsets
        ]
        return jnp.stack(parts, axis=axis)


def patchify(latents: jax.Array, patch: int) -> jax.Array:
    """[..., h, w, c] -> [..., tokens, patch patch c], rows of tokens first."""
    pattern = "... (rows p) (columns q) c -> ... (rows columns) (p q c)"
    return rearrange(latents, pattern, p=patch, q=patch)


def unpatchify(tokens: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """The inverse of `patchify`, for tokens of a grid of (rows, columns)."""
    pattern = "... (rows columns) (p q c) -> ... (rows p) (columns q) c"
    return rearrange(tokens, pattern, rows=grid[0], columns=grid[1], p=patch, q=patch)
