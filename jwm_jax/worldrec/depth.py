"""Where depth comes from.

The network has a head that regresses the logarithm of depth and the probability of sky from image
features. Where a sensor or a file knows better, a `DepthSource` supplies a map whose positive
entries replace the head's; it is called on the host, once a picture.

Lidar is sparse: each of its returns is spread over the neighbouring pixels with weights
exp(-d^2 / 2 s^2) of the pixel distance d, and pixels farther than `reach` from any return stay
unknown. Of returns in one pixel the nearest wins.
"""

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.errors import DataError
from jwm_jax.nn.conv import Conv
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.transforms import transform_points
from jwm_jax.worldrec.config import WorldRecConfig

FAR_PRIOR = 30.0
"""Metres from which the depth head starts where the flat ground is farther or not seen."""


@runtime_checkable
class DepthSource(Protocol):
    """Gives a depth map of one picture: metres along z, 0 where nothing is known."""

    def __call__(self, clip: Clip, frame: int, view: int) -> Float[np.ndarray, "h w"]:
        """Depth of the picture at the size of the clip's images."""
        ...


def lidar_depth(clip: Clip, frame: int, view: int) -> Float[np.ndarray, "h w"]:
    """Depth of the pixels that lidar returns fall into, nearest return first; 0 elsewhere.

    Args:
        clip: With or without lidar.
        frame: Instant, whose sweep is taken.
        view: View.
    """
    camera = clip.camera(frame, view)
    image = np.zeros((camera.height, camera.width), np.float32)
    if clip.lidar is None or len(clip.lidar[frame]) == 0:
        return image
    points = np.asarray(clip.lidar[frame][:, :3], np.float64)
    uv, depth = camera.project(transform_points(clip.world_from_ego[frame], points))
    column, row = np.floor(uv).astype(int).T
    inside = (depth > 0.5) & (column >= 0) & (column < camera.width)
    inside &= (row >= 0) & (row < camera.height)
    order = np.flatnonzero(inside)
    order = order[np.argsort(-depth[order])]
    image[row[order], column[order]] = depth[order]
    return image


class LidarDepth:
    """Lidar spread over the pixels around its returns.

    Attributes:
        reach: Pixels to which a return spreads.
    """

    def __init__(self, reach: int = 3):
        self.reach = reach

    def __call__(self, clip: Clip, frame: int, view: int) -> Float[np.ndarray, "h w"]:
        """Densified depth of one picture.

        Raises:
            DataError: The clip has no lidar.
        """
        if clip.lidar is None:
            raise DataError(
                f"{clip.name}: depth from lidar was asked for, but the clip has no lidar; leave "
                "depth to the network."
            )
        return densify(lidar_depth(clip, frame, view), self.reach)


def measured_depth(clip: Clip) -> LidarDepth | None:
    """Lidar where the clip has it; None, which leaves depth to the network, where it has none."""
    return None if clip.lidar is None else LidarDepth()


def densify(depth: Float[np.ndarray, "h w"], reach: int) -> Float[np.ndarray, "h w"]:
    """Spread positive entries over their neighbourhood; entries that are positive stay.

    Depths are averaged as inverses, since those are linear across a plane's image. Only returns
    within 20 % of the nearest one around a pixel take part, so that edges stay sharp.
    """
    height, width = depth.shape
    known = depth > 0
    inverse = np.where(known, 1.0 / np.where(known, depth, 1.0), 0.0)
    padded = np.pad(inverse, reach)
    offsets = [(i, j) for i in range(2 * reach + 1) for j in range(2 * reach + 1)]
    shifted = [padded[i : i + height, j : j + width] for i, j in offsets]
    nearest = np.max(shifted, axis=0)
    total, weights = np.zeros(depth.shape), np.zeros(depth.shape)
    for (i, j), values in zip(offsets, shifted, strict=True):
        square = (i - reach) ** 2 + (j - reach) ** 2
        weight = np.exp(-square / (0.5 * reach**2)) * (values > nearest / 1.2) * (values > 0)
        total += weight * values
        weights += weight
    spread = np.where(total > 0, weights / np.where(total > 0, total, 1.0), 0.0)
    return np.where(known, depth, spread).astype(np.float32)


class GivenDepth:
    """The depth maps that came with the clip (`Clip.depth`)."""

    def __call__(self, clip: Clip, frame: int, view: int) -> Float[np.ndarray, "h w"]:
        """Depth of one picture.

        Raises:
            DataError: The clip has no depth maps.
        """
        if clip.depth is None:
            raise DataError(
                f"{clip.name}: given depth was asked for, but the clip has no depth maps; leave "
                "depth to the network."
            )
        return np.asarray(clip.depth[view][frame], np.float32)


class DepthHead(nn.Module):
    """Log depth and sky from the finest pyramid level.

    Attributes:
        config: Shape of the model.
        dtype: Type of the computation.
    """

    config: WorldRecConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[jax.Array, "p h w c"], prior: Float[jax.Array, "p h w"]
    ) -> tuple[Float[jax.Array, "p h w"], Float[jax.Array, "p h w"]]:
        """Regress depth around a prior.

        Args:
            features: Finest level of the pyramid.
            prior: Natural logarithm of the depth to start from, metres.

        Returns:
            Log depth, clipped to the config's range, and the logit of sky.
        """
        config = self.config
        x = nn.silu(Conv(config.pyramid, 3, dtype=self.dtype, name="hidden")(features))
        x = Conv(2, 3, dtype=self.dtype, name="out")(x).astype(jnp.float32)
        low, high = np.log(config.min_depth), np.log(config.max_depth)
        return jnp.clip(prior + x[..., 0], low, high), x[..., 1] - 2.0


def plane_log_depth(
    config: WorldRecConfig, rays: Float[jax.Array, "p h w 3"]
) -> Float[jax.Array, "p h w"]:
    """Log depth of a flat ground for rays that point down; `FAR_PRIOR` for the others.

    Args:
        config: Gives the cameras' usual height above the ground.
        rays: Directions in ego axes (z up) with depth 1 along the optical axis.
    """
    inverse = jnp.maximum(-rays[..., 2] / config.camera_height, 1.0 / FAR_PRIOR)
    return jnp.maximum(-jnp.log(inverse), np.log(config.min_depth))
