"""The sky: colour at infinity, by world direction."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.scene.pytree import Array, pytree_dataclass

LOWEST_ELEVATION = -np.pi / 18
"""Elevation of the texture's last row: 10 degrees below the horizon, radians."""


@pytree_dataclass
class Sky:
    """A latitude-longitude texture in the world frame.

    Rows run from the zenith to `LOWEST_ELEVATION`, columns around the horizon from azimuth -pi to
    pi (azimuth 0 is x forward, pi/2 is y left).

    Attributes:
        texture: RGB in [0, 1].
    """

    texture: Float[Array, "*b h w 3"]

    def sample(self, directions: Float[Array, "*d 3"]) -> Float[jax.Array, "*d 3"]:
        """Colours seen along world directions of any length; bilinear, the seam wraps around."""
        texture = jnp.asarray(self.texture)
        height, width = texture.shape[-3:-1]
        x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
        azimuth = jnp.arctan2(y, jnp.where((x == 0) & (y == 0), 1.0, x))
        elevation = jnp.arctan2(z, jnp.sqrt(x * x + y * y + 1e-12))
        row = (np.pi / 2 - elevation) / (np.pi / 2 - LOWEST_ELEVATION) * (height - 1)
        row = jnp.clip(row, 0.0, height - 1.0)
        column = (azimuth + np.pi) / (2 * np.pi) * width
        top, left = jnp.floor(row).astype(jnp.int32), jnp.floor(column).astype(jnp.int32)
        a, b = (row - top)[..., None], (column - left)[..., None]
        bottom = jnp.minimum(top + 1, height - 1)
        left, right = left % width, (left + 1) % width
        upper = texture[top, left] * (1 - b) + texture[top, right] * b
        lower = texture[bottom, left] * (1 - b) + texture[bottom, right] * b
        return upper * (1 - a) + lower * a


def texel_directions(height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    """Unit world directions of a texture's texels."""
    elevation = np.linspace(np.pi / 2, LOWEST_ELEVATION, height)[:, None]
    azimuth = (np.arange(width) / width * 2 * np.pi - np.pi)[None, :]
    flat = np.cos(elevation)
    parts = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation) + 0 * azimuth]
    return np.stack(parts, axis=-1).astype(np.float32)
