"""Pictures, depth and labels of a street from any pinhole camera, and its lidar.

A pixel's colour is the mean of four rays on a 2 x 2 grid and one through its centre; its depth,
class and instance are the centre ray's, exactly. The picture is traced in square tiles so that each
sees only the solids in its own cone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.data.streets.appearance import Look, shade
from jwm_jax.data.streets.geometry import FAR, Actors, Ellipsoids, Road, Solids, nearest_hits, place
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


class World(NamedTuple):
    """A street's arrays: all that a picture depends on besides the camera and the time."""

    road: Road
    actors: Actors
    solids: Solids
    ellipsoids: Ellipsoids
    look: Look


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


def _picture(world: World, K, street_from_camera, time, width: int, height: int) -> Picture:
    shapes = place(world.road, world.actors, world.solids, world.ellipsoids, time)
    rows, columns = -(-height // TILE), -(-width // TILE)
    rotation, origin = street_from_camera[:3, :3], street_from_camera[:3, 3]
    offsets = jnp.asarray(SAMPLES)
    local_v, local_u = jnp.meshgrid(jnp.arange(TILE), jnp.arange(TILE), indexing="ij")

    def tile(index):
        row, column = index // columns, index % columns
        u = (column * TILE + local_u + offsets[:, 0, None, None]).reshape(-1)
        v = (row * TILE + local_v + offsets[:, 1, None, None]).reshape(-1)
        x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
        directions = _rotate(rotation, (x, y, jnp.ones_like(x)))
        hits = nearest_hits(shapes, origin, directions)
        seen = shade(shapes, world.look, origin, directions, hits, 0.7 / K[0, 0])
        n = TILE * TILE
        rgb = seen.colors.reshape(len(SAMPLES), n, 3).mean(0)
        depth = jnp.where(hits.distance[:n] >= FAR, 0.0, hits.distance[:n])
        return Picture(
            jnp.round(rgb * 255.0).astype(jnp.uint8),
            depth,
            seen.classes[:n].astype(jnp.uint8),
            seen.instances[:n].astype(jnp.uint8),
        )

    tiles = jax.lax.map(tile, jnp.arange(rows * columns))

    def assemble(x):
        x = x.reshape(rows, columns, TILE, TILE, *x.shape[2:])
        x = jnp.swapaxes(x, 1, 2).reshape(rows * TILE, columns * TILE, *x.shape[4:])
        return x[:height, :width]

    return jax.tree.map(assemble, tiles)


@partial(jax.jit, static_argnames=("width", "height"))
def render_world(
    world: World,
    K: Float[Array, "n 3 3"],
    street_from_camera: Float[Array, "n 4 4"],
    times: Float[Array, "n"],
    *,
    width: int,
    height: int,
) -> Picture:
    """Pictures of n cameras, each at its own time, one after the other in one compiled loop.

    Args:
      world: from `Street.world`.
      K: camera matrices in pixels.
      street_from_camera: poses in the street frame (x along the road), metres.
      times: seconds since the clip's start.
      width: columns.
      height: rows.
    """
    return jax.lax.map(lambda c: _picture(world, *c, width, height), (K, street_from_camera, times))


@partial(jax.jit, static_argnames=("beams", "azimuths"))
def scan_world(
    world: World,
    street_from_lidar: Float[Array, "n 4 4"],
    times: Float[Array, "n"],
    *,
    beams: int,
    azimuths: int,
) -> tuple[Float[Array, "n p 3"], Float[Array, "n p"], Float[Array, "n p"]]:
    """Spins of a lidar, each taken at one instant.

    Returns:
      Unit directions in the lidar's frame, ranges in metres (0 where nothing returns) and
      intensities in [0, 1].
    """
    turn = jnp.arange(azimuths) * (2 * np.pi / azimuths) + np.pi / azimuths
    tilt = jnp.deg2rad(jnp.linspace(*LIDAR_ELEVATIONS, beams))
    turn, tilt = (a.reshape(-1) for a in jnp.meshgrid(turn, tilt, indexing="ij"))
    cosine = jnp.cos(tilt)
    unit = jnp.stack([cosine * jnp.cos(turn), cosine * jnp.sin(turn), jnp.sin(tilt)], -1)
    count = unit.shape[0]
    chunks = -(-count // LIDAR_CHUNK)
    padded = jnp.concatenate([unit, jnp.tile(unit[-1:], (chunks * LIDAR_CHUNK - count, 1))])
    padded = padded.reshape(chunks, LIDAR_CHUNK, 3)

    def scan(pose_and_time):
        pose, time = pose_and_time
        shapes = place(world.road, world.actors, world.solids, world.ellipsoids, time)
        origin = pose[:3, 3]

        def chunk(local):
            directions = _rotate(pose[:3, :3], [local[:, i] for i in range(3)])
            hits = nearest_hits(shapes, origin, directions)
            seen = shade(shapes, world.look, origin, directions, hits, jnp.asarray(0.003))
            distance = jnp.where(hits.distance > LIDAR_RANGE, 0.0, hits.distance)
            return distance, seen.reflectance

        distance, strength = jax.lax.map(chunk, padded)
        return distance.reshape(-1)[:count], strength.reshape(-1)[:count]

    distance, strength = jax.lax.map(scan, (street_from_lidar, times))
    return jnp.broadcast_to(unit, (*distance.shape, 3)), distance, strength
