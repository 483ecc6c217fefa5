"""Layers that both models share: linear maps, norms, a two-layer perceptron, embeddings.

Every parameter is float32 and carries logical axis names, which `jwm_jax.distributed.rules` maps to
mesh axes. Layers compute in ``dtype``; norms compute in float32 and return ``dtype``:

    layer norm    (x - mean) / sqrt(var + eps)
    RMS norm      x / sqrt(mean(x^2) + eps) * weight
    sinusoid      [cos(x w_i), sin(x w_i)],  w_i = 10000^(-i / n)
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jwm_jax.distributed.sharding import gathered

Initializer = Callable[..., jax.Array]

EPSILON = 1e-6


def parameter(
    module: nn.Module,
    name: str,
    initial: Initializer,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """A module's float32 parameter with named axes, whole for use (`sharding.gathered`).

    Args:
        module: whose it is; to be called in its compact method.
        name: of the parameter.
        initial: its initial values.
        axes: logical name of each axis.
        shape: its shape.
    """
    boxed = nn.with_logical_partitioning(initial, axes)
    return gathered(module.param(name, boxed, shape, jnp.float32), axes)


class Linear(nn.Module):
    """y = x W + b over the last axis.

    Attributes:
        features: size of the output's last axis.
        axes: logical names of the kernel's two axes, input first.
        kernel_init: initial kernel; Xavier-uniform if not given.
        use_bias: whether there is a bias (zeros at the start).
        dtype: type in which the product is computed.
    """

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[jax.Array, "*b in"]) -> Float[jax.Array, "*b out"]:
        """Returns the map of ``inputs`` in ``dtype``."""
        shape = (inputs.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, self.axes, shape)
        outputs = inputs.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            bias = parameter(self, "bias", zeros, self.axes[1:], (self.features,))
            outputs = outputs + bias.astype(self.dtype)
        return outputs


class Einsum(nn.Module):
    """A kernel of any rank contracted with the input by an einsum equation.

    Attributes:
        equation: for example ``"...d,dhk->...hk"``; the kernel is the second operand.
        shape: shape of the kernel.
        axes: logical name of each of the kernel's axes.
        kernel_init: initial kernel; normal with deviation shape[0]^-0.5 if not given.
        dtype: type in which the product is computed.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kernel_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        """Returns the contraction of ``inputs`` with the kernel in ``dtype``."""
        initial = self.kernel_init or nn.initializers.normal(self.shape[0] ** -0.5)
        kernel = parameter(self, "kernel", initial, self.axes, self.shape)
        return jnp.einsum(self.equation, inputs.astype(self.dtype), kernel.astype(self.dtype))


class LayerNorm(nn.Module):
    """Layer norm over the last axis, with or without a learned scale and shift.

    Attributes:
        affine: whether a scale (ones at the start) and a bias (zeros) are learned.
        dtype: type of the result.
    """

    affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[jax.Array, "*b d"]) -> Float[jax.Array, "*b d"]:
        """Returns the normalised input."""
        x = inputs.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
        if self.affine:
            scale = _vector(self, "scale", nn.initializers.ones_init(), inputs.shape[-1])
            x = x * scale + _vector(self, "bias", nn.initializers.zeros_init(), inputs.shape[-1])
        return x.astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned weight.

    Attributes:
        dtype: type of the result.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[jax.Array, "*b d"]) -> Float[jax.Array, "*b d"]:
        """Returns the normalised input."""
        x = inputs.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
        weight = _vector(self, "weight", nn.initializers.ones_init(), inputs.shape[-1])
        return (x * weight).astype(self.dtype)


class Mlp(nn.Module):
    """Linear, GELU (tanh form), linear.

    Attributes:
        hidden: width of the hidden layer.
        features: width of the output.
        axes: logical names of the input, hidden and output axes.
        dtype: type in which it is computed.
    """

    hidden: int
    features: int
    axes: tuple[str | None, str | None, str | None] = ("embed", "mlp", "embed")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[jax.Array, "*b in"]) -> Float[jax.Array, "*b out"]:
        """Returns the perceptron's output in ``dtype``."""
        hidden = Linear(self.hidden, self.axes[:2], dtype=self.dtype, name="up")(inputs)
        hidden = nn.gelu(hidden, approximate=True)
        return Linear(self.features, self.axes[1:], dtype=self.dtype, name="down")(hidden)


class Embedding(nn.Module):
    """A table of a few learned vectors, looked up by a product: so is its gradient, which a mesh
    splits as that of other weights.

    Attributes:
        entries: number of vectors.
        features: width of a vector.
        dtype: type of the result.
    """

    entries: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, indices: Int[jax.Array, "*b"]) -> Float[jax.Array, "*b d"]:
        """Returns the vectors of ``indices``."""
        initial, shape = nn.initializers.normal(0.02), (self.entries, self.features)
        table = parameter(self, "table", initial, (None, "embed"), shape)
        return (jax.nn.one_hot(indices, self.entries) @ table).astype(self.dtype)


def sinusoidal_embedding(values: Float[jax.Array, "*b"], features: int) -> Float[jax.Array, "*b d"]:
    """Cosines and sines of a scalar at geometrically spaced frequencies, cosines first.

    Args:
        values: numbers of order 1 to 1000.
        features: width of the result, even.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = values.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _vector(module: nn.Module, name: str, initial: Initializer, size: int) -> jax.Array:
    return parameter(module, name, initial, ("embed",), (size,))
