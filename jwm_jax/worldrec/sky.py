"""The sky as the pictures show it.

Every texel of the sky's texture is a direction d; projected into picture k at infinity it falls on
the pixel pi(R_k^T d), whose colour counts with the probability that it is sky. Where no picture saw
sky, a perceptron of the direction and the mean sky colour fills in:

    texel = (sum_k w_k c_k + e fallback) / (sum_k w_k + e).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.nn.layers import Linear
from jwm_jax.scene.cameras import inside_image, project_local
from jwm_jax.scene.sky import Sky, texel_directions
from jwm_jax.worldrec.config import WorldRecConfig
from jwm_jax.worldrec.fusion import bilinear
from jwm_jax.worldrec.pictures import Pictures
from jwm_jax.worldrec.split import total

FALLBACK_WEIGHT = 0.05


class SkyHead(nn.Module):
    """Sky texture from pictures and their sky probabilities.

    Attributes:
        config: Shape of the model.
        dtype: Type of the products.
        axis: Mesh axis that the scene's pictures are split over, see `split`.
    """

    config: WorldRecConfig
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, pictures: Pictures, sky: Float[jax.Array, "p h w"]) -> Sky:
        """Gather the texture.

        Args:
            pictures: Without leading axes.
            sky: Probability of sky at the pictures' size.
        """
        rows, columns = self.config.sky
        directions = jnp.asarray(texel_directions(rows, columns)).reshape(-1, 3)
        height, width = sky.shape[1:]

        def gather(carry, view):
            image, likely, K, pose, mask = view
            uv, z = project_local(K, directions @ pose[:3, :3])
            inside = inside_image(uv, z, height, width) & mask
            layers = jnp.concatenate([image * likely[..., None], likely[..., None]], -1)
            read = bilinear(layers, uv) * inside[:, None]
            return carry + read, None

        views = (
            pictures.images,
            sky**2,
            pictures.K,
            pictures.world_from_camera,
            pictures.mask,
        )
        seen, _ = jax.lax.scan(gather, jnp.zeros((directions.shape[0], 4)), views)
        likely = (sky**2 * pictures.mask[:, None, None])[..., None]
        colors, weight = (pictures.images * likely).sum((0, 1, 2)), likely.sum()
        seen, colors, weight = total((seen, colors, weight), self.axis)
        mean = colors + 1e-3 * jnp.asarray([0.6, 0.7, 0.8])
        mean = jnp.clip(mean / (weight + 1e-3), 0.02, 0.98)
        logit = jnp.log(mean) - jnp.log1p(-mean)
        described = jnp.concatenate(
            [directions, jnp.broadcast_to(logit, (directions.shape[0], 3))], -1
        )
        hidden = Linear(32, ("condition", "mlp"), dtype=self.dtype, name="up")(described)
        change = Linear(
            3,
            ("mlp", "out"),
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="down",
        )(nn.silu(hidden))
        fallback = nn.sigmoid(logit + change.astype(jnp.float32))
        texture = seen[:, :3] + FALLBACK_WEIGHT * fallback
        texture = texture / (seen[:, 3:] + FALLBACK_WEIGHT)
        return Sky(texture.reshape(rows, columns, 3))
