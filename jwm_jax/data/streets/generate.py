"""Make a street from a seed.

Everything random comes from one numpy generator seeded with (seed, rung); the order of draws is
part of the definition of a street, so a change here changes every street.
"""

import numpy as np

from jwm_jax.data.streets.appearance import LANE_WIDTH, Look
from jwm_jax.data.streets.building import (
    Builder,
    add_car,
    add_cyclist,
    add_houses,
    add_lamps,
    add_pedestrian,
    add_signs,
    add_trees,
    pack,
)
from jwm_jax.data.streets.course import MOST_SECONDS, continued
from jwm_jax.data.streets.papering import Paper
from jwm_jax.data.streets.street import FIRST_SECONDS, RUNGS, EgoPath, Street
from jwm_jax.errors import UsageError

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
LAPS = (318.0, 348.0, 378.0, 408.0)
"""Metres of a closed course; a whole number of dashes and of tiles."""

TIMES_OF_DAY = tuple(LIGHTS)
TIME_SHARES = (0.35, 0.25, 0.2, 0.2)
WEATHERS = ("clear", "overcast", "fog", "rain")
WEATHER_SHARES = (0.5, 0.2, 0.12, 0.18)


def _traffic(b: Builder) -> EgoPath:
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
            while x < b.parked_until:
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
        add_cyclist(b, b.uniform(10, 30), -edge, b.uniform(3, 6), 0.0)
    return EgoPath(
        speed=speed,
        lane=own,
        sway=b.uniform(0.0, 0.25),
        rate=b.uniform(0.4, 0.9),
        phase=b.uniform(0, 2 * np.pi),
    )


def _look(b: Builder) -> tuple[Look, dict[str, str]]:
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


def make_street(
    seed: int, rung: str = "easy", seconds: float = FIRST_SECONDS, loop: bool = False
) -> Street:
    """The street of a seed; equal arguments give equal streets on every machine.

    Args:
      seed: below `FIRST_TEST_SEED` for training, from there on for tests.
      rung: "easy" (flat colours, one light, few actors), "full", or "photo": the latter with
        photographs of `$JWM_DATA` on its surfaces and with traffic signs.
      seconds: for how long it goes on, `MOST_SECONDS` at most; its first `FIRST_SECONDS` are the
        same whatever this is.
      loop: whether it is a closed course, which comes back to its start.

    Raises:
      UsageError: unknown rung or negative seed.
      DataError: "photo" without the photographs.
    """
    if rung not in RUNGS:
        raise UsageError(f"procedural streets: expected a rung of {RUNGS}, got {rung!r}.")
    if seed < 0:
        raise UsageError(f"procedural streets: expected a seed of 0 or more, got {seed}.")
    if seconds > MOST_SECONDS:
        raise UsageError(
            f"procedural streets: a street goes on for {MOST_SECONDS:g} s at most, and "
            f"{seconds:g} s were asked for; ask for fewer frames."
        )
    b = Builder(seed, rung)
    if loop:
        b.close(LAPS[seed % len(LAPS)], right=bool(seed // len(LAPS) % 2))
    look, style = _look(b)
    add_houses(b)
    add_trees(b)
    if b.full:
        add_lamps(b)
    ego = _traffic(b)
    if loop:  # whoever drives in the same lane keeps its distance, lap after lap
        for row in b.actors:
            if row[2] > 0 and abs(row[1] - ego.lane) < 1.0:
                row[2] = ego.speed
    paper = None
    if rung == "photo":
        add_signs(b)
        paper = Paper(b.random)
        paper.cover(b.solids, b.rounds)
    world = pack(b.road, look, b.solids, b.rounds, b.actors, paper)
    street = Street(
        seed=seed,
        rung=rung,
        world=world,
        ego=ego,
        actor_ids=tuple(b.ids),
        actor_sizes=np.asarray(b.sizes, np.float64).reshape(-1, 3),
        actor_categories=np.asarray(b.categories, np.int32),
        style=style,
        extent=b.extent,
    )
    if loop or seconds <= FIRST_SECONDS:
        return street
    return continued(street, b, paper, seconds)
