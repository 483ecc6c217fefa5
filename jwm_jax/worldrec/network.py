"""The WorldRec network: pictures in, Gaussians and sky out, as one pure function.

    pyramid = backbone(pictures, rays)              depth, sky = head(pyramid)
    queries = lift cells by depth, by owner         fused = weighted fusion over views and times
    Gaussians = heads(perceptron(queries, fused))   sky = pictures at infinity

The rays given to the backbone are directions in the ego frame, so that the height of a pixel above
the horizon, which says most about depth on a road, is known to it whatever the lens.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.nn.layers import LayerNorm, Linear, Mlp
from jwm_jax.scene.cameras import Intrinsics
from jwm_jax.scene.gaussians import Gaussians
from jwm_jax.scene.sky import Sky
from jwm_jax.worldrec.backbone import Backbone
from jwm_jax.worldrec.config import WorldRecConfig
from jwm_jax.worldrec.depth import DepthHead, plane_log_depth
from jwm_jax.worldrec.fusion import ViewFusion, make_views
from jwm_jax.worldrec.heads import GaussianHeads
from jwm_jax.worldrec.pictures import Pictures
from jwm_jax.worldrec.queries import place_queries
from jwm_jax.worldrec.sky import SkyHead


class Reconstruction(NamedTuple):
    """What the network makes of one scene's pictures.

    Attributes:
        gaussians: Static ones in the world, the others in their box's frame.
        sky: Texture.
        log_depth: Natural logarithm of metres along z at the pictures' size, as regressed.
        sky_logit: Of sky, at the pictures' size.
    """

    gaussians: Gaussians
    sky: Sky
    log_depth: jax.Array
    sky_logit: jax.Array


class WorldRecNetwork(nn.Module):
    """Reconstruct one scene; `jax.vmap` over its `apply` for several.

    Attributes:
        config: Shape of the model.
        dtype: Type of convolutions and perceptrons; geometry, norms and softmax are float32.
        axis: Mesh axis of the surrounding `jax.shard_map` that the scene's pictures are split over,
            see `split`; None where one device has them all.
    """

    config: WorldRecConfig
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, pictures: Pictures) -> Reconstruction:
        """Reconstruct.

        Args:
            pictures: Without leading axes; those of this device.

        Returns:
            The Gaussians and maps of these pictures, and the sky of all.
        """
        config = self.config
        p = pictures.depth.shape[0]
        rays = ego_rays(pictures)
        unit = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
        pyramid = Backbone(config, self.dtype, name="backbone")(
            jnp.concatenate([2.0 * pictures.images - 1.0, unit], -1)
        )
        low, columns = pyramid[0].shape[1:3]
        prior = plane_log_depth(config, rays).reshape(p, low, 2, columns, 2).mean((2, 4))
        log_depth, sky_logit = DepthHead(config, self.dtype, name="depth")(pyramid[0], prior)
        log_depth, sky_logit = (double(x) for x in (log_depth, sky_logit))
        known = pictures.depth > 0
        depth = jnp.where(known, jnp.maximum(pictures.depth, 0.1), jnp.exp(log_depth))
        sky = nn.sigmoid(sky_logit)
        queries, entry = place_queries(config, pictures, depth, sky, self.axis)

        own = own_features(config, pyramid, queries.uv)
        described = jnp.concatenate([queries.descriptor, own], -1)
        axes = ("condition", "mlp", "embed")
        embedding = Mlp(config.hidden, config.width, axes, self.dtype, name="embed")(described)
        x = embedding
        if not config.pixel_aligned:
            views = make_views(config, pictures, pyramid, depth, sky, entry, self.axis)
            fused = ViewFusion(config, self.dtype, self.axis, name="fusion")(
                embedding, queries, pictures.times, views
            )
            x = x + Linear(config.width, ("conv_in", "embed"), dtype=self.dtype, name="fused")(
                fused
            )
        x = x + Mlp(config.hidden, config.width, dtype=self.dtype, name="mix")(
            LayerNorm(dtype=self.dtype, name="mix_norm")(x)
        )
        x = LayerNorm(dtype=self.dtype, name="head_norm")(x)
        gaussians = GaussianHeads(config, self.dtype, name="heads")(x, queries, pictures)
        return Reconstruction(
            gaussians=gaussians,
            sky=SkyHead(config, self.dtype, self.axis, name="sky")(pictures, sky),
            log_depth=log_depth,
            sky_logit=sky_logit,
        )


def ego_rays(pictures: Pictures) -> Float[jax.Array, "p h w 3"]:
    """Directions through the pixel centres in ego axes, of depth 1 along the optical axis."""
    height, width = pictures.depth.shape[1:]
    rays = Intrinsics(K=pictures.K, width=width, height=height).pixel_rays()
    return jnp.einsum("pij,phwj->phwi", pictures.ego_from_camera[:, :3, :3], rays)


def own_features(
    config: WorldRecConfig, pyramid: tuple[jax.Array, ...], uv: Float[np.ndarray, "q 2"]
) -> Float[jax.Array, "p q d"]:
    """Features of each cell in its own picture, all levels side by side."""
    parts = []
    for i, level in enumerate(pyramid[: config.levels]):
        row, column = (np.floor(uv[:, axis] / 2 ** (i + 1)).astype(int) for axis in (1, 0))
        row = np.minimum(row, level.shape[1] - 1)
        column = np.minimum(column, level.shape[2] - 1)
        parts.append(level[:, row, column])
    return jnp.concatenate(parts, -1)


def double(x: Float[jax.Array, "p h w"]) -> Float[jax.Array, "p h2 w2"]:
    """Every entry as a block of two by two: edges of depth stay edges."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
