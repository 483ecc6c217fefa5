"""Pictures, depth and labels of a street from any pinhole camera, and its lidar.

A pixel's colour is the mean of four rays on a 2 x 2 grid and one through its centre; its depth,
class and instance are the centre ray's, exactly. The picture is traced in square tiles so that each
sees only the solids in its own cone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.data.streets.appearance import Look, shade
from jwm_jax.data.streets.geometry import FAR, Actors, Ellipsoids, Road, Solids, nearest_hits, place
from jwm_jax.data.streets.textures import Textures
from jwm_jax.scene.pytree import Array

TILE = 32
"""Pixels along a tile's side."""

SAMPLES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
"""Rays of a pixel as (u, v) within it; the first is its centre."""

LIDAR_ELEVATIONS = (-22.0, 6.0)
"""Degrees of the lidar's lowest and highest beam."""

LIDAR_MOUNT = (0.9, 0.0, 1.9)
"""Where the lidar sits in the ego frame, metres."""

LIDAR_RANGE = 80.0
"""Metres."""

LIDAR_CHUNK = 512
"""Beams that are traced together."""

TILES_A_CALL, BEAM_CHUNKS_A_CALL = 16, 8
"""Tiles and chunks of one call of a compiled program."""


class World(NamedTuple):
    """A street's arrays: all that a picture depends on besides the camera and the time."""

    road: Road
    actors: Actors
    solids: Solids
    ellipsoids: Ellipsoids
    look: Look
    textures: Textures | None = None


class Picture(NamedTuple):
    """What a camera sees.

    Attributes:
        rgb: uint8 [*b, h, w, 3].
        depth: float32 [*b, h, w] metres along z through the pixel centre, 0 for sky.
        classes: uint8 [*b, h, w], index into `appearance.CLASSES`.
        instances: uint8 [*b, h, w], 0 for none, actor k is k + 1.
    """

    rgb: Array
    depth: Array
    classes: Array
    instances: Array


def _rotate(rotation, camera):
    """Camera-frame (x, y, 1) triples into the street frame."""
    return jnp.stack([sum(rotation[i, j] * camera[j] for j in range(3)) for i in range(3)], axis=-1)


@jax.jit
def _trace_tiles(world: World, K, street_from_camera, times, corners) -> Picture:
    """Tiles of pictures, one after the other: rgb [n, TILE, TILE, 3], the others [n, TILE, TILE].

    Every item has a camera, a time, and the column and row of its first pixel.
    """
    offsets = jnp.asarray(SAMPLES)
    local_v, local_u = jnp.meshgrid(jnp.arange(TILE), jnp.arange(TILE), indexing="ij")

    def tile(item):
        K, street_from_camera, time, corner = item
        shapes = place(world.road, world.actors, world.solids, world.ellipsoids, time)
        rotation, origin = street_from_camera[:3, :3], street_from_camera[:3, 3]
        u = (corner[0] + local_u + offsets[:, 0, None, None]).reshape(-1)
        v = (corner[1] + local_v + offsets[:, 1, None, None]).reshape(-1)
        x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
        directions = _rotate(rotation, (x, y, jnp.ones_like(x)))
        hits = nearest_hits(shapes, origin, directions)
        pixel = 0.7 / K[0, 0]
        seen = shade(shapes, world.look, origin, directions, hits, pixel, world.textures)
        n = TILE * TILE
        rgb = seen.colors.reshape(len(SAMPLES), n, 3).mean(0)
        picture = Picture(
            jnp.round(rgb * 255.0).astype(jnp.uint8),
            jnp.where(hits.distance[:n] >= FAR, 0.0, hits.distance[:n]),
            seen.classes[:n].astype(jnp.uint8),
            seen.instances[:n].astype(jnp.uint8),
        )
        return jax.tree.map(lambda x: x.reshape(TILE, TILE, *x.shape[1:]), picture)

    return jax.lax.map(tile, (K, street_from_camera, times, corners))


def _in_calls(function: Callable, items: tuple[np.ndarray, ...], count: int):
    """`function` over the leading axis of some arrays, `count` rows a call: host arrays.

    The last call repeats the last row, so that one compiled program serves any number of rows.
    """
    total = len(items[0])
    rows = np.minimum(np.arange(-(-total // count) * count), total - 1).reshape(-1, count)
    parts = [jax.device_get(function(*(item[row] for item in items))) for row in rows]
    return jax.tree.map(lambda *x: np.concatenate(x)[:total], *parts)


def render_world(
    world: World,
    K: Float[np.ndarray, "n 3 3"],
    street_from_camera: Float[np.ndarray, "n 4 4"],
    times: Float[np.ndarray, "n"],
    *,
    width: int,
    height: int,
) -> Picture:
    """Pictures of n cameras, each at its own time; one compiled program for all sizes.

    Args:
      world: from `Street.world`.
      K: camera matrices in pixels.
      street_from_camera: poses in the street frame (x along the road), metres.
      times: seconds since the clip's start.
      width: columns.
      height: rows.

    Returns:
      Host arrays.
    """
    count, rows, columns = len(times), -(-height // TILE), -(-width // TILE)
    camera, row, column = np.indices((count, rows, columns)).reshape(3, -1)
    corners = (np.stack([column, row], -1) * TILE).astype(np.float32)
    items = (K[camera], street_from_camera[camera], times[camera], corners)
    tiles = _in_calls(partial(_trace_tiles, world), items, TILES_A_CALL)

    def assemble(x):
        x = x.reshape(count, rows, columns, TILE, TILE, *x.shape[3:])
        x = np.swapaxes(x, 2, 3).reshape(count, rows * TILE, columns * TILE, *x.shape[5:])
        return np.ascontiguousarray(x[:, :height, :width])

    return jax.tree.map(assemble, tiles)


@jax.jit
def _trace_beams(world: World, street_from_lidar, times, directions):
    """Ranges and intensities [n, m] of m beams an item, whose directions are in the lidar frame."""

    def chunk(item):
        pose, time, local = item
        shapes = place(world.road, world.actors, world.solids, world.ellipsoids, time)
        origin = pose[:3, 3]
        directions = _rotate(pose[:3, :3], [local[:, i] for i in range(3)])
        hits = nearest_hits(shapes, origin, directions)
        seen = shade(shapes, world.look, origin, directions, hits, jnp.asarray(0.003))
        return jnp.where(hits.distance > LIDAR_RANGE, 0.0, hits.distance), seen.reflectance

    return jax.lax.map(chunk, (street_from_lidar, times, directions))


def scan_world(
    world: World,
    street_from_lidar: Float[np.ndarray, "n 4 4"],
    times: Float[np.ndarray, "n"],
    *,
    beams: int,
    azimuths: int,
) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, "n p"], Float[np.ndarray, "n p"]]:
    """Spins of a lidar, each taken at one instant.

    Returns:
      Host arrays: unit directions in the lidar's frame, ranges in metres (0 where nothing returns)
      and intensities in [0, 1].
    """
    turn = np.arange(azimuths) * (2 * np.pi / azimuths) + np.pi / azimuths
    tilt = np.deg2rad(np.linspace(*LIDAR_ELEVATIONS, beams))
    turn, tilt = (a.reshape(-1) for a in np.meshgrid(turn, tilt, indexing="ij"))
    cosine = np.cos(tilt)
    unit = np.stack([cosine * np.cos(turn), cosine * np.sin(turn), np.sin(tilt)], -1)
    unit = unit.astype(np.float32)
    count, chunks = len(unit), -(-len(unit) // LIDAR_CHUNK)
    padded = unit[np.minimum(np.arange(chunks * LIDAR_CHUNK), count - 1)]
    spin, part = np.indices((len(times), chunks)).reshape(2, -1)
    items = (street_from_lidar[spin], times[spin], padded.reshape(chunks, LIDAR_CHUNK, 3)[part])
    traced = _in_calls(partial(_trace_beams, world), items, BEAM_CHUNKS_A_CALL)
    distance, strength = (x.reshape(len(times), -1)[:, :count] for x in traced)
    return unit, distance, strength
