"""The video transformer: Wan 2.1's block, for any number of frames and views.

    e       = MLP(sinusoid(1000 sigma)) + ego motion            one vector a latent frame
    e0      = Linear(SiLU(e)) in 6 parts, shared by all layers
    m       = e0 + modulation of the layer -> shift1, scale1, gate1, shift2, scale2, gate2
    x      += gate1 SelfAttention(LN(x) (1 + scale1) + shift1)      within a view, over time
    x      += CrossAttention(LN(x), condition tokens of the frame)
    x      += gate CrossView(LN(x))                                 within a frame, every other
    layer x      += gate2 FFN(y + conv3x3(y)),  y = LN(x) (1 + scale2) + shift2
    x0_hat  = base + head(LN(x) (1 + scale) + shift)

The network predicts the clean latent as a correction to a base that is already close: the previous
clean latent, or the prior where it is valid. Queries and keys are RMS-normalised over the full
width; which frames see which is a static pattern (`masks`), so one set of weights runs
bidirectionally, teacher-forced and with a cache. Inputs are channel-concatenated at the patch
embedding, written as a sum of one linear map per input; the prior's starts at zero, as do the
depthwise 3x3 convolution, which lets patches agree along their edges, and the cross-view gate, so a
model without them is unchanged.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.nn.attention import attention
from jwm_jax.nn.conv import Conv
from jwm_jax.nn.layers import Embedding, LayerNorm, Linear, Mlp, RMSNorm, sinusoidal_embedding
from jwm_jax.worldgen.conditions import LatentConditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.masks import Pattern

Latents = Float[jax.Array, "b v f h w c"]
Predicted = Float[jax.Array, "b v g h w c"]
Tokens = Float[jax.Array, "b v f s d"]
Heads = Float[jax.Array, "*b heads k"]
ContextHeads = Float[jax.Array, "*c heads k"]
Memory = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Rotated keys and values [layers, B V, slots, s, heads, k], visible [slots], position []."""

ZEROS = nn.initializers.zeros_init()


class FrameConv(nn.Module):
    """x + depthwise 3x3 convolution of x over each frame's grid of tokens, zero at the start."""

    grid: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        """Returns the tokens with their neighbours' weighted sum added."""
        features = tokens.shape[-1]
        boxed = nn.with_logical_partitioning(ZEROS, (None, None, "embed"))
        kernel = self.param("kernel", boxed, (3, 3, features), jnp.float32).astype(self.dtype)
        rows, columns = self.grid
        image = tokens.astype(self.dtype).reshape(*tokens.shape[:-2], rows, columns, features)
        padded = jnp.pad(image, [(0, 0)] * (image.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
        for i in range(3):
            for j in range(3):
                image = image + padded[..., i : i + rows, j : j + columns, :] * kernel[i, j]
        return image.reshape(tokens.shape)


class Projections(nn.Module):
    """Queries, keys and values, RMS-normalised over the full width, split into heads."""

    config: WorldGenConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "*b d"], context: Float[jax.Array, "*c d"]
    ) -> tuple[Heads, ContextHeads, ContextHeads]:
        """Returns queries of ``x``, and keys and values of ``context``."""
        width, heads = self.config.dim, (self.config.num_heads, self.config.head_dim)

        def project(name: str, source: jax.Array) -> jax.Array:
            return Linear(width, ("embed", "heads"), dtype=self.dtype, name=name)(source)

        queries = RMSNorm(self.dtype, name="norm_q")(project("q", x))
        keys = RMSNorm(self.dtype, name="norm_k")(project("k", context))
        values = project("v", context)
        return tuple(a.reshape(*a.shape[:-1], *heads) for a in (queries, keys, values))


class Block(nn.Module):
    """One transformer block.

    Attributes:
        config: widths.
        pattern: which frames see which.
        grid: rows and columns of tokens.
        across_views: whether the block attends across views.
        dtype: compute type.
    """

    config: WorldGenConfig
    pattern: Pattern
    grid: tuple[int, int]
    across_views: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        e0: Float[jax.Array, "b f 6 d"],
        context: Float[jax.Array, "b f m d"],
        ray_tokens: Float[jax.Array, "b v s d"],
        past: Memory | None,
    ) -> tuple[Tokens, tuple[jax.Array, jax.Array] | None]:
        """Returns the tokens and, for a cached pattern, this frame's unrotated keys and values.

        Args:
            x: tokens.
            e0: time projection, before this layer's modulation.
            context: condition tokens of each latent frame.
            ray_tokens: embedded rays, which tell views apart.
            past: memory of this layer, for a cached pattern.
        """
        config, dtype = self.config, self.dtype
        batch, views, frames, _, width = x.shape
        modulation = self.param(
            "modulation",
            nn.with_logical_partitioning(nn.initializers.normal(config.dim**-0.5), (None, "embed")),
            (6, width),
            jnp.float32,
        )
        parts = (e0 + modulation)[:, None, :, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = (parts[..., i, :] for i in range(6))

        def out(name: str, heads: jax.Array) -> jax.Array:
            flat = heads.reshape(*heads.shape[:-2], width)
            return Linear(width, ("heads", "embed"), dtype=dtype, name=name)(flat)

        y = LayerNorm(affine=False)(x) * (1.0 + scale1) + shift1
        heads = Projections(config, dtype, name="self_attention")(y, y)
        queries, keys, values = (a.reshape(batch * views, *a.shape[2:]) for a in heads)
        attended = self.pattern(queries, keys, values, self.grid, past)
        x = x + gate1 * out("self_out", attended.reshape(batch, views, *attended.shape[1:]))

        y = LayerNorm(name="cross_norm")(x).swapaxes(1, 2)
        heads = Projections(config, dtype, name="cross_attention")(y, context)
        shape = heads[0].shape
        attended = attention(
            *(a.reshape(batch * frames, -1, config.num_heads, config.head_dim) for a in heads)
        )
        x = x + out("cross_out", attended.reshape(shape)).swapaxes(1, 2)

        if self.across_views and (views > 1 or self.is_initializing()):
            y = (LayerNorm(affine=False)(x) + ray_tokens[:, :, None]).swapaxes(1, 2)
            heads = Projections(config, dtype, name="view_attention")(y, y)
            attended = attention(
                *(a.reshape(batch * frames, -1, config.num_heads, config.head_dim) for a in heads)
            )
            boxed = nn.with_logical_partitioning(ZEROS, ("embed",))
            gate = self.param("view_gate", boxed, (width,), jnp.float32)
            x = x + gate * out("view_out", attended.reshape(shape)).swapaxes(1, 2)

        y = LayerNorm(affine=False)(x) * (1.0 + scale2) + shift2
        y = FrameConv(self.grid, dtype, name="frame_conv")(y)
        x = x + gate2 * Mlp(config.ffn_dim, width, dtype=dtype, name="ffn")(y)
        return x, (keys, values) if self.pattern.returns_keys else None


class Layers(nn.Module):
    """The blocks between two cross-view attentions, the body of the scan over layers."""

    config: WorldGenConfig
    pattern: Pattern
    grid: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, past, e0, context, ray_tokens, visible, position):
        """Returns the tokens and the keys and values of each block, stacked."""
        kept = []
        for i in range(self.config.cross_view_every):
            across_views = i == self.config.cross_view_every - 1
            block = Block(
                self.config, self.pattern, self.grid, across_views, self.dtype, name=f"block_{i}"
            )
            memory = None if past is None else (past[0][i], past[1][i], visible, position)
            x, keys_values = block(x, e0, context, ray_tokens, memory)
            kept.append(keys_values)
        if not self.pattern.returns_keys:
            return x, None
        return x, jax.tree.map(lambda *a: jnp.stack(a), *kept)


class ConditionTokens(nn.Module):
    """Tokens for cross-attention: one a sub-step of ego motion and one a style property."""

    config: WorldGenConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, conditions: LatentConditions) -> Float[jax.Array, "b f m d"]:
        """Returns the condition tokens of every latent frame; null tokens where absent."""
        config = self.config
        steps, width = config.frames_per_latent, config.dim
        motion = conditions.ego_motion * jnp.asarray(config.motion_scale)
        motion = Mlp(width, width, ("condition", "mlp", "embed"), self.dtype, name="motion")(motion)
        boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        null = self.param("no_motion", boxed, (1, width), jnp.float32)
        step = self.param("step", boxed, (steps, width), jnp.float32)
        motion = jnp.where(conditions.ego_valid[..., None, None] > 0, motion, null) + step
        style = [
            Embedding(1 + len(words), width, name=name)(conditions.style[:, i])
            for i, (name, words) in enumerate(config.styles)
        ]
        style = jnp.broadcast_to(
            jnp.stack(style, axis=1)[:, None], (*motion.shape[:2], len(style), width)
        )
        return jnp.concatenate([motion, style], axis=2)


class Transformer(nn.Module):
    """The generator's network.

    Attributes:
        config: widths.
        pattern: which frames see which; parameters do not depend on it.
        output_from: first latent frame for which a prediction is wanted.
        dtype: compute type.
    """

    config: WorldGenConfig
    pattern: Pattern
    output_from: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        noisy: Latents,
        sigma: Float[jax.Array, "b f"],
        previous: Latents,
        conditions: LatentConditions,
        memory: Memory | None = None,
    ) -> tuple[Predicted, tuple[jax.Array, jax.Array] | None]:
        """Predicts the clean latents.

        Args:
            noisy: latents at ``sigma``.
            sigma: diffusion time of each latent frame, in [0, 1].
            previous: clean latent before each frame.
            conditions: of the same frames.
            memory: rotated keys and values of past frames, for a cached pattern.

        Returns:
            Clean latents of the frames from ``output_from`` on, float32, and for a cached pattern
            the frame's unrotated keys and values, each [layers, B V, 1, s, heads, k].

        Raises:
            ValueError: a latent grid that does not divide into patches.
        """
        config, dtype = self.config, self.dtype
        height, width = noisy.shape[3:5]
        if height % config.patch or width % config.patch:
            raise ValueError(
                f"WorldGen: the latent grid {height} x {width} must divide into patches of "
                f"{config.patch}; use images whose sides are multiples of {8 * config.patch}."
            )
        grid = (height // config.patch, width // config.patch)
        start = self.output_from
        prior_mask = conditions.prior_mask
        prior = conditions.prior * prior_mask
        layout_valid = jnp.broadcast_to(
            conditions.layout_valid[..., None, None, None], prior_mask.shape
        )

        def embed(name: str, latents: jax.Array, **kwargs: Any) -> jax.Array:
            axes = ("condition", "embed")
            patches = _patchify(latents, config.patch)
            return Linear(config.dim, axes, dtype=dtype, name=name, **kwargs)(patches)

        ray_tokens = embed("embed_rays", conditions.rays, use_bias=False)
        layout = jnp.concatenate([conditions.layout, layout_valid], -1)
        primed = jnp.concatenate([prior, prior_mask], -1)
        x = embed("embed_noisy", noisy) + embed("embed_previous", previous, use_bias=False)
        x = x + embed("embed_layout", layout, use_bias=False) + ray_tokens[:, :, None]
        x = x + embed("embed_prior", primed, use_bias=False, kernel_init=ZEROS)

        context = ConditionTokens(config, dtype, name="condition_tokens")(conditions)
        small = nn.initializers.normal(0.02)
        e = sinusoidal_embedding(1000.0 * sigma, config.freq_dim)
        e = Linear(config.dim, ("condition", "embed"), small, name="time_1")(e)
        e = Linear(config.dim, ("embed", "mlp"), small, name="time_2")(nn.silu(e))
        motion = context[:, :, : config.frames_per_latent].mean(2)
        e = e + Linear(config.dim, ("embed", "mlp"), ZEROS, name="motion_to_time")(motion)
        e0 = Linear(6 * config.dim, ("embed", "mlp"), name="time_projection")(nn.silu(e))
        e0 = e0.reshape(*sigma.shape, 6, config.dim)

        x, keys_values = self._layers(x, e0, context, ray_tokens, grid, memory)

        if start == noisy.shape[2]:
            return previous[:, :, start:], keys_values
        residual = self._head(x[:, :, start:], e[:, start:], grid)
        base = prior + previous * (1.0 - prior_mask)
        return base[:, :, start:] + residual, keys_values

    def _layers(self, x, e0, context, ray_tokens, grid, memory):
        config = self.config
        group, past, visible, position = config.cross_view_every, None, None, None
        if memory is not None:
            past_keys, past_values, visible, position = memory
            past = tuple(a.reshape(-1, group, *a.shape[1:]) for a in (past_keys, past_values))
        body = nn.remat(Layers, prevent_cse=False) if config.remat else Layers
        stack = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *(nn.broadcast,) * 5),
            length=config.num_layers // group,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, kept = stack(config, self.pattern, grid, self.dtype, name="layers")(
            x.astype(jnp.float32), past, e0, context, ray_tokens, visible, position
        )
        if kept is None:
            return x, None
        return x, tuple(a.reshape(config.num_layers, *a.shape[2:]) for a in kept)

    def _head(self, x, e, grid):
        """The correction to the base: a linear map of each token and a convolution over latents."""
        config, dtype = self.config, self.dtype
        boxed = nn.with_logical_partitioning(
            nn.initializers.normal(config.dim**-0.5), (None, "embed")
        )
        modulation = self.param("head_modulation", boxed, (2, config.dim), jnp.float32)
        shift, scale = (e[:, None, :, None] + modulation[i] for i in range(2))
        y = LayerNorm(affine=False)(x) * (1.0 + scale) + shift
        area, channels = config.patch**2, config.latent_channels
        linear = Linear(area * channels, ("embed", "out"), ZEROS, dtype=dtype, name="head")(y)
        residual = _unpatchify(linear, grid, config.patch)
        if config.head_channels:
            width = area * config.head_channels
            hidden = Linear(width, ("embed", "out"), dtype=dtype, name="head_hidden")(y)
            hidden = nn.gelu(_unpatchify(hidden, grid, config.patch), approximate=True)
            image = hidden.reshape(-1, *hidden.shape[3:])
            image = Conv(channels, scale=0.01, dtype=dtype, name="head_conv")(image)
            residual = residual + image.reshape(residual.shape)
        return residual.astype(jnp.float32)


def _patchify(latents: jax.Array, patch: int) -> jax.Array:
    """[..., h, w, c] -> [..., tokens, patch patch c], rows of tokens first."""
    *lead, height, width, channels = latents.shape
    rows, columns = height // patch, width // patch
    blocks = latents.reshape(*lead, rows, patch, columns, patch, channels)
    blocks = jnp.moveaxis(blocks, -3, -4)
    return blocks.reshape(*lead, rows * columns, patch * patch * channels)


def _unpatchify(tokens: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """The inverse of `_patchify`."""
    lead, channels = tokens.shape[:-2], tokens.shape[-1] // patch**2
    blocks = tokens.reshape(*lead, *grid, patch, patch, channels)
    blocks = jnp.moveaxis(blocks, -4, -3)
    return blocks.reshape(*lead, grid[0] * patch, grid[1] * patch, channels)
