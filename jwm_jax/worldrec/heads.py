"""From fused queries to Gaussians.

Each query decodes to C Gaussians, one a child. With the child's point p, camera axes R, depth z,
pixel footprint s, source colour c and sky probability, the heads' outputs x give

    mean      p + R (side s tanh x_1, side s tanh x_2, reach z tanh x_3)
    scale     (s_u, s_v, mean of both) e^(reach tanh x)
    quat      R * normalise((1, 0, 0, 0) + x)
    opacity   sigmoid(x + 2) (1 - sky)
    color     sigmoid(x + logit c)
    lifespan  softplus(x)                                                           (seconds)

so that a network whose heads give zero already shows its pictures without holes. The forms follow
the lineage listed in the room's README: bounded offsets and footprint-relative scales (MVSplat,
GaussianFormer), residuals on the source colour (NeoVerse), lifespans (PointForward).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.nn.layers import Linear
from jwm_jax.scene.gaussians import Gaussians
from jwm_jax.scene.transforms import matrix_to_quat, quat_multiply
from jwm_jax.worldrec.config import WorldRecConfig
from jwm_jax.worldrec.pictures import Pictures
from jwm_jax.worldrec.queries import Queries

OUTPUTS = {"offset": 3, "scale": 3, "rotation": 4, "opacity": 1, "color": 3, "lifespan": 1}
"""Numbers a Gaussian, by head."""

SIZE_AT_START = 1.15
"""Standard deviation at the start, in half footprints: neighbours blend without holes."""

OPACITY_BIAS = 2.0


class GaussianHeads(nn.Module):
    """One linear head an attribute.

    Attributes:
        config: Shape of the model.
        dtype: Type of the products.
    """

    config: WorldRecConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, fused: Float[jax.Array, "p q d"], queries: Queries, pictures: Pictures
    ) -> Gaussians:
        """Decode.

        Args:
            fused: Queries after the fusion.
            queries: From `place_queries`.
            pictures: Give times and which pictures are padding.

        Returns:
            P Q C Gaussians, picture by picture.
        """
        config = self.config
        p, q, c = queries.depth.shape
        small = nn.initializers.normal(0.01)
        out = {}
        for name, size in OUTPUTS.items():
            linear = Linear(
                c * size, ("embed", "out"), kernel_init=small, dtype=self.dtype, name=name
            )
            out[name] = linear(fused).astype(jnp.float32).reshape(p, q, c, size)
        depth, footprint = queries.depth[..., None], queries.footprint
        shift = jnp.concatenate(
            [
                config.side_reach * footprint * jnp.tanh(out["offset"][..., :2]),
                config.depth_reach * depth * jnp.tanh(out["offset"][..., 2:]),
            ],
            -1,
        )
        means = queries.points + jnp.einsum("pqcij,pqcj->pqci", queries.rotation, shift)
        size = jnp.concatenate([footprint, footprint.mean(-1, keepdims=True)], -1)
        scales = SIZE_AT_START * size * jnp.exp(config.scale_reach * jnp.tanh(out["scale"]))
        turn = out["rotation"] + jnp.asarray([1.0, 0.0, 0.0, 0.0])
        turn = turn / jnp.linalg.norm(turn, axis=-1, keepdims=True)
        quats = quat_multiply(matrix_to_quat(queries.rotation), turn)
        opacity = nn.sigmoid(out["opacity"][..., 0] + OPACITY_BIAS) * (1.0 - queries.sky)
        source = jnp.clip(queries.colors, 0.004, 0.996)
        colors = nn.sigmoid(out["color"] + jnp.log(source) - jnp.log1p(-source))

        def everywhere(x):
            return jnp.broadcast_to(x[:, None, None], (p, q, c)).reshape(-1)

        mask = everywhere(pictures.mask)

        def flat(x):
            return x.reshape(p * q * c, *x.shape[3:])

        return Gaussians(
            means=flat(means),
            quats=flat(quats),
            scales=flat(scales),
            opacities=flat(opacity) * mask,
            colors=flat(colors),
            mask=mask,
            time=everywhere(pictures.times),
            lifespan=flat(nn.softplus(out["lifespan"][..., 0])),
            owner=flat(queries.owner),
            confidence=jnp.ones((p * q * c,), jnp.float32),
        )
