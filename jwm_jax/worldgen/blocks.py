"""The transformer's blocks: Wan 2.1's, and a cross-view attention between groups of them.

    m   = e0 + modulation of the layer -> shift1, scale1, gate1, shift2, scale2, gate2
    x  += gate1 SelfAttention(LN(x) (1 + scale1) + shift1)      within a view, over time
    x  += CrossAttention(LN(x), text) + CrossAttention(LN(x), condition tokens of the frame)
    x  += gate2 FFN(y + conv3x3(y)),  y = LN(x) (1 + scale2) + shift2

    x  += gate Attention(LN(x) + rays)                          within a frame, over its views

Queries and keys are RMS-normalised over the full width. The two cross-attentions share queries and
the map of their sum; beside text the condition values start at zero. The depthwise convolution,
which lets patches agree along their edges, and the cross-view gate start at zero as well. Where
tokens are sharded is said once a block: the residual and the heads.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from jwm_jax.distributed.context import cross_attention, framed_attention
from jwm_jax.distributed.sharding import constrain
from jwm_jax.nn.layers import LayerNorm, Linear, Mlp, RMSNorm, parameter
from jwm_jax.nn.masks import Full, Padded
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.masks import Past, Pattern

Tokens = Float[jax.Array, "b v copies f s d"]
Heads = Float[jax.Array, "*b heads k"]
KeysValues = tuple[jax.Array, jax.Array]

ZEROS = nn.initializers.zeros_init()
RESIDUAL = ("batch", "views", None, "frames", "tokens", "act_embed")
HEADS = ("batch", "views", None, "frames", "tokens", "act_heads", None)


class FrameConv(nn.Module):
    """x + depthwise 3x3 convolution of x over each frame's grid of tokens, zero at the start."""

    grid: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        """Returns the tokens with their neighbours' weighted sum added."""
        axes, shape = (None, None, "embed"), (3, 3, tokens.shape[-1])
        kernel = parameter(self, "kernel", ZEROS, axes, shape).astype(self.dtype)
        rows, columns = self.grid
        there, padding = tokens[..., : rows * columns, :], tokens[..., rows * columns :, :]
        image = there.astype(self.dtype).reshape(*tokens.shape[:-2], rows, columns, -1)
        padded = jnp.pad(image, [(0, 0)] * (image.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
        for i in range(3):
            for j in range(3):
                image = image + padded[..., i : i + rows, j : j + columns, :] * kernel[i, j]
        image = image.reshape(there.shape)
        return jnp.concatenate([image, padding.astype(self.dtype)], axis=-2)


class _Projection(nn.Module):
    """Queries, keys or values, split into heads; queries and keys RMS-normalised before."""

    config: WorldGenConfig
    dtype: Any

    def heads(self, name: str, inputs: jax.Array, **kwargs: Any) -> Heads:
        """The map ``name`` of ``inputs``; normalised by "norm_q" and "norm_k"."""
        config = self.config
        linear = Linear(config.dim, ("embed", "heads"), dtype=self.dtype, name=name, **kwargs)
        outputs = linear(inputs)
        if name != "v":
            outputs = RMSNorm(self.dtype, name=f"norm_{name}")(outputs)
        return rearrange(outputs, "... (heads k) -> ... heads k", heads=config.num_heads)

    def out(self, heads: Heads) -> jax.Array:
        """The map of attended heads back to the width of a token."""
        flat = rearrange(heads, "... heads k -> ... (heads k)")
        return Linear(self.config.dim, ("heads", "embed"), dtype=self.dtype, name="out")(flat)


class SelfAttention(_Projection):
    """Attention over time within a view, under a pattern."""

    pattern: Pattern
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: Tokens, past: Past | None) -> tuple[Tokens, KeysValues | None]:
        """Returns the attended tokens and, if the pattern says so, unrotated keys and values."""
        batch = x.shape[0]
        heads = (constrain(self.heads(name, x), HEADS) for name in "qkv")
        folded = [rearrange(a, "b v ... -> (b v) ...") for a in heads]
        if self.is_initializing():  # with one token, which no mesh divides
            attended = folded[0]
        else:
            attended = self.pattern(*folded, self.grid, past)
        attended = constrain(rearrange(attended, "(b v) ... -> b v ...", b=batch), HEADS)
        kept = tuple(a[:, 0] for a in folded[1:]) if self.pattern.returns_keys else None
        return self.out(attended), kept


class ContextKeys(_Projection):
    """Keys and values of what is attended to across: text or condition tokens.

    Attributes:
        adapter: whether the values start at zero.
    """

    adapter: bool = False

    @nn.compact
    def __call__(self, context: Float[jax.Array, "*b d"]) -> KeysValues:
        """Returns keys and values [..., heads, k]."""
        start = {"kernel_init": ZEROS} if self.adapter else {}
        return self.heads("k", context), self.heads("v", context, **start)


class CrossAttention(_Projection):
    """Attention of every token to text and to the condition tokens of its frame."""

    @nn.compact
    def __call__(self, x: Tokens, text: KeysValues | None, conditions: KeysValues | None) -> Tokens:
        """Returns the sum of both.

        Args:
            x: normalised tokens.
            text: keys and values [b, length, heads, k].
            conditions: keys and values [b, copies, f, tokens, heads, k].
        """
        batch, _, copies, frames = x.shape[:4]
        queries = constrain(self.heads("q", x), HEADS)
        attended = jnp.zeros_like(queries)
        if self.is_initializing():
            return self.out(attended)
        by = {"implementation": self.config.attention}
        if text is not None:
            flat = rearrange(queries, "b v n f s h k -> b (v n f) s h k")
            attended = attended + cross_attention(flat, *text, **by).reshape(queries.shape)
        if conditions is not None:
            flat = rearrange(queries, "b v n f s h k -> (b n f) v s h k")
            each = (rearrange(a, "b n f ... -> (b n f) ...") for a in conditions)
            out = cross_attention(flat, *each, **by)
            sizes = {"b": batch, "n": copies, "f": frames}
            attended = attended + rearrange(out, "(b n f) v s h k -> b v n f s h k", **sizes)
        return self.out(attended)


class Block(nn.Module):
    """One transformer block.

    Attributes:
        config: widths.
        pattern: which frames see which.
        grid: rows and columns of tokens.
        dtype: compute type.
    """

    config: WorldGenConfig
    pattern: Pattern
    grid: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        e0: Float[jax.Array, "b copies f 6 d"],
        context: Float[jax.Array, "b copies f m d"] | None,
        text: KeysValues | None,
        past: Past | None,
    ) -> tuple[Tokens, KeysValues | None]:
        """Returns the tokens and, for a cached pattern, the chunk's unrotated keys and values.

        Args:
            x: tokens, float32.
            e0: time projection, before this layer's modulation.
            context: condition tokens of each latent frame.
            text: keys and values of text in this layer, from `TextKeys`.
            past: memory of this layer.
        """
        config, dtype = self.config, self.dtype
        initial = nn.initializers.normal(config.dim**-0.5)
        modulation = parameter(self, "modulation", initial, (None, "embed"), (6, config.dim))
        parts = (e0 + modulation)[:, None, ..., None, :]
        shift1, scale1, gate1, shift2, scale2, gate2 = (parts[..., i, :, :] for i in range(6))

        x = constrain(x, RESIDUAL)
        y = LayerNorm(affine=False)(x) * (1.0 + scale1) + shift1
        attend = SelfAttention(config, dtype, self.pattern, self.grid, name="self_attention")
        y, kept = attend(y, past)
        x = x + gate1 * y

        y = LayerNorm(name="cross_norm")(x)
        conditions = None
        if context is not None:
            keys = ContextKeys(config, dtype, config.text_dim > 0, name="condition_attention")
            conditions = keys(context)
        x = x + CrossAttention(config, dtype, name="cross_attention")(y, text, conditions)

        y = LayerNorm(affine=False)(x) * (1.0 + scale2) + shift2
        if config.frame_conv:
            y = FrameConv(self.grid, dtype, name="frame_conv")(y)
        x = x + gate2 * Mlp(config.ffn_dim, config.dim, dtype=dtype, name="ffn")(y)
        return constrain(x, RESIDUAL), kept


class ViewBlock(_Projection):
    """Attention over all views of a frame, through a gate that starts closed.

    Attributes:
        grid: rows and columns of tokens; tokens beyond are padding.
    """

    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: Tokens, rays: Float[jax.Array, "b v s d"] | None) -> Tokens:
        """Returns the tokens; ``rays``, embedded, tell the views apart."""
        y = LayerNorm(affine=False)(x)
        if rays is not None:
            y = y + rays[:, :, None, None]
        heads = (self.heads(name, y) for name in "qkv")
        flat = [rearrange(a, "b v n f s h k -> (b n f) v s h k") for a in heads]
        stored, there = x.shape[4], self.grid[0] * self.grid[1]
        mask = Full() if stored == there else Padded(Full(), stored, there)
        attend = partial(framed_attention, implementation=self.config.attention)
        out = flat[0] if self.is_initializing() else attend(*flat, mask)
        sizes = dict(zip("bnf", (x.shape[0], *x.shape[2:4]), strict=True))
        out = rearrange(out, "(b n f) v s h k -> b v n f s h k", **sizes)
        gate = parameter(self, "gate", ZEROS, ("embed",), (self.config.dim,))
        return constrain(x + gate * self.out(out), RESIDUAL)
