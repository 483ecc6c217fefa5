"""From splats on the screen to the flat table that backends read, and from tiles to images."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from jwm_kernels.gaussian_rasterizer.blending.vjp import BlendSpec
from jwm_kernels.gaussian_rasterizer.gaussian_terms import quadratic_columns
from jwm_kernels.gaussian_rasterizer.projection.project import Projection
from jwm_kernels.gaussian_rasterizer.table import interleave

Array = jax.Array | np.ndarray


def pack_table(
    projection: Projection, features: Float[Array, "*batch c n d"]
) -> Float[Array, "rows columns"]:
    """[R, 6 + D]: mean x, mean y, A = -1/(2 xx), s = -xy/xx, C = -xx/(2 det), ln o, features."""
    columns = [
        projection.means2d[..., 0],
        projection.means2d[..., 1],
        *quadratic_columns(projection.covars2d, projection.dets),
        jnp.log(jnp.maximum(projection.opacities, 1e-12)),
    ]
    table = jnp.concatenate([interleave(columns), features], -1)
    return table.reshape(-1, table.shape[-1])


def tiles_to_image(
    tiles: Num[Array, "t d p"], spec: BlendSpec, leading: tuple[int, ...]
) -> Num[Array, "*leading h w d"]:
    """[T, D, P] tiles of all images to [*leading, height, width, D]."""
    size, channels = spec.tile_size, tiles.shape[1]
    grid = tiles.reshape(-1, spec.tiles_y, spec.tiles_x, channels, size, size)
    image = grid.transpose(0, 1, 4, 2, 5, 3)
    image = image.reshape(*leading, spec.tiles_y * size, spec.tiles_x * size, channels)
    return image[..., : spec.height, : spec.width, :]
