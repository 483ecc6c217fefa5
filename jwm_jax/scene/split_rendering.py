"""Rendering scenes whose Gaussians lie on several devices, for training.

Of D devices each has the n Gaussians of its own part. T pictures are cut into bands of rows, as few
as make the number of bands a multiple of D, and every device draws its share of the bands:

    project     each device its own Gaussians into all T pictures
    exchange    all-to-all: of every picture a device has bands of, it gets all splats, in the order
                that one device would have them in (14 numbers a splat, once more for the gradient)
    bin, blend  each device the tiles of its bands
    gather      the bands of a picture, where it was cut, to those who drew a part of it

With T a multiple of D no picture is cut, and nothing but the exchange moves. Projection, binning
and blending are divided by D for every T. This is `jwm_kernels.SplatSharding` with bands.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jwm_jax.scene.cameras import Camera, Intrinsics
from jwm_jax.scene.scene import Scene
from jwm_jax.scene.transforms import invert_transform
from jwm_kernels import Projection, bin_tiles, blend, project
from jwm_kernels.gaussian_rasterizer.capacity import default_tile_size

HEADROOM = 1.5
"""Slots of a band, in even shares of its picture's: some bands show more Gaussians than others."""


class SplitRendering(NamedTuple):
    """The pictures that one device drew a part of, whole.

    Attributes:
        rgb: In [0, 1] (up to rounding).
        picture: Which of the T pictures each of them is.
        share: Part of the weight of each that is this device's: every picture is given to as many
            devices as drew it.
        overflow: Pairs of Gaussian and tile that this device left out for lack of room.
    """

    rgb: Float[jax.Array, "s u h w 3"]
    picture: Int[jax.Array, "u"]
    share: float
    overflow: Float[jax.Array, ""]


class _Table(NamedTuple):
    """Splats of one picture, the part of `Projection` that binning and blending read."""

    means2d: jax.Array
    depths: jax.Array
    covars2d: jax.Array
    dets: jax.Array
    opacities: jax.Array
    extents: jax.Array
    visible: jax.Array
    colors: jax.Array


def bands_for(pictures: int, devices: int) -> int:
    """Bands each of a number of pictures is cut into for a number of devices."""
    return devices // math.gcd(pictures, devices)


def render_split(
    scenes: Scene,
    K: Float[jax.Array, "s t 3 3"],
    poses: Float[jax.Array, "s t 4 4"],
    times: Float[jax.Array, "s t"],
    size: tuple[int, int],
    slots: int,
    axis: str | None = None,
) -> SplitRendering:
    """Draw T pictures of each of S scenes.

    Args:
        scenes: With a leading axis S; its Gaussians are this device's.
        K: Camera matrices, pixels.
        poses: world_from_camera.
        times: Seconds since the scenes' starts.
        size: Rows and columns of a picture.
        slots: Pairs of Gaussian and tile that a whole picture has room for.
        axis: Mesh axis of the surrounding `jax.shard_map` that the Gaussians are split over; None
            where one device has all of them and draws everything.

    Returns:
        What this device drew.

    Raises:
        ValueError: Pictures would be cut into bands that are not whole tiles of 4 rows.
    """
    (height, width), (s, t) = size, times.shape
    K, poses, times = (jnp.asarray(x) for x in (K, poses, times))
    devices = 1 if axis is None else jax.lax.axis_size(axis)
    bands = bands_for(t, devices)
    if height % (4 * bands):
        raise ValueError(
            f"{t} pictures of {height} rows over {devices} devices are cut into {bands} bands, "
            f"whose rows must be a multiple of 4; draw a multiple of {devices} pictures."
        )
    rows, units = height // bands, t * bands // devices
    of_scene = jax.vmap(_on_screen, in_axes=(None, 0, 0, 0, None))
    table = jax.vmap(of_scene, in_axes=(0, 0, 0, 0, None))(scenes, K, poses, times, size)
    first = 0
    if axis is not None:
        table = _exchange(table, bands, axis)
        first = jax.lax.axis_index(axis) * units
    unit = first + jnp.arange(units)
    room = slots if bands == 1 else HEADROOM * slots / bands
    room = -(-int(room) // 1024) * 1024

    def draw(index):
        scene, mine = index // units, index % units
        picture, band = unit[mine] // bands, unit[mine] % bands
        splats = _Table(*(column[scene, mine] for column in table))
        rgb, alpha, overflow = _draw_band(splats, band * rows, (rows, width), room)
        if scenes.sky is not None:
            shown = K[scene, picture].at[1, 2].add(-(band * rows).astype(K.dtype))
            camera = Camera(Intrinsics(K=shown, width=width, height=rows), poses[scene, picture])
            sky = jax.tree.map(lambda x: x[scene], scenes.sky)
            rgb = rgb + (1.0 - alpha)[..., None] * sky.sample(camera.rays()[1])
        return rgb, overflow

    rgb, overflow = jax.lax.map(draw, jnp.arange(s * units))
    rgb = rgb.reshape(s, units, rows, width, 3)
    if bands > 1:
        every = jax.lax.all_gather(rgb, axis, axis=1, tiled=True)
        rgb = every.reshape(s, t, height, width, 3)[:, unit // bands]
    return SplitRendering(rgb, unit // bands, 1.0 / bands, overflow.sum().astype(jnp.float32))


def _on_screen(scene: Scene, K, pose, time, size: tuple[int, int]) -> _Table:
    """This device's Gaussians in one picture."""
    g = scene.compose(time)
    height, width = size
    splats = project(
        g.means,
        g.quats,
        g.scales,
        g.opacities,
        invert_transform(pose)[None],
        K[None],
        width,
        height,
    )
    splats = jax.tree.map(lambda x: x[0], splats)
    return _Table(
        splats.means2d,
        splats.depths,
        splats.covars2d,
        splats.dets,
        splats.opacities,
        splats.extents,
        splats.visible,
        g.colors,
    )


def _exchange(table: _Table, bands: int, axis: str) -> _Table:
    """From [S, T, n, ...] of all pictures to [S, U, D n, ...] of the bands of this device."""
    columns = [x if x.ndim == 4 else x[..., None] for x in table]
    widths = [x.shape[-1] for x in columns]
    packed = jnp.concatenate([x.astype(jnp.float32) for x in columns], -1)
    packed = jnp.repeat(packed, bands, axis=1)
    packed = jax.lax.all_to_all(packed, axis, 1, 2, tiled=True)
    ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    parts = jnp.split(packed, ends, axis=-1)
    parts = [p if x.ndim == 4 else p[..., 0] for p, x in zip(parts, table, strict=True)]
    received = _Table(*parts)
    return received._replace(visible=received.visible > 0.5)


def _draw_band(splats: _Table, first, size: tuple[int, int], capacity: int):
    """Colour, alpha and overflow of the rows from `first` on of a picture."""
    rows, width = size
    y, reach = splats.means2d[:, 1] - first, splats.extents[:, 1]
    reaches = jax.lax.stop_gradient((y + reach > 0) & (y - reach < rows))
    projection = Projection(
        means2d=jnp.stack([splats.means2d[:, 0], y], -1),
        depths=splats.depths,
        covars2d=splats.covars2d,
        dets=splats.dets,
        opacities=splats.opacities,
        compensations=jnp.ones_like(splats.depths),
        extents=splats.extents,
        visible=splats.visible & reaches,
    )
    projection = jax.tree.map(lambda x: x[None], projection)
    tile = default_tile_size()
    lists = bin_tiles(projection, width, rows, tile_size=tile, capacity=capacity)
    rgb, alpha = blend(projection, splats.colors[None], lists, width, rows, tile_size=tile)
    return rgb[0], alpha[0, ..., 0], lists.overflow
