"""One scene over several devices: `rasterization(..., sharding=CameraSharding(mesh, "data"))`.

    CameraSharding   every device has all Gaussians and renders its cameras
    SplatSharding    every device projects its Gaussians into all cameras, hands each of the others
                     what that one's cameras see of them, and renders its cameras

What travels in the second are projected splats with their colours, 12 + D numbers for each camera
and Gaussian instead of all parameters, once (all-to-all) and once more for the gradient. The order
of the Gaussians stays, so that both give the image and gradient of a single device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.projection.camera_types import Distortion


@dataclasses.dataclass(frozen=True)
class CameraSharding:
    """Cameras are dealt out over a mesh axis; their number is a multiple of its size."""

    mesh: Mesh
    axis: str

    def __post_init__(self) -> None:
        validation.check_choice("sharding.axis", self.axis, self.mesh.axis_names)

    @property
    def devices(self) -> int:
        """Size of the mesh axis."""
        return self.mesh.shape[self.axis]

    def check(self, gaussians: int, cameras: int) -> None:
        """Raises ValueError unless a scene of this size can be dealt out."""
        validation.check_multiple("viewmats: cameras", cameras, self.devices, self.axis)


@dataclasses.dataclass(frozen=True)
class SplatSharding(CameraSharding):
    """Gaussians too are dealt out over the mesh axis; their number is a multiple of its size."""

    def check(self, gaussians: int, cameras: int) -> None:
        """Raises ValueError unless a scene of this size can be dealt out."""
        super().check(gaussians, cameras)
        validation.check_multiple("means: Gaussians", gaussians, self.devices, self.axis)


def run_sharded(
    sharding: CameraSharding,
    batch: int,
    to_screen: Callable,
    to_images: Callable,
    splats: Any,
    colors: Any,
    cameras: Any,
    extras: Any,
) -> tuple:
    """Runs the two stages of `rasterization` on every device of a mesh axis.

    Args:
      sharding: how.
      batch: number of batch axes.
      to_screen: function of splats, colors and cameras that gives arrays [*batch, C, N, ...].
      to_images: function of these and extras that gives arrays [*batch, C, ...] and the overflow.
      splats: arrays [*batch, N, ...].
      colors: array [*batch, C or 1, N, ...] or None.
      cameras: arrays [*batch, C, ...].
      extras: arrays [*batch, C, ...].

    Returns:
      what `to_images` gives for all cameras, overflows summed.
    """
    axis, over_splats = sharding.axis, isinstance(sharding, SplatSharding)
    everywhere, first = PartitionSpec(), PartitionSpec(*[None] * batch, axis)
    second = PartitionSpec(*[None] * (batch + 1), axis)

    def on_one_device(splats, colors, cameras, extras):
        screen = to_screen(splats, colors, cameras)
        if over_splats:
            screen = jax.tree.map(
                lambda part: lax.all_to_all(part, axis, batch, batch + 1, tiled=True), screen
            )
        images, overflow = to_images(screen, extras)
        return images, lax.psum(overflow, axis)

    of_each_camera = colors is not None and colors.shape[batch] > 1
    if over_splats:
        specs = (first, second, everywhere, first)
    else:
        specs = (everywhere, first if of_each_camera else everywhere, first, first)
    arguments = splats, colors, cameras, extras
    mesh = sharding.mesh
    if mesh.axis_types[mesh.axis_names.index(axis)] is AxisType.Explicit:
        arguments = jax.reshard(arguments, tuple(NamedSharding(mesh, spec) for spec in specs))
    mapped = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=(first, everywhere))
    return mapped(*arguments)


def lens_of_each_camera(distortion: Distortion | None, cameras: tuple[int, ...]):
    """Gives each of the cameras [*batch, C] the numbers of an f-theta lens that they share."""
    if distortion is None or distortion.ftheta_coeffs is None:
        return distortion
    shapes = {name: (*cameras, *tail) for name, tail in validation.FTHETA_SHAPES.items()}
    lens = dataclasses.replace(
        distortion.ftheta_coeffs,
        **{
            name: jnp.broadcast_to(jnp.asarray(getattr(distortion.ftheta_coeffs, name)), shape)
            for name, shape in shapes.items()
        },
    )
    return distortion._replace(ftheta_coeffs=lens)
