"""The output head, float32 throughout: a linear map of each token, and a convolution over latents.

    y   = LN(x) (1 + scale) + shift,    (shift, scale) = e + modulation
    out = unpatch(Linear(y)) + conv(GELU(unpatch(Linear(y))))

The convolution is ours and may be absent; the linear map starts at zero.
"""

import flax.linen as nn
import jax
from jaxtyping import Float

from jwm_jax.distributed.sharding import pin
from jwm_jax.nn.conv import Conv
from jwm_jax.nn.layers import LayerNorm, Linear, parameter
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.embeddings import unpatchify


class Head(nn.Module):
    """Tokens to latents.

    Attributes:
        config: widths.
        grid: rows and columns of tokens.
    """

    config: WorldGenConfig
    grid: tuple[int, int]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b v f s d"], e: Float[jax.Array, "b f d"]
    ) -> Float[jax.Array, "b v f h w c"]:
        """Returns float32 latents.

        Args:
            x: tokens of one copy.
            e: embedding of its sigmas.
        """
        config, patch = self.config, self.config.patch
        initial = nn.initializers.normal(config.dim**-0.5)
        modulation = parameter(self, "modulation", initial, (None, "embed"), (2, config.dim))
        shift, scale = (e[:, None, :, None] + modulation[i] for i in range(2))
        y = LayerNorm(affine=False)(x) * (1.0 + scale) + shift
        area, channels = patch**2, config.latent_channels
        zeros = nn.initializers.zeros_init()
        out = Linear(area * channels, ("embed", "out"), zeros, name="out")(y)
        # Whole frames on each device from here on: a convolution over split rows goes wrong in XLA.
        whole = ("batch", None, None, None, None)
        there = self.grid[0] * self.grid[1]  # what follows is padding, see `transformer`
        out = unpatchify(pin(out, whole)[..., :there, :], self.grid, patch)
        if config.head_channels:
            hidden = Linear(area * config.head_channels, ("embed", "out"), name="hidden")(y)
            hidden = unpatchify(pin(hidden, whole)[..., :there, :], self.grid, patch)
            image = nn.gelu(hidden, approximate=True).reshape(-1, *hidden.shape[3:])
            image = Conv(channels, scale=0.01, name="conv")(pin(image, whole[:4]))
            image = pin(image, whole[:4])
            out = out + image.reshape(out.shape)
        return out
