"""What a street is built of: rows for the arrays of a `World`, thing by thing.

Order of random draws is part of the definition of a street, so a change here changes every street.
"""

from collections.abc import Sequence

import numpy as np

from jwm_jax.data.streets import appearance as look_of
from jwm_jax.data.streets.appearance import (
    BODY,
    CABIN,
    FACADE,
    GLOW,
    LANE_WIDTH,
    PLAIN,
    ROOF,
    SIGN,
    UNDERBODY,
    Look,
)
from jwm_jax.data.streets.geometry import KERB_HEIGHT, NOWHERE, Actors, Ellipsoids, Road, Solids
from jwm_jax.data.streets.papering import Paper
from jwm_jax.data.streets.render import World
from jwm_jax.data.streets.street import ROAD_EXTENT, RUNGS
from jwm_jax.scene import CATEGORIES

MAX_SOLIDS = 320
MAX_ELLIPSOIDS = 80
MAX_ACTORS = 32

CAR_COLORS = {
    "easy": (
        (0.72, 0.10, 0.10),
        (0.12, 0.24, 0.62),
        (0.84, 0.84, 0.85),
        (0.16, 0.17, 0.19),
        (0.90, 0.70, 0.12),
    ),
    "full": (
        (0.72, 0.10, 0.10),
        (0.12, 0.24, 0.62),
        (0.86, 0.86, 0.87),
        (0.13, 0.14, 0.16),
        (0.90, 0.70, 0.12),
        (0.52, 0.54, 0.57),
        (0.12, 0.38, 0.26),
        (0.80, 0.42, 0.14),
        (0.45, 0.62, 0.74),
    ),
}
FACADE_COLORS = {
    "easy": ((0.66, 0.50, 0.42), (0.72, 0.68, 0.58)),
    "full": (
        (0.64, 0.47, 0.38),
        (0.74, 0.68, 0.56),
        (0.60, 0.61, 0.64),
        (0.78, 0.76, 0.71),
        (0.56, 0.40, 0.34),
        (0.52, 0.58, 0.62),
        (0.76, 0.60, 0.50),
        (0.62, 0.66, 0.56),
    ),
}
CLOTHES = (
    (0.70, 0.18, 0.16),
    (0.18, 0.30, 0.58),
    (0.80, 0.76, 0.66),
    (0.22, 0.42, 0.28),
    (0.85, 0.62, 0.18),
    (0.38, 0.26, 0.42),
)

NOTHING = [NOWHERE] * 3 + [0.01] * 3
"""Place and size of a row that shows nothing."""


class Builder:
    """Collects rows for the arrays of a `World`.

    Attributes:
        random: Decides everything.
        full: Whether there is everything, not only what `easy` has.
        extent: x from which to which is built.
        parked_until: x up to which vehicles are parked.
        road: Course and cross-section.
        solids: A row of `SOLID_ROW` numbers each.
        rounds: A row of `ROUND_ROW` numbers each.
        actors: x, lateral, their velocities, heading.
        sizes: Of the actors.
        categories: Of the actors.
        ids: Of the actors.
    """

    def __init__(self, seed: int, rung: str):
        self.random = np.random.default_rng([seed, RUNGS.index(rung)])
        self.extent = ROAD_EXTENT
        self.parked_until = 85.0
        self.full = rung != "easy"
        self.palette = "full" if self.full else "easy"
        self.solids: list[list[float]] = []
        self.rounds: list[list[float]] = []
        self.actors: list[list[float]] = []
        self.sizes: list[tuple[float, float, float]] = []
        self.categories: list[int] = []
        self.ids: list[str] = []
        self.road = self._road()

    def close(self, length: float, right: bool) -> None:
        """Makes the road a closed course of some metres, to be built upon."""
        radius = length / (2.0 * np.pi) * (-1.0 if right else 1.0)
        self.road = self.road._replace(radius=np.asarray(radius, np.float32))
        self.extent = (0.0, length)
        self.parked_until = length - 8.0

    def uniform(self, low, high):
        return float(self.random.uniform(low, high))

    def pick(self, options):
        return options[int(self.random.integers(len(options)))]

    def _road(self) -> Road:
        lanes = float(self.random.integers(1, 3)) if self.full else 1.0
        parking = 2.2 if self.random.random() < 0.75 else 0.5
        wavelength = self.uniform(140, 220)
        amplitude = self.uniform(-0.14, 0.14) * wavelength / (2 * np.pi)
        crosswalk = self.uniform(18, 60) if self.random.random() < 0.5 else -1e4
        values = (
            amplitude if self.full else 0.5 * amplitude,
            2 * np.pi / wavelength,
            self.uniform(0, 2 * np.pi),
            LANE_WIDTH * lanes + parking,
            lanes,
            self.uniform(2.6, 4.0),
            crosswalk,
        )
        return Road(*(np.asarray(v, np.float32) for v in values))

    def center_line(self, x):
        return float(self.road.amplitude * np.sin(self.road.wavenumber * x + self.road.phase))

    def bearing(self, x):
        phase = self.road.wavenumber * x + self.road.phase
        return float(np.arctan(self.road.amplitude * self.road.wavenumber * np.cos(phase)))

    def place(self, x, lateral):
        """Coordinates and yaw of a place along the road, see `geometry.road_point`."""
        if self.road.radius is None:
            return x, self.center_line(x) + lateral, self.bearing(x)
        side, size = float(np.sign(self.road.radius)), abs(float(self.road.radius))
        angle, r = x / size, size - side * lateral
        return r * np.sin(angle), side * (size - r * np.cos(angle)), side * angle

    def solid(
        self, center, half, material, label, color, taper=(0, 0), yaw=0.0, owner=0, params=(0,) * 4
    ):
        """Add a frustum; center is its middle in the owner's frame."""
        self.solids.append(
            [*center, *half, *taper, yaw, owner, material, label, *color, *params],
        )

    def on_ground(self, x, lateral, z, half, material, label, color, **kwargs):
        """Add a frustum standing at (x, lateral) with its underside at z, turned with the road."""
        x, y, yaw = self.place(x, lateral)
        self.solid((x, y, z + half[2]), half, material, label, color, yaw=yaw, **kwargs)

    def round(self, center, radii, label, color, owner=0):
        self.rounds.append([*center, *radii, owner, label, *color])

    def actor(self, name, category, x, lateral, vx, vl, heading, size):
        """Add an actor; returns its owner index."""
        self.actors.append([x, lateral, vx, vl, heading])
        self.sizes.append(size)
        self.categories.append(CATEGORIES.index(category))
        self.ids.append(f"{name}_{len(self.ids)}")
        return len(self.actors)

    def room(self, solids, rounds=0):
        """Whether that many more shapes and one more actor fit."""
        return (
            len(self.solids) + solids <= MAX_SOLIDS
            and len(self.rounds) + rounds <= MAX_ELLIPSOIDS
            and len(self.actors) < MAX_ACTORS
        )


def add_houses(b: Builder) -> None:
    start = float(b.road.half_width + b.road.pavement)
    palette = FACADE_COLORS[b.palette]
    previous = None
    for side in (-1.0, 1.0):
        x = b.extent[0] + b.uniform(0, 8)
        while x < b.extent[1] - 10:
            width = b.uniform(11, 20) if b.full else b.uniform(15, 20)
            depth = b.uniform(5, 7)
            storeys = b.random.integers(2, 6) if b.full else b.random.integers(2, 4)
            storey = b.uniform(2.9, 3.4) if b.full else 3.2
            setback = b.uniform(0, 2.5) if b.full else 1.0
            color = b.pick([c for c in palette if c is not previous])
            previous = color
            color = np.asarray(color) * (b.uniform(0.9, 1.1) if b.full else 1.0)
            if b.full:
                params = (b.uniform(2.4, 3.8), storey, b.uniform(0.35, 0.55), b.uniform(0.42, 0.6))
            else:
                params = (4.5, storey, 0.42, 0.48)
            height = storeys * storey + 1.5
            lateral = side * (start + setback + depth)
            middle = x + width / 2
            half = (width / 2, depth, height / 2)
            b.on_ground(middle, lateral, 0.0, half, FACADE, look_of.BUILDING, color, params=params)
            rise = b.uniform(1.8, 3.0) if b.full else 2.2
            if not b.full or b.random.random() < 0.7:
                tiles = (
                    (0.42, 0.24, 0.19)
                    if not b.full
                    else b.pick(((0.44, 0.25, 0.20), (0.30, 0.31, 0.34), (0.38, 0.30, 0.26)))
                )
                roof = (width / 2 + 0.25, depth + 0.35, rise / 2)
                slope = (min(1.4, (width / 2 - 1) / rise), 0.92 * depth / rise)
                b.on_ground(
                    middle, lateral, height, roof, ROOF, look_of.BUILDING, tiles, taper=slope
                )
            gap = b.uniform(4, 10) if b.random.random() < 0.3 else b.uniform(0.0, 0.4)
            x += width + gap


def add_trees(b: Builder) -> None:
    for side in (-1.0, 1.0):
        x = b.extent[0] + b.uniform(0, 15)
        spacing = b.uniform(13, 20) if b.full else 22.0
        if b.full and b.random.random() < 0.2:
            continue
        while x < b.extent[1] - 10:
            lateral = side * (float(b.road.half_width) + 0.9)
            trunk, radius = b.uniform(2.3, 3.0), b.uniform(1.2, 1.9)
            if not b.full:
                trunk, radius = 2.6, 1.5
            b.on_ground(
                x, lateral, 0.0, (0.14, 0.14, trunk / 2 + 0.3), PLAIN, look_of.VEGETATION,
                (0.30, 0.22, 0.15),
            )  # fmt: skip
            green = np.array([0.25, 0.43, 0.17]) * (b.uniform(0.8, 1.25) if b.full else 1.0)
            if b.full and b.random.random() < 0.15:
                green = np.array([0.52, 0.40, 0.14])
            tall = radius * (b.uniform(0.9, 1.3) if b.full else 1.0)
            crown_x, crown_y, _ = b.place(x, lateral)
            center = (crown_x, crown_y, trunk + 0.75 * tall)
            b.round(center, (radius, radius, tall), look_of.VEGETATION, green)
            x += spacing * (b.uniform(0.8, 1.3) if b.full else 1.0)


def add_lamps(b: Builder) -> None:
    side = b.pick((-1.0, 1.0))
    x = b.extent[0] + b.uniform(0, 20)
    while x < b.extent[1] - 40:
        lateral = side * (float(b.road.half_width) + 0.45)
        gray = (0.36, 0.37, 0.39)
        b.on_ground(x, lateral, 0.0, (0.07, 0.07, 3.2), PLAIN, look_of.POLE, gray)
        arm = lateral - side * 0.8
        b.on_ground(x, arm, 6.3, (0.06, 0.9, 0.05), PLAIN, look_of.POLE, gray)
        b.on_ground(
            x, lateral - side * 1.5, 6.18, (0.16, 0.38, 0.06), GLOW, look_of.POLE,
            (1.0, 0.93, 0.72), params=(0.1, 1.0, 0, 0),
        )  # fmt: skip
        x += b.uniform(26, 32)


def add_car(b: Builder, x: float, lateral: float, speed: float, heading: float) -> None:
    """Add a car, or on `full` sometimes a van, truck or bus, at (x, lateral)."""
    draw = b.random.random()
    color = np.asarray(b.pick(CAR_COLORS[b.palette]))
    if b.full:
        color = color * b.uniform(0.9, 1.05)
    if not b.room(3):
        return
    kind = "car"
    if b.full and draw < 0.06 and speed != 0:
        kind = "bus"
    elif b.full and draw < 0.16:
        kind = "truck"
    length, width, shoulder, top = {
        "car": (b.uniform(4.0, 4.7), b.uniform(1.74, 1.88), b.uniform(0.82, 0.92), 0.0),
        "truck": (b.uniform(5.6, 6.8), 2.1, 1.0, b.uniform(2.5, 3.0)),
        "bus": (b.uniform(9.5, 11.0), 2.5, 1.1, 3.0),
    }[kind]
    if kind == "car":
        top = b.uniform(1.42, 1.58) if b.random.random() < 0.7 else b.uniform(1.65, 1.8)
    owner = b.actor(kind, kind, x, lateral, speed, 0.0, heading, (length, width, top))
    half_l, half_w = length / 2, width / 2
    wheels = (0.33 if kind == "car" else 0.45, 0.62, 0, 0)
    label = look_of.VEHICLE
    b.solid((0, 0, 0.1), (half_l * 0.9, half_w * 0.97, 0.1), UNDERBODY, label, color,
            owner=owner, params=(wheels[0], wheels[1] / 0.9, 0, 0))  # fmt: skip
    body = (shoulder - 0.2) / 2
    b.solid((0, 0, 0.2 + body), (half_l, half_w, body), BODY, label, color,
            taper=(0.06, 0.05), owner=owner, params=wheels)  # fmt: skip
    rise = (top - shoulder) / 2
    if kind == "car":
        reach = 0.33 * length if top < 1.6 else 0.38 * length
        middle = -0.06 * length if top < 1.6 else -0.09 * length
        half, taper, material = (reach, half_w * 0.9, rise), (0.62, 0.22), CABIN
    elif kind == "bus":
        middle, material = 0.0, CABIN
        half, taper = (half_l * 0.985, half_w * 0.98, rise), (0.02, 0.02)
    else:
        middle, material = -0.14 * length, PLAIN
        half, taper = (0.36 * length, half_w, rise), (0.0, 0.0)
        cab = 0.42 * (top - shoulder)
        b.solid((0.36 * length, 0, shoulder + cab), (0.135 * length, half_w * 0.95, cab), CABIN,
                label, color, taper=(0.15, 0.05), owner=owner)  # fmt: skip
        color = np.asarray((0.82, 0.82, 0.80))
    b.solid((middle, 0, shoulder + rise), half, material, label, color, taper=taper, owner=owner)


def add_pedestrian(b: Builder, x: float, lateral: float, vx: float, vl: float) -> None:
    """Add a person walking with velocity (vx, vl)."""
    if not b.room(2, 1):
        return
    tall = b.uniform(1.6, 1.88)
    coat, skin = b.pick(CLOTHES), b.pick(((0.86, 0.67, 0.54), (0.55, 0.38, 0.28)))
    trousers = b.pick(((0.16, 0.18, 0.26), (0.24, 0.22, 0.20)))
    heading = float(np.arctan2(vl, vx))
    owner = b.actor("pedestrian", "pedestrian", x, lateral, vx, vl, heading, (0.56, 0.62, tall))
    base = KERB_HEIGHT if abs(lateral) > float(b.road.half_width) else 0.0
    legs, torso, label = 0.47 * tall, 0.36 * tall, look_of.PEDESTRIAN
    b.solid((0, 0, base + legs / 2), (0.17, 0.17, legs / 2), PLAIN, label, trousers, owner=owner)
    b.solid((0, 0, base + legs + torso / 2), (0.19, 0.29, torso / 2), PLAIN, label, coat,
            taper=(0.08, 0.16), owner=owner)  # fmt: skip
    head = (tall - legs - torso) / 2 + 0.02
    b.round((0.02, 0, base + tall - head), (0.8 * head, 0.7 * head, head), label, skin, owner)


def add_cyclist(b: Builder, x: float, lateral: float, speed: float, heading: float) -> None:
    if not b.room(3, 1):
        return
    owner = b.actor("bicycle", "bicycle", x, lateral, speed, 0.0, heading, (1.75, 0.6, 1.72))
    label, dark = look_of.PEDESTRIAN, (0.12, 0.12, 0.14)
    b.solid((0, 0, 0.42), (0.86, 0.04, 0.38), PLAIN, label, dark, taper=(0.4, 0), owner=owner)
    b.solid((-0.1, 0, 0.8), (0.16, 0.16, 0.25), PLAIN, label, (0.2, 0.2, 0.28), owner=owner)
    b.solid((-0.05, 0, 1.22), (0.22, 0.27, 0.3), PLAIN, label, b.pick(CLOTHES), taper=(0.2, 0.15),
            owner=owner)  # fmt: skip
    b.round((0.08, 0, 1.59), (0.12, 0.1, 0.13), label, (0.82, 0.66, 0.54), owner)


def add_signs(b: Builder) -> None:
    """Traffic signs on poles along both pavements, each an actor that stands still."""
    low = max(b.extent[0], 0.0)
    high = min(b.extent[1], low + 110.0)
    for side in (-1.0, 1.0):
        x = low + b.uniform(6, 24)
        while x < high and b.room(2):
            wide, above = b.uniform(0.6, 0.9), b.uniform(2.0, 2.4)
            lateral, top = side * (float(b.road.half_width) + 0.45), above + wide
            heading = np.pi if side < 0 else 0.0  # faces those who drive on its side
            size = (0.12, wide, top)
            owner = b.actor("sign", "other", x, lateral, 0.0, 0.0, heading, size)
            b.solid((0, 0, KERB_HEIGHT + above / 2), (0.04, 0.04, above / 2), PLAIN, look_of.POLE,
                    (0.45, 0.46, 0.48), owner=owner)  # fmt: skip
            b.solid((0, 0, KERB_HEIGHT + above + wide / 2), (0.02, wide / 2, wide / 2), SIGN,
                    look_of.POLE, (0.5, 0.5, 0.5), owner=owner)  # fmt: skip
            x += b.uniform(16, 40)


def pack(
    road: Road,
    look: Look,
    solids: Sequence[list | None],
    rounds: Sequence[list | None],
    actors: Sequence[list | None],
    paper: Paper | None,
) -> World:
    """The arrays of rows; None, and what is missing to the arrays' sizes, shows nothing.

    Raises:
      ValueError: there are more rows than the arrays hold.
    """

    def filled(rows: Sequence[list | None], count: int, width: int, nothing: list) -> np.ndarray:
        if len(rows) > count:
            raise ValueError(f"street: {len(rows)} entries do not fit into {count}.")
        result = np.zeros((count, width), np.float32)
        result[:, : len(nothing)] = nothing
        for slot, row in enumerate(rows):
            if row is not None:
                result[slot] = row[:width]
        return result

    def worn(rows: Sequence[list | None], count: int) -> np.ndarray:
        result = np.full(count, -1, np.int32)
        for slot, row in enumerate(rows):
            if row is not None:
                result[slot] = row[-1]
        return result

    s = filled(solids, MAX_SOLIDS, 19, NOTHING)
    e = filled(rounds, MAX_ELLIPSOIDS, 11, NOTHING)
    a = filled(actors, MAX_ACTORS, 5, [])
    whole = np.int32
    textures = None
    if paper is not None:
        textures = paper.textures(worn(solids, MAX_SOLIDS), worn(rounds, MAX_ELLIPSOIDS))
    return World(
        road=road,
        actors=Actors(a[:, :2], a[:, 2:4], a[:, 4]),
        solids=Solids(
            s[:, :3],
            s[:, 3:6],
            s[:, 6:8],
            s[:, 8],
            s[:, 9].astype(whole),
            s[:, 10].astype(whole),
            s[:, 11].astype(whole),
            s[:, 12:15],
            s[:, 15:19],
        ),
        ellipsoids=Ellipsoids(
            e[:, :3], e[:, 3:6], e[:, 6].astype(whole), e[:, 7].astype(whole), e[:, 8:11]
        ),
        look=look,
        textures=textures,
    )
