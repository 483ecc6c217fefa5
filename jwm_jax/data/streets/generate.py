"""Make a street from a seed.

Everything random comes from one numpy generator seeded with (seed, rung); the order of draws is
part of the definition of a street, so a change here changes every street.
"""

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
from jwm_jax.data.streets.photo_crops import photo_crops
from jwm_jax.data.streets.render import World
from jwm_jax.data.streets.street import ROAD_EXTENT, RUNGS, EgoPath, Street, padded
from jwm_jax.data.streets.textures import Textures, pyramid
from jwm_jax.errors import UsageError
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

# sun elevation range (degrees), sun colour, ambient, zenith, horizon, night
LIGHTS = {
    "noon": (
        (45, 65), (0.60, 0.58, 0.53), (0.52, 0.54, 0.58),
        (0.34, 0.54, 0.86), (0.78, 0.84, 0.90), 0.0,
    ),
    "morning": (
        (22, 35), (0.62, 0.55, 0.44), (0.46, 0.49, 0.55),
        (0.40, 0.58, 0.84), (0.86, 0.84, 0.80), 0.0,
    ),
    "evening": (
        (12, 20), (0.66, 0.45, 0.26), (0.40, 0.41, 0.48),
        (0.36, 0.44, 0.68), (0.92, 0.72, 0.54), 0.15,
    ),
    "night": (
        (30, 45), (0.06, 0.07, 0.10), (0.25, 0.27, 0.35),
        (0.07, 0.09, 0.20), (0.24, 0.26, 0.36), 1.0,
    ),
}  # fmt: skip
SOFT_NOON = ((50, 50), (0.44, 0.42, 0.38), (0.60, 0.62, 0.65), *LIGHTS["noon"][3:])
"""The one light of `easy`: little contrast between sun and shade."""
TIMES_OF_DAY = tuple(LIGHTS)
TIME_SHARES = (0.35, 0.25, 0.2, 0.2)
WEATHERS = ("clear", "overcast", "fog", "rain")
WEATHER_SHARES = (0.5, 0.2, 0.12, 0.18)


class _Builder:
    """Collects rows for the arrays of a `World`."""

    def __init__(self, seed: int, rung: str):
        self.random = np.random.default_rng([seed, RUNGS.index(rung)])
        self.full = rung != "easy"
        self.palette = "full" if self.full else "easy"
        self.solids: list[list[float]] = []
        self.rounds: list[list[float]] = []
        self.actors: list[list[float]] = []
        self.sizes: list[tuple[float, float, float]] = []
        self.categories: list[int] = []
        self.ids: list[str] = []
        self.road = self._road()

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

    def solid(
        self, center, half, material, label, color, taper=(0, 0), yaw=0.0, owner=0, params=(0,) * 4
    ):
        """Add a frustum; center is its middle in the owner's frame."""
        self.solids.append(
            [*center, *half, *taper, yaw, owner, material, label, *color, *params],
        )

    def on_ground(self, x, lateral, z, half, material, label, color, **kwargs):
        """Add a frustum standing at (x, lateral) with its underside at z, turned with the road."""
        center = (x, self.center_line(x) + lateral, z + half[2])
        self.solid(center, half, material, label, color, yaw=self.bearing(x), **kwargs)

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


def _houses(b: _Builder) -> None:
    start = float(b.road.half_width + b.road.pavement)
    palette = FACADE_COLORS[b.palette]
    previous = None
    for side in (-1.0, 1.0):
        x = ROAD_EXTENT[0] + b.uniform(0, 8)
        while x < ROAD_EXTENT[1] - 10:
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


def _trees(b: _Builder) -> None:
    for side in (-1.0, 1.0):
        x = ROAD_EXTENT[0] + b.uniform(0, 15)
        spacing = b.uniform(13, 20) if b.full else 22.0
        if b.full and b.random.random() < 0.2:
            continue
        while x < ROAD_EXTENT[1] - 10:
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
            y = b.center_line(x) + lateral
            b.round((x, y, trunk + 0.75 * tall), (radius, radius, tall), look_of.VEGETATION, green)
            x += spacing * (b.uniform(0.8, 1.3) if b.full else 1.0)


def _lamps(b: _Builder) -> None:
    side = b.pick((-1.0, 1.0))
    x = ROAD_EXTENT[0] + b.uniform(0, 20)
    while x < ROAD_EXTENT[1] - 40:
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


def add_car(b: _Builder, x: float, lateral: float, speed: float, heading: float) -> None:
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


def add_pedestrian(b: _Builder, x: float, lateral: float, vx: float, vl: float) -> None:
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


def _cyclist(b: _Builder, x: float, lateral: float, speed: float, heading: float) -> None:
    if not b.room(3, 1):
        return
    owner = b.actor("bicycle", "bicycle", x, lateral, speed, 0.0, heading, (1.75, 0.6, 1.72))
    label, dark = look_of.PEDESTRIAN, (0.12, 0.12, 0.14)
    b.solid((0, 0, 0.42), (0.86, 0.04, 0.38), PLAIN, label, dark, taper=(0.4, 0), owner=owner)
    b.solid((-0.1, 0, 0.8), (0.16, 0.16, 0.25), PLAIN, label, (0.2, 0.2, 0.28), owner=owner)
    b.solid((-0.05, 0, 1.22), (0.22, 0.27, 0.3), PLAIN, label, b.pick(CLOTHES), taper=(0.2, 0.15),
            owner=owner)  # fmt: skip
    b.round((0.08, 0, 1.59), (0.12, 0.1, 0.13), label, (0.82, 0.66, 0.54), owner)


def _traffic(b: _Builder) -> EgoPath:
    """Moving and parked vehicles and people; returns the ego vehicle's way among them."""
    lanes, half_width = round(float(b.road.lanes)), float(b.road.half_width)
    speed = b.uniform(4.0, 8.0 if b.full else 6.0)
    own = -0.5 * LANE_WIDTH
    if b.random.random() < 0.75:
        add_car(b, b.uniform(14, 26), own + b.uniform(-0.2, 0.2), speed * b.uniform(0.9, 1.25), 0.0)
    if lanes > 1 and b.random.random() < 0.6:
        add_car(b, b.uniform(6, 34), 3 * own, speed * b.uniform(0.7, 1.4), 0.0)
    x = b.uniform(16, 36)
    for _ in range(int(b.random.integers(1, 4 if b.full else 3))):
        lane = 0.5 if lanes == 1 or b.random.random() < 0.6 else 1.5
        add_car(
            b, x, lane * LANE_WIDTH + b.uniform(-0.2, 0.2), -b.uniform(4, 8 if b.full else 5), np.pi
        )
        x += b.uniform(16, 30)
    if half_width - LANE_WIDTH * lanes > 1:
        for side in (-1.0, 1.0):
            x = b.uniform(-8, 12)
            while x < 85:
                away = abs(x - float(b.road.crosswalk)) > 6
                if away:
                    add_car(b, x, side * (half_width - 1.1), 0.0, 0.0 if side < 0 else np.pi)
                step = b.uniform(6.5, 18) if b.full else b.uniform(12, 30)
                x += step
    for _ in range(int(b.random.integers(3, 8) if b.full else b.random.integers(1, 4))):
        side, direction = b.pick((-1.0, 1.0)), b.pick((-1.0, 1.0))
        lateral = side * (half_width + b.uniform(1.4, float(b.road.pavement) - 0.4))
        add_pedestrian(b, b.uniform(6, 50), lateral, direction * b.uniform(0.8, 1.6), 0.0)
    if float(b.road.crosswalk) > 0 and b.random.random() < 0.6:
        side = b.pick((-1.0, 1.0))
        where = float(b.road.crosswalk) + b.uniform(-0.8, 0.8)
        add_pedestrian(
            b, where, side * (half_width - b.uniform(0.4, 1.2)), 0.0, -side * b.uniform(0.9, 1.4)
        )
    if b.full and b.random.random() < 0.4:
        edge = LANE_WIDTH * lanes - 0.6
        _cyclist(b, b.uniform(10, 30), -edge, b.uniform(3, 6), 0.0)
    return EgoPath(
        speed=speed,
        lane=own,
        sway=b.uniform(0.0, 0.25),
        rate=b.uniform(0.4, 0.9),
        phase=b.uniform(0, 2 * np.pi),
    )


def _signs(b: _Builder) -> None:
    """Traffic signs on poles along both pavements, each an actor that stands still."""
    for side in (-1.0, 1.0):
        x = b.uniform(6, 24)
        while x < 110 and b.room(2):
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


def _paper(b: _Builder) -> Textures:
    """Chooses photographs for everything that was built, and colours what wears them."""
    crops = photo_crops()
    pyramids: list[np.ndarray] = []
    spans: list[float] = []

    def hang(kind: str, span: float) -> tuple[int, np.ndarray]:
        """A random crop of a kind as a new texture: its index and its mean colour."""
        crop = b.pick(crops[kind])
        strength = 0.4 if kind == "sky" else 1.0  # the sky is bright enough to burn out
        pyramids.append(1.0 + strength * (pyramid(crop) - 1.0))
        spans.append(span)
        return len(spans) - 1, crop.mean((0, 1)) / 255.0

    for kind, low, high in (
        ("road", 3.0, 6.0),
        ("pavement", 2.0, 4.0),
        ("foliage", 1.5, 3.0),
        ("sky", 0.8, 1.4),
    ):
        hang(kind, b.uniform(low, high))
    plan = (
        ("wall", 5.0, 12.0, 8),
        ("foliage", 1.5, 3.0, 4),
        ("foliage", 0.3, 0.6, 1),
        ("car", 0.0, 0.0, 8),
        ("sign", 0.0, 0.0, 6),
    )
    hung = [[hang(kind, b.uniform(low, high)) for _ in range(n)] for kind, low, high, n in plan]
    walls, crowns, bark, cars, signs = hung

    def wear(row: list, choice: tuple[int, np.ndarray], exposure: tuple[float, float]) -> int:
        """Gives a row of solids the colour of a texture, at some brightness and with some tint."""
        index, mean = choice
        color = mean * b.uniform(*exposure) / mean.mean() * b.random.uniform(0.93, 1.07, 3)
        row[12:15] = np.clip(color, 0.03, 0.85).tolist()
        return index

    solids = np.full(MAX_SOLIDS, -1, np.int32)
    for i, row in enumerate(b.solids):
        material, label = row[10], row[11]
        if material == FACADE:
            solids[i] = wear(row, b.pick(walls), (0.3, 0.6))
            if b.random.random() < 0.75:
                row[17] = 0.0  # the photograph's windows do
        elif material == ROOF:
            solids[i] = b.pick(walls)[0]
        elif material in (BODY, CABIN) or (material == PLAIN and label == look_of.VEHICLE):
            solids[i] = wear(row, b.pick(cars), (0.15, 0.5))
        elif material == SIGN:
            solids[i] = wear(row, b.pick(signs), (0.35, 0.6))
        elif material == PLAIN and label == look_of.VEGETATION:
            solids[i] = bark[0][0]
    rounds = np.full(MAX_ELLIPSOIDS, -1, np.int32)
    for i, row in enumerate(b.rounds):
        if row[7] == look_of.VEGETATION:
            rounds[i] = b.pick(crowns)[0]
            row[8:11] = (0.6 * np.asarray(row[8:11]) + 0.4 * np.mean(row[8:11])).tolist()
    return Textures(np.stack(pyramids), np.asarray(spans, np.float32), solids, rounds)


def _look(b: _Builder) -> tuple[Look, dict[str, str]]:
    time_of_day, weather = "noon", "clear"
    if b.full:
        time_of_day = str(b.random.choice(TIMES_OF_DAY, p=TIME_SHARES))
        weather = str(b.random.choice(WEATHERS, p=WEATHER_SHARES))
    (low, high), sun_color, ambient, zenith, horizon, night = (
        LIGHTS[time_of_day] if b.full else SOFT_NOON
    )
    sun_color, ambient, zenith, horizon = map(np.asarray, (sun_color, ambient, zenith, horizon))
    elevation = np.radians(b.uniform(low, high))
    azimuth = b.uniform(0, 2 * np.pi) if b.full else 0.9
    haze, clouds, wet = 170.0 if b.full else 110.0, 0.0, 0.0
    if weather == "clear":
        clouds = b.uniform(0.2, 0.8) if b.full else 0.0
    else:
        gray = horizon.mean() * np.array([0.96, 0.98, 1.0])
        horizon = 0.25 * horizon + 0.75 * gray
        zenith = 0.2 * zenith + 0.8 * gray * 0.82
        ambient = ambient + 0.45 * sun_color.mean()
        sun_color = sun_color * 0.12
        haze = {"overcast": 150.0, "fog": 48.0, "rain": 95.0}[weather]
        wet = {"overcast": 0.0, "fog": 0.2, "rain": 1.0}[weather]
    asphalt = np.array([0.36, 0.36, 0.375] if b.full else [0.42, 0.42, 0.435]) * (1 - 0.3 * wet)
    pavement = np.array([0.56, 0.54, 0.51]) * (1 - 0.2 * wet)
    grass = np.array([0.34, 0.45, 0.22])
    glass = np.array([0.20, 0.25, 0.32] if b.full else [0.40, 0.42, 0.46])
    sun = np.array(
        [
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ]
    )
    values = (
        sun, sun_color, ambient, zenith, horizon, haze, clouds, wet, night,
        1.0 if b.full else 0.0, float(b.random.integers(0, 1000)), asphalt, pavement, grass, glass,
    )  # fmt: skip
    style = {"time_of_day": time_of_day, "weather": weather}
    return Look(*(np.asarray(v, np.float32) for v in values)), style


def make_street(seed: int, rung: str = "easy") -> Street:
    """The street of a seed; equal arguments give equal streets on every machine.

    Args:
      seed: below `FIRST_TEST_SEED` for training, from there on for tests.
      rung: "easy" (flat colours, one light, few actors), "full", or "photo": the latter with
        photographs of `$JWM_DATA` on its surfaces and with traffic signs.

    Raises:
      UsageError: unknown rung or negative seed.
      DataError: "photo" without the photographs.
    """
    if rung not in RUNGS:
        raise UsageError(f"procedural streets: expected a rung of {RUNGS}, got {rung!r}.")
    if seed < 0:
        raise UsageError(f"procedural streets: expected a seed of 0 or more, got {seed}.")
    b = _Builder(seed, rung)
    look, style = _look(b)
    _houses(b)
    _trees(b)
    if b.full:
        _lamps(b)
    ego = _traffic(b)
    textures = None
    if rung == "photo":
        _signs(b)
        textures = _paper(b)

    solids = padded(b.solids, MAX_SOLIDS, 19, 0.0)
    solids[len(b.solids) :, :3] = NOWHERE
    solids[len(b.solids) :, 3:6] = 0.01
    rounds = padded(b.rounds, MAX_ELLIPSOIDS, 11, 0.0)
    rounds[len(b.rounds) :, :3] = NOWHERE
    rounds[len(b.rounds) :, 3:6] = 0.01
    actors = padded(b.actors, MAX_ACTORS, 5, 0.0)
    whole = np.int32
    world = World(
        road=b.road,
        actors=Actors(actors[:, :2], actors[:, 2:4], actors[:, 4]),
        solids=Solids(
            solids[:, :3],
            solids[:, 3:6],
            solids[:, 6:8],
            solids[:, 8],
            solids[:, 9].astype(whole),
            solids[:, 10].astype(whole),
            solids[:, 11].astype(whole),
            solids[:, 12:15],
            solids[:, 15:19],
        ),
        ellipsoids=Ellipsoids(
            rounds[:, :3],
            rounds[:, 3:6],
            rounds[:, 6].astype(whole),
            rounds[:, 7].astype(whole),
            rounds[:, 8:11],
        ),
        look=look,
        textures=textures,
    )
    return Street(
        seed=seed,
        rung=rung,
        world=world,
        ego=ego,
        actor_ids=tuple(b.ids),
        actor_sizes=np.asarray(b.sizes, np.float64).reshape(-1, 3),
        actor_categories=np.asarray(b.categories, np.int32),
        style=style,
    )
