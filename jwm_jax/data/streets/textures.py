"""Photographs on a street's surfaces: crops as mip pyramids, sampled where rays meet them.

A texture is a square crop divided by its mean, so that it multiplies a surface's own colour. It
spans some metres of the surface, or the whole of a face, and goes on mirrored beyond its edges,
which leaves no seam. A ray takes the trilinear mean over its footprint, so nothing flickers with
distance. Everything a street knows of textures is a `Textures`; a street without has none.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jwm_jax.scene.pytree import Array

SIDE = 64
"""Texels along the side of a crop."""

LEVELS = SIDE.bit_length()
"""Levels of a pyramid, each half as wide as the one before; the last is the mean."""

_SIDES = np.asarray([SIDE >> level for level in range(LEVELS)], np.int32)
_STARTS = np.concatenate([[0], np.cumsum(_SIDES**2)[:-1]]).astype(np.int32)

ROAD_TEXTURE, PAVEMENT_TEXTURE, GRASS_TEXTURE, SKY_TEXTURE = range(4)
"""The first textures of every street; the others belong to solids and ellipsoids."""

FOOTPRINT_SHARE = 0.5
"""Share of a footprint's longer side that picks the level: a pixel's rays cover the rest."""


class Textures(NamedTuple):
    """Textures of a street and who wears them."""

    texels: Float[Array, "n texels 3"]
    """Pyramids, level after level, rows from above."""
    spans: Float[Array, "n"]
    """Metres of a surface (radians of the sky) that a texture covers; 0 for a whole face."""
    solids: Int[Array, "s"]
    """Texture of every solid, -1 for none."""
    ellipsoids: Int[Array, "e"]
    """Texture of every ellipsoid, -1 for none."""


def pyramid(crop: UInt8[np.ndarray, "side side 3"]) -> Float[np.ndarray, "texels 3"]:
    """A crop over its mean as the rows of `Textures.texels`, float32."""
    level = crop.astype(np.float32) + 1.0
    level = level / level.mean((0, 1))
    levels = [level]
    while len(levels) < LEVELS:
        a = levels[-1]
        levels.append((a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]) / 4)
    return np.concatenate([level.reshape(-1, 3) for level in levels])


def sample(
    textures: Textures,
    index: Int[Array, "r"],
    u: Float[Array, "r"],
    v: Float[Array, "r"],
    footprint: Float[Array, "r"],
) -> Float[Array, "r 3"]:
    """Factors on the colours of r points: 1 where there is no texture.

    Args:
      textures: of the street.
      index: texture of each point, -1 for none.
      u: place along the surface to the right, in spans.
      v: place up the surface, in spans.
      footprint: longer side of a ray's footprint, in spans.
    """
    texture = jnp.maximum(index, 0)
    u, v = (jnp.abs(jnp.mod(x + 1.0, 2.0) - 1.0) for x in (u, 1.0 - v))
    level = jnp.log2(jnp.maximum(footprint * FOOTPRINT_SHARE * SIDE, 1.0))
    level = jnp.minimum(level, LEVELS - 1.0)
    lower = jnp.floor(level).astype(jnp.int32)

    def bilinear(level):
        side = jnp.asarray(_SIDES)[level]
        x, y = (jnp.clip(c * side - 0.5, 0.0, side - 1.0) for c in (u, v))
        left, top = (jnp.floor(c).astype(jnp.int32) for c in (x, y))
        right, bottom = (jnp.minimum(c + 1, side - 1) for c in (left, top))
        across, down = (x - left)[:, None], (y - top)[:, None]
        start = jnp.asarray(_STARTS)[level]

        def texel(row, column):
            return textures.texels[texture, start + row * side + column]

        above = texel(top, left) * (1 - across) + texel(top, right) * across
        below = texel(bottom, left) * (1 - across) + texel(bottom, right) * across
        return above * (1 - down) + below * down

    share = (level - lower)[:, None]
    upper = jnp.minimum(lower + 1, LEVELS - 1)
    color = bilinear(lower) * (1 - share) + bilinear(upper) * share
    return jnp.where((index >= 0)[:, None], color, 1.0)
