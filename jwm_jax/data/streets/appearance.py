"""What colour a street's surfaces have under its light.

Markings, windows and tiles are periodic steps, filtered analytically: a pixel takes the mean of the
step over its footprint on the surface, the difference of the step's integral at the footprint's
ends, so nothing flickers with distance. A footprint is the pixel's width at the hit, stretched by
the angle of incidence along the direction of view.

Light is ambient + sun max(0, n . s) (1 - shadow), then haze 1 - exp(-(distance / haze)^2) towards
the horizon's colour.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jwm_jax.data.streets.geometry import (
    FAR,
    GROUND,
    KERB_HEIGHT,
    Hits,
    Road,
    Shapes,
    in_shadow,
    road_place,
)
from jwm_jax.data.streets.textures import (
    GRASS_TEXTURE,
    PAVEMENT_TEXTURE,
    ROAD_TEXTURE,
    SKY_TEXTURE,
    Textures,
    sample,
)
from jwm_jax.scene.pytree import Array

CLASSES = (
    "sky",
    "road",
    "marking",
    "pavement",
    "grass",
    "building",
    "vegetation",
    "pole",
    "vehicle",
    "pedestrian",
)
"""Segmentation classes; images of class ids index into this."""

SKY, ROAD, MARKING, PAVEMENT, GRASS, BUILDING, VEGETATION, POLE, VEHICLE, PEDESTRIAN = range(10)

PLAIN, FACADE, ROOF, BODY, CABIN, UNDERBODY, GLOW, SIGN = range(8)
"""Materials of solids. Their params: FACADE (window pitch across, up, window share across, up);
no share, no windows: a wall in a photograph has its own;
BODY and UNDERBODY (wheel radius, wheel positions as a share of the half length, 0, 0);
GLOW (day strength, night strength, 0, 0)."""

SHADOW_RANGE = 120.0
"""Metres along z beyond which nothing is shadowed."""

LANE_WIDTH = 3.5
"""Metres."""

CROSSWALK_LENGTH = 3.0
"""Extent of a zebra crossing along the road in metres."""

DASH_PERIOD, DASH_LENGTH = 6.0, 3.0
"""Lane dividers' dashes in metres."""


class Look(NamedTuple):
    """Light, weather and the ground's colours."""

    sun: Float[Array, "3"]
    """Unit vector towards the sun in the street frame."""
    sun_color: Float[Array, "3"]
    ambient: Float[Array, "3"]
    zenith: Float[Array, "3"]
    horizon: Float[Array, "3"]
    haze: Float[Array, ""]
    """Metres at which 63 % of the light is the horizon's."""
    clouds: Float[Array, ""]
    """0 for none to 1 for a broken sky."""
    wet: Float[Array, ""]
    """0 for a dry road to 1 for one that mirrors the sky."""
    night: Float[Array, ""]
    """0 by day to 1 when lamps and windows are lit."""
    texture: Float[Array, ""]
    """Strength of the surfaces' fine variation; 0 for flat colours."""
    seed: Float[Array, ""]
    asphalt: Float[Array, "3"]
    pavement: Float[Array, "3"]
    grass: Float[Array, "3"]
    glass: Float[Array, "3"]
    """Windows by day."""


class Shading(NamedTuple):
    """What n rays see."""

    colors: Float[Array, "n 3"]
    classes: Int[Array, "n"]
    instances: Int[Array, "n"]
    reflectance: Float[Array, "n"]
    """What a lidar gets back: mean albedo times the cosine of incidence."""


def _hash(i, j, k):
    """Pseudo-random numbers in [0, 1] from integer-valued coordinates."""
    a = i.astype(jnp.int32).astype(jnp.uint32) * np.uint32(374761393)
    a += j.astype(jnp.int32).astype(jnp.uint32) * np.uint32(668265263)
    a += jnp.asarray(k, jnp.float32).astype(jnp.int32).astype(jnp.uint32) * np.uint32(2246822519)
    a = (a ^ (a >> 13)) * np.uint32(1274126177)
    return ((a ^ (a >> 16)) & 0xFFFF).astype(jnp.float32) / 65535.0


def _noise(x, y, k):
    """Value noise with unit cells, in [-0.5, 0.5]."""
    i, j = jnp.floor(x), jnp.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    low = _hash(i, j, k) * (1 - u) + _hash(i + 1, j, k) * u
    high = _hash(i, j + 1, k) * (1 - u) + _hash(i + 1, j + 1, k) * u
    return low * (1 - v) + high * v - 0.5


def band(x, center, half_width, footprint):
    """Share of a footprint around x that lies within half_width of a line at center."""
    top = jnp.minimum(x + footprint / 2, center + half_width)
    bottom = jnp.maximum(x - footprint / 2, center - half_width)
    return jnp.maximum(0.0, top - bottom) / footprint


def stripes(x, period, width, footprint):
    """Share of a footprint around x that lies in [0, width) of a pattern repeating every period."""

    def integral(x):
        n = jnp.floor(x / period)
        return n * width + jnp.minimum(x - n * period, width)

    return (integral(x + footprint / 2) - integral(x - footprint / 2)) / footprint


def _disc(u, v, radius, footprint):
    """Coverage of a disc around the origin."""
    edge = radius - jnp.sqrt(u * u + v * v)
    return jnp.clip(edge / footprint + 0.5, 0.0, 1.0)


def _mix(a, b, weight):
    return a + (b - a) * weight[..., None]


def _if_any(needed, compute):
    """compute(), or zeros where no ray of the chunk needs it."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
    return jax.lax.cond(needed.any(), compute, lambda: zeros)


def markings(road: Road, x, lateral, footprint_x, footprint_y):
    """Share of paint in a footprint on the road: dividers, edge lines, crossing."""
    edge = LANE_WIDTH * road.lanes
    dashes = stripes(x, DASH_PERIOD, DASH_LENGTH, footprint_x)
    paint = band(lateral, 0.0, 0.09, footprint_y) * dashes
    inner = band(jnp.abs(lateral), LANE_WIDTH, 0.08, footprint_y) * dashes
    paint += jnp.where(road.lanes > 1.5, inner, 0.0)
    paint += band(jnp.abs(lateral), edge, 0.08, footprint_y)
    across = band(x, road.crosswalk, CROSSWALK_LENGTH / 2, footprint_x)
    zebra = stripes(lateral + 50.0, 1.0, 0.5, footprint_y)
    zebra *= band(lateral, 0.0, road.half_width - 0.3, footprint_y)
    return jnp.clip(paint * (1 - across) + zebra * across, 0.0, 1.0)


def _turned(vector, angle):
    """Components of a vector in a frame that is turned to the left by an angle; None for none."""
    if angle is None:
        return vector
    c, s = jnp.cos(angle), jnp.sin(angle)
    return c * vector[0] + s * vector[1], c * vector[1] - s * vector[0], vector[2]


def _ground_footprint(footprint, direction):
    """Extent of a ray's footprint on level ground along x and y."""
    flat = jnp.sqrt(direction[0] ** 2 + direction[1] ** 2) + 1e-6
    length = jnp.sqrt(flat**2 + direction[2] ** 2)
    major = footprint * length / jnp.maximum(jnp.abs(direction[2]), 0.004 * length)
    cosine, sine = direction[0] / flat, direction[1] / flat
    fx = jnp.clip(jnp.hypot(major * cosine, footprint * sine), 1e-3, 40.0)
    fy = jnp.clip(jnp.hypot(major * sine, footprint * cosine), 1e-3, 40.0)
    return fx, fy


def _ground(shapes: Shapes, look: Look, point, footprint, direction, photo):
    """Albedo and class of the ground; ``photo`` is the texture's factor, or None."""
    x, y, z = point
    road = shapes.road
    along, lateral = road_place(road, x, y)
    turn = None if road.radius is None else along / road.radius
    fx, fy = _ground_footprint(footprint, _turned(direction, turn))
    fine = look.texture * jnp.exp(-0.8 * jnp.maximum(fx, fy))
    coarse = look.texture * _noise(x * 0.35, y * 0.5, look.seed)
    grain = fine * _noise(x * 3.0, y * 3.0, look.seed + 1)
    asphalt = look.asphalt * (1 + 0.16 * coarse + 0.18 * grain)[:, None]
    asphalt = asphalt if photo is None else asphalt * photo
    paint = markings(road, along, lateral, fx, fy)
    asphalt = _mix(asphalt, jnp.array([0.86, 0.86, 0.84]), paint)
    outside = jnp.abs(lateral) - road.half_width
    tiles = stripes(along, 1.2, 1.12, fx) * stripes(lateral + 60.0, 1.2, 1.12, fy)
    tone = 1 + look.texture * (0.16 * (tiles - 0.87) + 0.10 * coarse)
    pavement = look.pavement * tone[:, None]
    curb = jnp.where(outside > -0.02, band(outside, 0.1, 0.12, jnp.maximum(fy, 0.02)), 0.0)
    pavement = _mix(pavement, jnp.array([0.66, 0.66, 0.65]), curb)
    grass = look.grass * (1 + 0.5 * coarse + 0.3 * grain)[:, None]
    behind = jnp.clip((outside - road.pavement) / fy + 0.5, 0.0, 1.0)
    beyond = _mix(pavement, grass, behind)
    beyond = beyond if photo is None else beyond * photo
    low = z < KERB_HEIGHT - 0.005
    wall = low & ((z > 0.01) | (outside >= -1e-3))
    off_road = wall | ~low
    albedo = jnp.where(off_road[:, None], beyond, asphalt)
    albedo = jnp.where(wall[:, None], 0.58, albedo)
    label = jnp.where(paint > 0.5, MARKING, ROAD)
    label = jnp.where(off_road, jnp.where(behind > 0.5, GRASS, PAVEMENT), label)
    across = jnp.where(wall, -jnp.sign(lateral), 0.0)
    return albedo, label, across, jnp.where(off_road, 0.0, 1.0 - 0.7 * paint)


def _facade(look, color, params, half, u, v, width, footprint_u, footprint_v, key):
    """Windows in frames, a door, a plinth and a cornice on a wall of some width."""
    height = 2 * half[:, 2]
    columns = jnp.maximum(jnp.round(width / params[:, 0]), 1.0)
    pitch_u, pitch_v = width / columns, jnp.maximum(params[:, 1], 0.5)
    share_u, share_v = params[:, 2], params[:, 3]

    def panes(grow):
        wide, tall = pitch_u * share_u + grow, pitch_v * share_v + grow
        across = stripes(u - (pitch_u - wide) / 2, pitch_u, wide, footprint_u)
        up = stripes(v - 0.95 - (pitch_v - tall) / 2, pitch_v, tall, footprint_v)
        inside = (v > 0.95) & (v < 0.95 + pitch_v * jnp.floor((height - 1.3) / pitch_v))
        return across * up * inside

    middle = width * (jnp.floor(columns / 2) + 0.5) / columns
    entrance = (jnp.abs(u - middle) < pitch_u / 2) & (v < 0.95 + pitch_v)
    glass, frame = (panes(grow) * ~entrance * (share_u > 0) for grow in (0.0, 0.24))
    fine = jnp.exp(-0.5 * footprint_u)
    pane = _hash(jnp.floor(u / pitch_u) + 31 * key, jnp.floor((v - 0.95) / pitch_v), look.seed + 3)
    vary = look.texture * (pane - 0.5) * fine
    wall = (
        color
        * (1 + 0.08 * look.texture * _noise(u * 0.6, v * 0.6, look.seed + key) * fine)[:, None]
    )
    wall *= jnp.where(v < 0.7, 0.8, 1.0)[:, None]
    wall = _mix(wall, jnp.minimum(color * 1.25, 0.9), band(v, height - 0.2, 0.2, footprint_v))
    dark = look.glass * (1 + 0.8 * vary)[:, None]
    result = _mix(_mix(wall, jnp.minimum(color * 1.2, 0.88), frame), dark, glass)
    door = band(u, middle, 0.6, footprint_u) * band(v, 1.05, 1.05, footprint_v)
    result = _mix(result, jnp.array([0.26, 0.17, 0.12]) + 0.1 * color, door)
    lit = glass * (1 - door) * (pane > 0.55) * look.night
    return result, lit


def _vehicle_body(color, params, local, half, face, axle, night, footprint):
    """Wheels on the flanks, lamps and a number plate on the ends; also the light they emit."""
    wheel_radius, wheel_share = params[:, 0], params[:, 1]
    rise = local[2] + half[:, 2]
    height = jnp.where(axle, rise, rise + 0.2)
    along = jnp.abs(local[0]) - wheel_share * half[:, 0]
    tyre = _disc(along, height - wheel_radius, wheel_radius, footprint) * (face == 1)
    rim = _disc(along, height - wheel_radius, 0.55 * wheel_radius, footprint) * (face == 1)
    color = jnp.where(axle[:, None], 0.06, color)
    sill = (face < 2) & ~axle & (rise < 0.12)
    color = jnp.where(sill[:, None], color * 0.6, color)
    color = _mix(_mix(color, jnp.full(3, 0.05), tyre), jnp.full(3, 0.42), rim)
    across = jnp.abs(local[1]) / half[:, 1]
    level = rise / (2 * half[:, 2])
    lamp = band(across, 0.78, 0.17, footprint / half[:, 1])
    lamp *= band(level, 0.66, 0.14, footprint / (2 * half[:, 2])) * (face == 0) * ~axle
    plate = band(across, 0.0, 0.27, footprint / half[:, 1])
    plate *= band(level, 0.3, 0.1, footprint / (2 * half[:, 2])) * (face == 0) * ~axle
    ahead = (local[0] > 0)[:, None]
    shine = jnp.where(ahead, jnp.array([0.98, 0.96, 0.86]), jnp.array([0.80, 0.06, 0.05]))
    color = _mix(color, jnp.full(3, 0.85), plate)
    return _mix(color, shine, lamp), (0.25 + 0.75 * night) * lamp


def _cabin(color, local, half, face, footprint):
    """Window band of a car's cabin with pillars; the roof keeps the paint."""
    level = (local[2] + half[:, 2]) / (2 * half[:, 2])
    glass = band(level, 0.47, 0.38, footprint / (2 * half[:, 2])) * (face < 2)
    pillar = band(local[0], -0.05 * half[:, 0], 0.06, footprint) * (face == 1)
    edge = jnp.where(face == 1, jnp.abs(local[0]) / half[:, 0], jnp.abs(local[1]) / half[:, 1])
    glass *= (1 - pillar) * (edge < 0.93)
    tint = jnp.array([0.13, 0.16, 0.20]) + 0.08 * level[:, None]
    return _mix(color, tint, glass)


def _sky(look: Look, direction, length):
    """Colour of the sky: a gradient, clouds, and a glow around the sun."""
    elevation = jnp.clip(direction[2] / length, 0.0, 1.0)
    k = jnp.sqrt(jnp.clip(elevation * 1.8, 0.0, 1.0))
    color = look.horizon + (look.zenith - look.horizon) * k[:, None]
    height = jnp.maximum(direction[2] / length, 0.03)
    u, v = direction[0] / length / height * 0.8, direction[1] / length / height * 0.8
    cover = _noise(u, v, look.seed + 5) + 0.4 * _noise(2 * u, 2 * v, look.seed + 6)
    cover = jnp.clip(2.2 * cover + 0.3, 0.0, 1.0) * jnp.clip(elevation * 6.0 - 0.3, 0.0, 1.0)
    color = _mix(color, jnp.minimum(look.horizon * 1.12, 1.0), 0.75 * look.clouds * cover)
    toward = sum(direction[i] * look.sun[i] for i in range(3)) / length
    halo = jnp.clip(toward, 0.0, 1.0) ** 24
    return color + (0.35 * halo)[:, None] * look.sun_color * (1 - k[:, None] * 0.3)


def _turns(unit):
    """Azimuth and elevation of directions, radians."""
    return jnp.arctan2(unit[1], unit[0]), jnp.arcsin(jnp.clip(unit[2], -1.0, 1.0))


def _tone(textures, road, kinds, indices, on_solid, on_round, point, direction, footprint, pixel):
    """Factors of the textures where rays end: [n, 3]."""
    (is_ground, is_round, is_sky), (k, e) = kinds, indices
    along_road, lateral = road_place(road, point[0], point[1])
    turn = None if road.radius is None else along_road / road.radius
    fx, fy = _ground_footprint(footprint, _turned(direction, turn))
    outside = jnp.abs(lateral) - road.half_width
    ground = jnp.where(outside > road.pavement, GRASS_TEXTURE, PAVEMENT_TEXTURE)
    ground = jnp.where(outside < 0, ROAD_TEXTURE, ground)
    face, local, half = on_solid
    side = jnp.where(face == 0, jnp.sign(local[0]), -jnp.sign(local[1]))  # seen from outside
    along = jnp.where(face == 0, local[1], local[0]) * jnp.where(face == 2, 1.0, side)
    wide = jnp.where(face == 0, half[:, 1], half[:, 0])
    tall = jnp.where(face == 2, half[:, 1], half[:, 2])
    up = jnp.where(face == 2, local[1], local[2])
    normal, radii = on_round
    azimuth, elevation = _turns(normal)
    length = jnp.sqrt(sum(q * q for q in direction))
    sky_azimuth, sky_elevation = _turns([q / length for q in direction])

    def where(ground, round, sky, solid):
        solid = jnp.where(is_sky, sky, solid)
        return jnp.where(is_ground, ground, jnp.where(is_round, round, solid))

    index = where(ground, textures.ellipsoids[e], SKY_TEXTURE, textures.solids[k])
    span = textures.spans[jnp.maximum(index, 0)]
    whole = span <= 0.0  # a whole face
    sides = [jnp.where(whole, 2 * extent, span) for extent in (wide, tall)]
    u = where(point[0], azimuth * radii[:, 0], sky_azimuth, along + wide) / sides[0]
    v = where(point[1], elevation * radii[:, 2], sky_elevation, up + tall) / sides[1]
    extent = where(jnp.maximum(fx, fy), footprint, pixel, footprint)
    return sample(textures, index, u, v, extent / jnp.sqrt(sides[0] * sides[1]))


def shade(
    shapes: Shapes,
    look: Look,
    origin: Float[Array, "3"],
    directions: Float[Array, "n 3"],
    hits: Hits,
    pixel: Float[Array, ""],
    textures: Textures | None = None,
) -> Shading:
    """Colours in [0, 1], class ids, instance ids (0 none, actor k is k + 1) of traced rays.

    Args:
      shapes: the street at the rays' instant.
      look: light and weather.
      origin: common origin in the street frame, metres.
      directions: ray directions with the scale that `hits.distance` counts in.
      hits: from `nearest_hits`.
      pixel: width of a ray's footprint at distance 1 (1 / focal length for a camera).
      textures: photographs on the surfaces.
    """
    solids, ellipsoids = shapes.solids, shapes.ellipsoids
    count = solids.centers.shape[0]
    sky = hits.distance >= FAR
    t = jnp.where(sky, 1.0, hits.distance)
    d = [directions[:, i] for i in range(3)]
    length = jnp.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
    point = [origin[i] + t * d[i] for i in range(3)]
    footprint = t * pixel

    is_ground = hits.index == GROUND
    is_solid = (hits.index >= 0) & (hits.index < count)
    is_round = hits.index >= count
    k = jnp.clip(hits.index, 0, count - 1)
    e = jnp.clip(hits.index - count, 0, ellipsoids.centers.shape[0] - 1)

    center, half, taper = solids.centers[k], solids.halves[k], solids.tapers[k]
    cosine, sine = jnp.cos(solids.yaws)[k], jnp.sin(solids.yaws)[k]
    rx, ry, lz = (point[i] - center[:, i] for i in range(3))
    lx, ly = cosine * rx + sine * ry, cosine * ry - sine * rx
    gaps = jnp.stack(
        [
            jnp.abs(lx) - half[:, 0] + taper[:, 0] * (lz + half[:, 2]),
            jnp.abs(ly) - half[:, 1] + taper[:, 1] * (lz + half[:, 2]),
            jnp.abs(lz) - half[:, 2],
        ]
    )
    face = jnp.argmax(gaps, axis=0)
    ax, ay = jnp.where(face == 0, jnp.sign(lx), 0.0), jnp.where(face == 1, jnp.sign(ly), 0.0)
    az = jnp.where(face == 0, taper[:, 0], jnp.where(face == 1, taper[:, 1], jnp.sign(lz)))
    norm = jnp.sqrt(ax * ax + ay * ay + az * az) + 1e-6
    solid_normal = [(cosine * ax - sine * ay) / norm, (sine * ax + cosine * ay) / norm, az / norm]

    round_center, radii = ellipsoids.centers[e], ellipsoids.radii[e]
    bulge = [(point[i] - round_center[:, i]) / radii[:, i] ** 2 for i in range(3)]
    bulge_norm = jnp.sqrt(bulge[0] ** 2 + bulge[1] ** 2 + bulge[2] ** 2) + 1e-6
    tone = None
    if textures is not None:
        tone = _tone(
            textures, shapes.road, (is_ground, is_round, sky), (k, e), (face, (lx, ly, lz), half),
            ([b / bulge_norm for b in bulge], radii), point, d, footprint, pixel,
        )  # fmt: skip
    ground, ground_class, across, gloss = _if_any(
        is_ground, lambda: _ground(shapes, look, point, footprint, d, tone)
    )
    ground_normal = [0.0 * point[0], across, 1.0 - jnp.abs(across)]
    if shapes.road.radius is not None:
        turn = road_place(shapes.road, point[0], point[1])[0] / shapes.road.radius
        ground_normal = list(_turned(ground_normal, -turn))
    normal = [
        jnp.where(is_ground, g, jnp.where(is_round, b / bulge_norm, s))
        for g, b, s in zip(ground_normal, bulge, solid_normal, strict=True)
    ]

    incidence = jnp.abs(sum(n * q for n, q in zip(normal, d, strict=True))) / length
    stretched = jnp.clip(footprint / jnp.maximum(incidence, 0.03), 1e-3, 10.0)
    color, params, material = solids.colors[k], solids.params[k], solids.materials[k]
    color = color if tone is None else color * tone
    u = jnp.where(face == 0, ly + half[:, 1], lx + half[:, 0])
    width = 2 * jnp.where(face == 0, half[:, 1], half[:, 0])
    local = (lx, ly, lz)
    on_facade = is_solid & (material == FACADE) & (face < 2)
    facade, lit = _if_any(
        on_facade,
        lambda: _facade(
            look, color, params, half, u, lz + half[:, 2], width, stretched, footprint, k * 1.0
        ),
    )
    on_body = is_solid & ((material == BODY) | (material == UNDERBODY))
    body, lamp = _if_any(
        on_body,
        lambda: _vehicle_body(
            color, params, local, half, face, material == UNDERBODY, look.night, footprint
        ),
    )
    on_cabin = is_solid & (material == CABIN)
    cabin = _if_any(on_cabin, lambda: _cabin(color, local, half, face, footprint))
    wall_top = (material == FACADE) & (face == 2)
    albedo = jnp.where(on_facade[:, None], facade, color * jnp.where(wall_top, 0.8, 1.0)[:, None])
    albedo = jnp.where(on_body[:, None], body, albedo)
    albedo = jnp.where(on_cabin[:, None], cabin, albedo)
    leafy = is_round & (ellipsoids.classes[e] == VEGETATION)
    leaves = _if_any(
        leafy,
        lambda: _noise(
            (bulge[0] / bulge_norm + 0.5 * bulge[1] / bulge_norm) * 2.5 + e * 7.0,
            bulge[2] / bulge_norm * 2.5,
            look.seed + 9,
        ),
    )
    foliage = ellipsoids.colors[e] * (1 + jnp.where(leafy, 0.5 * look.texture * leaves, 0))[:, None]
    foliage = foliage if tone is None else foliage * tone
    albedo = jnp.where(is_round[:, None], foliage, albedo)
    albedo = jnp.where(is_ground[:, None], ground, albedo)

    lifted = jnp.stack([p + 0.02 * n for p, n in zip(point, normal, strict=True)], -1)
    facing = jnp.maximum(0.0, sum(n * look.sun[i] for i, n in enumerate(normal)))
    relevant = ~sky & (t < SHADOW_RANGE) & (facing > 0)
    dark = _if_any(relevant, lambda: in_shadow(shapes, lifted, relevant, look.sun)) & relevant
    sunlight = jnp.where(dark, 0.0, facing)
    up = 0.85 + 0.15 * normal[2]
    light = look.ambient * up[:, None] + look.sun_color * sunlight[:, None]
    beam = jnp.exp(-(((t - 9.0) / 9.0) ** 2)) * jnp.where(is_ground, 1.0, 0.5)
    light += (0.6 * look.night * beam)[:, None] * jnp.array([1.0, 0.95, 0.8])
    result = albedo * light

    emits = is_solid & (material == GLOW)
    glow = jnp.where(emits, params[:, 0] + (params[:, 1] - params[:, 0]) * look.night, 0.0)
    warm = jnp.array([1.0, 0.82, 0.5])
    result = _mix(result, warm * 0.9, jnp.where(on_facade, lit, 0.0) * 0.8)
    result = _mix(result, albedo, jnp.where(is_solid & (material == BODY), lamp, 0.0))
    result = _mix(result, color, glow)
    grazing = (1 - incidence) ** 4 * look.wet * jnp.where(is_ground, gloss, 0.0)
    result = _mix(result, look.horizon * 0.9, 0.55 * grazing)
    haze = 1 - jnp.exp(-((t * length / look.haze) ** 2))
    result = _mix(result, look.horizon, haze)
    above = _if_any(sky, lambda: _sky(look, d, length))
    above = above if tone is None else above * tone
    result = jnp.where(sky[:, None], above, result)

    classes = jnp.where(is_round, ellipsoids.classes[e], solids.classes[k])
    classes = jnp.where(is_ground, ground_class, classes)
    owner = jnp.where(is_round, ellipsoids.owners[e], solids.owners[k])
    return Shading(
        jnp.clip(result, 0.0, 1.0),
        jnp.where(sky, SKY, classes).astype(jnp.int32),
        jnp.where(sky | is_ground, 0, owner).astype(jnp.int32),
        jnp.clip(albedo.mean(-1) * incidence, 0.0, 1.0),
    )
