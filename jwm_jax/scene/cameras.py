"""Pinhole cameras and rigs.

OpenCV axes (x right, y down, z forward); pixel (0, 0) has its centre at (0.5, 0.5), so a pixel
(u, v) with depth z lies at K^-1 (u, v, 1) z in camera coordinates.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jwm_jax.scene.pytree import Array, pytree_dataclass, static_field
from jwm_jax.scene.transforms import array_module, invert_transform, transform_points


@pytree_dataclass
class Intrinsics:
    """What a lens and sensor do: focal lengths, principal point, size in pixels.

    Attributes:
        K: Camera matrix in pixels.
        width: Columns.
        height: Rows.
        distortion: Coefficients of `model`, or None where images are rectified.
        rolling_shutter: Seconds from the first row's exposure to the last row's, or None.
        model: "pinhole"; other lenses name their model here.
    """

    K: Float[Array, "*b 3 3"]
    width: int = static_field()
    height: int = static_field()
    distortion: Float[Array, "*b d"] | None = None
    rolling_shutter: float | None = static_field(default=None)
    model: str = static_field(default="pinhole")

    def resized(self, height: int, width: int) -> "Intrinsics":
        """The same lens with its image stretched to another size."""
        xp = array_module(self.K)
        scale = xp.asarray([[width / self.width], [height / self.height], [1.0]], self.K.dtype)
        return replace(self, K=self.K * scale, width=width, height=height)

    def cropped(self, top: int, left: int, height: int, width: int) -> "Intrinsics":
        """The lens of a window of the image, whose first pixel is (left, top)."""
        xp = array_module(self.K)
        shift = xp.asarray([[0.0, 0.0, left], [0.0, 0.0, top], [0.0, 0.0, 0.0]], self.K.dtype)
        return replace(self, K=self.K - shift, width=width, height=height)

    def at_poses(self, world_from_camera: Float[Array, "*b 4 4"]) -> "Camera":
        """Cameras with this lens, one a pose; their arrays are of the poses' kind and type."""
        xp = array_module(world_from_camera)
        leading = world_from_camera.shape[:-2]

        def repeated(values):
            values = xp.asarray(values, world_from_camera.dtype)
            return xp.broadcast_to(values, (*leading, *values.shape))

        distortion = None if self.distortion is None else repeated(self.distortion)
        lens = replace(self, K=repeated(self.K), distortion=distortion)
        return Camera(lens, world_from_camera)

    def pixel_rays(self) -> Float[Array, "*b h w 3"]:
        """Camera-frame directions through the pixel centres, with z = 1."""
        xp = array_module(self.K)
        u = xp.arange(self.width, dtype=self.K.dtype) + 0.5
        v = xp.arange(self.height, dtype=self.K.dtype) + 0.5
        K = self.K[..., None, None, :, :]
        x = (u[None, :] - K[..., 0, 2]) / K[..., 0, 0]
        y = (v[:, None] - K[..., 1, 2]) / K[..., 1, 1]
        x, y = xp.broadcast_arrays(x, y)
        return xp.stack([x, y, xp.ones_like(x)], axis=-1)


@pytree_dataclass
class Camera:
    """A lens at a pose; leading axes hold several of one size.

    Attributes:
        intrinsics: The lens.
        world_from_camera: Pose, metres.
    """

    intrinsics: Intrinsics
    world_from_camera: Float[Array, "*b 4 4"]

    @property
    def K(self) -> Float[Array, "*b 3 3"]:
        """Camera matrix in pixels."""
        return self.intrinsics.K

    @property
    def width(self) -> int:
        """Columns."""
        return self.intrinsics.width

    @property
    def height(self) -> int:
        """Rows."""
        return self.intrinsics.height

    def project(
        self, points: Float[Array, "*p 3"]
    ) -> tuple[Float[Array, "*o 2"], Float[Array, "*o"]]:
        """Pixel coordinates and depth (metres along z) of world points.

        Points at or behind the camera have depth <= 0; their pixel coordinates are finite and
        meaningless.
        """
        local = transform_points(invert_transform(self.world_from_camera), points)
        return project_local(self.K, local)

    def rays(self) -> tuple[Float[Array, "*b 3"], Float[Array, "*b h w 3"]]:
        """World-frame centre and directions through the pixel centres (depth 1 along z)."""
        xp = array_module(self.K, self.world_from_camera)
        rotation = self.world_from_camera[..., :3, :3]
        directions = self.intrinsics.pixel_rays()
        directions = xp.einsum("...ij,...hwj->...hwi", rotation, directions)
        return self.world_from_camera[..., :3, 3], directions

    def at(self, index: int) -> "Camera":
        """One of several cameras, or the cameras at one entry of the first leading axis."""
        return jax.tree.map(lambda x: x[index], self)

    def translated(self, right: float) -> "Camera":
        """The camera moved sideways along its own x axis by `right` metres."""
        xp = array_module(self.world_from_camera)
        step = right * self.world_from_camera[..., :3, 0]
        column = xp.concatenate([step, xp.zeros_like(step[..., :1])], axis=-1)
        moved = xp.concatenate(
            [self.world_from_camera[..., :3], (self.world_from_camera[..., 3] + column)[..., None]],
            axis=-1,
        )
        return Camera(self.intrinsics, moved)


def shift_half_pixel(K: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """K for pixel centres at (0.5, 0.5) from K for pixel centres at whole numbers; float64."""
    return np.asarray(K, np.float64) + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def project_local(
    K: Float[Array, "*b 3 3"], local: Float[Array, "*p 3"]
) -> tuple[Float[Array, "*p 2"], Float[Array, "*p"]]:
    """Pixel coordinates and depth of camera-frame points. K's leading axes come first."""
    xp = array_module(K, local)
    depth = local[..., 2]
    safe = xp.where(depth > 1e-6, depth, 1.0)
    extra = local.ndim - 1 - (K.ndim - 2)
    K = K.reshape(*K.shape[:-2], *(1,) * extra, 3, 3)
    u = K[..., 0, 0] * local[..., 0] / safe + K[..., 0, 2]
    v = K[..., 1, 1] * local[..., 1] / safe + K[..., 1, 2]
    return xp.stack([u, v], axis=-1), depth


def inside_image(
    uv: Float[Array, "*p 2"], depth: Float[Array, "*p"], height: int, width: int
) -> Bool[Array, "*p"]:
    """True where a projected point is in front of the camera and inside the image."""
    u, v = uv[..., 0], uv[..., 1]
    return (depth > 1e-3) & (u >= 0) & (u < width) & (v >= 0) & (v < height)


class Rig(NamedTuple):
    """Cameras fixed to a vehicle.

    Attributes:
        names: One a view.
        intrinsics: One a view.
        ego_from_camera: [V, 4, 4], metres.
    """

    names: tuple[str, ...]
    intrinsics: tuple[Intrinsics, ...]
    ego_from_camera: np.ndarray

    def cameras_at(self, world_from_ego: Float[Array, "*b 4 4"]) -> tuple[Camera, ...]:
        """One camera a view at the given ego pose(s); leading axes of the poses are kept."""
        xp = array_module(world_from_ego)
        poses = [world_from_ego @ xp.asarray(e, world_from_ego.dtype) for e in self.ego_from_camera]
        return tuple(i.at_poses(p) for i, p in zip(self.intrinsics, poses, strict=True))

    def resized(self, height: int, width: int) -> "Rig":
        """The rig with every image stretched to one size."""
        return self._replace(intrinsics=tuple(i.resized(height, width) for i in self.intrinsics))


def stack_cameras(cameras: list[Camera] | tuple[Camera, ...]) -> Camera:
    """One camera with a leading axis from several of one size and model.

    Raises:
        ValueError: Sizes differ.
    """
    sizes = {(c.height, c.width) for c in cameras}
    if len(sizes) != 1:
        raise ValueError(
            f"stack_cameras: expected cameras of one size, got (height, width) {sorted(sizes)}; "
            "resize them first."
        )
    xp = array_module(*(c.K for c in cameras), *(c.world_from_camera for c in cameras))
    first = cameras[0].intrinsics
    return Camera(
        Intrinsics(
            K=xp.stack([c.K for c in cameras]),
            width=first.width,
            height=first.height,
            distortion=None,
            rolling_shutter=first.rolling_shutter,
            model=first.model,
        ),
        xp.stack([c.world_from_camera for c in cameras]),
    )
