"""The shapes of a street and where rays meet them.

Everything is in the street frame: x along the road, y to the left, z up, metres. Three kinds of
surface:

- Ground. The road's centre line is y = c(x) with c(x) = amplitude sin(wavenumber x + phase), and a
  point's lateral offset is l = y - c(x): a shear, so it is exact both ways. The road is z = 0
  where |l| < half_width, everything beyond lies KERB_HEIGHT higher, and the kerb is the wall
  between them.
- Solids: upright frusta, |x| <= hx - kx (z + hz), |y| <= hy - ky (z + hz), |z| <= hz around a
  centre, turned by a yaw. kx = ky = 0 is a box; cars' cabins and roofs taper.
- Ellipsoids with upright axes: tree crowns and heads.

Solids and ellipsoids belong to the ground (owner 0) or to actor owner - 1 and then live in its
frame: origin on the road below its centre, x ahead. An actor moves at constant velocity in (x, l)
and follows the bend of the road.

A ray is origin + t direction; with a camera direction of unit depth, t is the depth along z. Rays
are traced in chunks with one origin: solids outside the chunk's cone are dropped first, so a large
street costs little more than a small one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jwm_jax.scene.pytree import Array

KERB_HEIGHT = 0.15
"""Height of the pavement above the road in metres."""

FAR = 1e9
"""Ray parameter of a ray that meets nothing."""

MAX_RANGE = 250.0
"""Rays stop here (metres along the ray); beyond is sky."""

GROUND = -1
"""Index of the ground among surfaces."""


class Road(NamedTuple):
    """The road's course and cross-section."""

    amplitude: Float[Array, ""]
    wavenumber: Float[Array, ""]
    phase: Float[Array, ""]
    half_width: Float[Array, ""]
    """Kerb to centre line in metres."""
    lanes: Float[Array, ""]
    """Lanes in each direction."""
    pavement: Float[Array, ""]
    """Width of the pavement in metres; behind it is grass."""
    crosswalk: Float[Array, ""]
    """x of the middle of the zebra crossing; far away where there is none."""
    radius: Float[Array, ""] | None = None
    """Of a closed course, metres; negative for one that turns right."""


class Actors(NamedTuple):
    """Vehicles and people: (x, l) at time zero, its velocity, heading relative to the road."""

    start: Float[Array, "a 2"]
    velocity: Float[Array, "a 2"]
    heading: Float[Array, "a"]


class Solids(NamedTuple):
    """Upright frusta in their owner's frame."""

    centers: Float[Array, "s 3"]
    halves: Float[Array, "s 3"]
    tapers: Float[Array, "s 2"]
    yaws: Float[Array, "s"]
    owners: Int[Array, "s"]
    materials: Int[Array, "s"]
    classes: Int[Array, "s"]
    colors: Float[Array, "s 3"]
    params: Float[Array, "s 4"]


class Ellipsoids(NamedTuple):
    """Ellipsoids with upright axes in their owner's frame."""

    centers: Float[Array, "e 3"]
    radii: Float[Array, "e 3"]
    owners: Int[Array, "e"]
    classes: Int[Array, "e"]
    colors: Float[Array, "e 3"]


class Shapes(NamedTuple):
    """All shapes at one instant, in the street frame (owners' motion applied)."""

    road: Road
    solids: Solids
    ellipsoids: Ellipsoids


class Hits(NamedTuple):
    """Where n rays meet the first surface."""

    distance: Float[Array, "n"]
    """Ray parameter; FAR for none."""
    index: Int[Array, "n"]
    """GROUND, a solid's index, or number of solids + an ellipsoid's index."""


def center_line(road: Road, x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """y of the road's centre line at x."""
    return road.amplitude * jnp.sin(road.wavenumber * x + road.phase)


def bearing(road: Road, x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Yaw of the centre line at x in radians."""
    slope = road.amplitude * road.wavenumber * jnp.cos(road.wavenumber * x + road.phase)
    return jnp.arctan(slope)


def road_point(road: Road, s: Float[Array, "*b"], lateral: Float[Array, "*b"]) -> tuple:
    """x, y and yaw of the road at a place along it and a lateral offset."""
    if road.radius is None:
        return s, center_line(road, s) + lateral, bearing(road, s)
    side, size = jnp.sign(road.radius), jnp.abs(road.radius)
    angle, r = s / size, size - side * lateral
    return r * jnp.sin(angle), side * (size - r * jnp.cos(angle)), side * angle


def road_place(road: Road, x: Float[Array, "*b"], y: Float[Array, "*b"]) -> tuple:
    """Place along the road and lateral offset of a point, the inverse of `road_point`."""
    if road.radius is None:
        return x, y - center_line(road, x)
    side, size = jnp.sign(road.radius), jnp.abs(road.radius)
    toward = size - side * y
    return size * jnp.arctan2(x, toward), side * (size - jnp.sqrt(x * x + toward * toward))


def actor_poses(
    road: Road, actors: Actors, time: Float[Array, ""]
) -> tuple[Float[Array, "a 2"], Float[Array, "a"]]:
    """Position (x, y) and yaw of every actor at a time in seconds since the start."""
    x, y, yaw = road_point(road, *jnp.moveaxis(actors.start + actors.velocity * time, -1, 0))
    return jnp.stack([x, y], -1), yaw + actors.heading


def place(
    road: Road,
    actors: Actors,
    solids: Solids,
    ellipsoids: Ellipsoids,
    time: Float[Array, ""],
) -> Shapes:
    """Shapes in the street frame at a time: those of actors are moved to where their actor is."""
    positions, yaws = actor_poses(road, actors, time)
    origin = jnp.concatenate([jnp.zeros((1, 2)), positions])
    yaw = jnp.concatenate([jnp.zeros(1), yaws])

    def moved(centers, owners):
        c, s = jnp.cos(yaw[owners]), jnp.sin(yaw[owners])
        x = c * centers[:, 0] - s * centers[:, 1] + origin[owners, 0]
        y = s * centers[:, 0] + c * centers[:, 1] + origin[owners, 1]
        return jnp.stack([x, y, centers[:, 2]], -1)

    return Shapes(
        road,
        solids._replace(
            centers=moved(solids.centers, solids.owners), yaws=solids.yaws + yaw[solids.owners]
        ),
        ellipsoids._replace(centers=moved(ellipsoids.centers, ellipsoids.owners)),
    )


def _safe(x):
    return jnp.where(jnp.abs(x) < 1e-7, jnp.where(x < 0, -1e-7, 1e-7), x)


def _frustum_span(solids: Solids, k, origin, direction):
    """Entry and exit of rays through frustum k; origin and direction are triples of arrays."""
    c, s = jnp.cos(solids.yaws[k]), jnp.sin(solids.yaws[k])
    rx, ry, oz = (origin[i] - solids.centers[k, i] for i in range(3))
    ox, oy = c * rx + s * ry, c * ry - s * rx
    dx, dy = c * direction[0] + s * direction[1], c * direction[1] - s * direction[0]
    dz = direction[2]
    hx, hy, hz = (solids.halves[k, i] for i in range(3))
    kx, ky = solids.tapers[k, 0], solids.tapers[k, 1]
    near, far = -FAR, FAR
    for offset, slope in (
        (hx - kx * hz - ox - kx * oz, dx + kx * dz),
        (hx - kx * hz + ox - kx * oz, kx * dz - dx),
        (hy - ky * hz - oy - ky * oz, dy + ky * dz),
        (hy - ky * hz + oy - ky * oz, ky * dz - dy),
        (hz - oz, dz),
        (hz + oz, -dz),
    ):
        slope = _safe(slope)
        t = offset / slope
        near = jnp.maximum(near, jnp.where(slope < 0, t, -FAR))
        far = jnp.minimum(far, jnp.where(slope < 0, FAR, t))
    return near, far


def _ellipsoid_span(ellipsoids: Ellipsoids, k, origin, direction):
    """Entry and exit of rays through ellipsoid k."""
    inverse = [1.0 / ellipsoids.radii[k, i] for i in range(3)]
    m = [(origin[i] - ellipsoids.centers[k, i]) * inverse[i] for i in range(3)]
    d = [direction[i] * inverse[i] for i in range(3)]
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = m[0] * d[0] + m[1] * d[1] + m[2] * d[2]
    disc = b * b - a * (m[0] * m[0] + m[1] * m[1] + m[2] * m[2] - 1.0)
    root = jnp.sqrt(jnp.maximum(disc, 0.0))
    hit = disc > 0
    return jnp.where(hit, (-b - root) / a, FAR), jnp.where(hit, (root - b) / a, -FAR)


def _ground_distance(road: Road, origin, direction):
    """Ray parameter at which a ray from above the pavement meets road, kerb or pavement."""
    down = direction[2] < -1e-5
    dz = jnp.where(down, direction[2], -1.0)
    high = jnp.maximum((KERB_HEIGHT - origin[2]) / dz, 0.0)
    low = -origin[2] / dz

    def beyond(t):
        x, y = origin[0] + t * direction[0], origin[1] + t * direction[1]
        return jnp.abs(road_place(road, x, y)[1]) - road.half_width

    at_high, at_low = beyond(high), beyond(low)
    kerb = high + (low - high) * at_high / jnp.minimum(at_high - at_low, -1e-6)
    if road.radius is not None:  # the offset is not linear along a ray: a few more steps
        start, at_start, stop, at_stop = high, at_high, low, at_low
        for _ in range(4):
            at_kerb = beyond(kerb)
            inside = at_kerb < 0
            start, at_start = (
                jnp.where(inside, a, b) for a, b in ((kerb, start), (at_kerb, at_start))
            )
            stop, at_stop = (jnp.where(inside, a, b) for a, b in ((stop, kerb), (at_stop, at_kerb)))
            kerb = start + (stop - start) * at_start / jnp.minimum(at_start - at_stop, -1e-6)
    t = jnp.where(at_high >= 0, high, jnp.where(at_low < 0, low, kerb))
    return jnp.where(down & (t > 0), t, FAR)


def _compact(keep: Bool[Array, "s"]) -> tuple[Int[Array, "s"], Int[Array, ""]]:
    """Indices with those to keep first, and how many they are."""
    return jnp.argsort(~keep, stable=True), jnp.sum(keep)


def _in_cone(centers, radii, origin, direction):
    """Which spheres a bundle of rays from one origin can touch."""
    unit = [q / jnp.sqrt(sum(d * d for d in direction)) for q in direction]
    axis = jnp.stack([jnp.mean(q) for q in unit])
    axis = axis / jnp.maximum(jnp.linalg.norm(axis), 1e-6)
    cosine = jnp.min(sum(u * a for u, a in zip(unit, axis, strict=True)))
    opening = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    to = centers - jnp.stack(origin)
    distance = jnp.maximum(jnp.linalg.norm(to, axis=-1), 1e-6)
    angle = jnp.arccos(jnp.clip(to @ axis / distance, -1.0, 1.0))
    reach = jnp.arcsin(jnp.clip(radii / distance, 0.0, 1.0))
    return (distance <= radii) | (angle <= opening + reach + 1e-3)


def nearest_hits(
    shapes: Shapes, origin: Float[Array, "3"], directions: Float[Array, "n 3"]
) -> Hits:
    """First surface along rays from one origin (street frame).

    Args:
      shapes: the street at one instant.
      origin: common origin in metres, above the pavement's height.
      directions: not necessarily of unit length; rays end at MAX_RANGE metres.
    """
    o = [origin[i] for i in range(3)]
    d = [directions[:, i] for i in range(3)]
    limit = MAX_RANGE / jnp.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    ground = _ground_distance(shapes.road, o, d)
    best = jnp.where(ground < limit, ground, FAR)
    index = jnp.full(best.shape, GROUND, jnp.int32)
    offset = 0
    for group, extent, span in (
        (shapes.solids, shapes.solids.halves, _frustum_span),
        (shapes.ellipsoids, shapes.ellipsoids.radii, _ellipsoid_span),
    ):
        radii = jnp.linalg.norm(extent, axis=-1)
        order, count = _compact(_in_cone(group.centers, radii, o, d))

        def body(i, carry, group=group, span=span, order=order, offset=offset):
            best, index = carry
            near, far = span(group, order[i], o, d)
            hit = (near < far) & (near > 0.05) & (near < best)
            hit &= near < limit
            return jnp.where(hit, near, best), jnp.where(hit, order[i] + offset, index)

        best, index = jax.lax.fori_loop(0, count, body, (best, index))
        offset += group.centers.shape[0]
    return Hits(best, index)


def in_shadow(
    shapes: Shapes,
    points: Float[Array, "n 3"],
    relevant: Bool[Array, "n"],
    sun: Float[Array, "3"],
) -> Bool[Array, "n"]:
    """Which points have a solid or ellipsoid between them and the sun.

    Args:
      shapes: the street at one instant.
      points: already lifted a little off their surface.
      relevant: points whose answer matters; the others may be wrong.
      sun: unit vector towards the sun.
    """
    side = jnp.stack([-sun[1], sun[0], 0.0 * sun[0]])
    side = side / jnp.maximum(jnp.linalg.norm(side), 1e-6)
    up = jnp.cross(sun, side)
    across = points @ jnp.stack([side, up], -1)
    lowest = jnp.min(jnp.where(relevant[:, None], across, FAR), 0)
    highest = jnp.max(jnp.where(relevant[:, None], across, -FAR), 0)
    p = [points[:, i] for i in range(3)]
    s = [sun[i] for i in range(3)]
    dark = jnp.zeros(points.shape[0], bool)
    for group, extent, span in (
        (shapes.solids, shapes.solids.halves, _frustum_span),
        (shapes.ellipsoids, shapes.ellipsoids.radii, _ellipsoid_span),
    ):
        radii = jnp.linalg.norm(extent, axis=-1)
        center = group.centers @ jnp.stack([side, up], -1)
        touches = (center + radii[:, None] > lowest) & (center - radii[:, None] < highest)
        order, count = _compact(touches.all(-1))

        def body(i, dark, group=group, span=span, order=order):
            near, far = span(group, order[i], p, s)
            return dark | (far > jnp.maximum(near, 0.0))

        dark = jax.lax.fori_loop(0, count, body, dark)
    return dark


NOWHERE = np.float32(-1e4)
"""Coordinate of padding entries."""
