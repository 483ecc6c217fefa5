"""A street as data: its arrays, its actors, the ego vehicle's way along it, and the world frame.

The world frame of a street is the ego frame at time zero (rear axle on the road, x forward, y left,
z up), as everywhere in this package; the street frame is internal to this folder.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jwm_jax.data.streets.appearance import CROSSWALK_LENGTH, LANE_WIDTH
from jwm_jax.data.streets.geometry import KERB_HEIGHT
from jwm_jax.data.streets.render import World
from jwm_jax.scene import (
    LaneMap,
    Tracks,
    invert_transform,
    make_transform,
    matrix_to_quat,
    transform_points,
    yaw_rotation,
)

FIRST_TEST_SEED = 1_000_000
"""Smaller seeds are for training; from here on they are for tests and reported scores."""

RUNGS = ("easy", "full", "photo")
"""Flat colours, one light and few actors; or textures, times of day, weathers and more kinds; or
the same with photographs on the surfaces and traffic signs."""

MAP_SPACING = 4.0
"""Metres between the points of a lane line."""

ROAD_EXTENT = (-60.0, 200.0)
"""x from which to which a street's first part is built, in the street frame."""

FIRST_SECONDS = 12.0
"""How long the first part lasts; `course` builds what comes after it."""


@dataclass(frozen=True)
class EgoPath:
    """Constant speed along x with a lateral offset l(t) = lane + sway sin(rate t + phase)."""

    speed: float
    lane: float
    sway: float
    rate: float
    phase: float


class Epoch(NamedTuple):
    """The arrays of a part of a street's time.

    Attributes:
      start: seconds from which on they count.
      world: as `Street.world`.
      actors: number in the street of the actor in every slot of the arrays, -1 for none.
    """

    start: float
    world: World
    actors: np.ndarray


@dataclass(frozen=True)
class Street:
    """A deterministic street.

    Attributes:
      seed: what it was made from.
      rung: one of `RUNGS`.
      world: the arrays that rendering reads (street frame).
      ego: the way of the vehicle that carries the cameras.
      actor_ids: a name for every actor.
      actor_sizes: [A, 3] length, width, height in metres.
      actor_categories: [A] int32, index into `jwm_jax.scene.CATEGORIES`.
      style: time_of_day and weather.
      epochs: of a street that outlasts its first part; the first one is that part.
      extent: x from which to which it is built, street frame.
      left_out: things for which the arrays had no room.
    """

    seed: int
    rung: str
    world: World
    ego: EgoPath
    actor_ids: tuple[str, ...]
    actor_sizes: np.ndarray
    actor_categories: np.ndarray
    style: dict[str, str]
    epochs: tuple[Epoch, ...] = ()
    extent: tuple[float, float] = ROAD_EXTENT
    left_out: int = 0

    def at(self, times: Float[np.ndarray, "n"]) -> list[tuple[Epoch, np.ndarray]]:
        """The arrays for some times, with the indices of the times they are for."""
        if not self.epochs:
            whole = Epoch(-np.inf, self.world, np.arange(len(self.actor_ids)))
            return [(whole, np.arange(len(times)))]
        starts = np.asarray([epoch.start for epoch in self.epochs])
        which = np.searchsorted(starts, times, side="right") - 1
        return [(self.epochs[i], np.flatnonzero(which == i)) for i in np.unique(which)]

    def _center_line(self, x):
        road = self.world.road
        return float(road.amplitude) * np.sin(float(road.wavenumber) * x + float(road.phase))

    def _slope(self, x):
        road = self.world.road
        k = float(road.wavenumber)
        return float(road.amplitude) * k * np.cos(k * x + float(road.phase))

    def _point(self, s: np.ndarray, lateral: np.ndarray) -> tuple[np.ndarray, ...]:
        """`geometry.road_point` in float64."""
        radius = self.world.road.radius
        if radius is None:
            return s, self._center_line(s) + lateral, np.arctan(self._slope(s))
        side, size = float(np.sign(radius)), abs(float(radius))
        angle, r = s / size, size - side * lateral
        return r * np.sin(angle), side * (size - r * np.cos(angle)), side * angle

    def street_from_ego(self, times: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t 4 4"]:
        """Ego poses in the street frame; the vehicle heads where its rear axle moves."""
        ego = self.ego
        x = ego.speed * times
        sway = ego.sway * np.sin(ego.rate * times + ego.phase)
        sway_rate = ego.sway * ego.rate * np.cos(ego.rate * times + ego.phase)
        if self.world.road.radius is None:
            yaw = np.arctan2(self._slope(x) * ego.speed + sway_rate, np.full_like(x, ego.speed))
            y = self._center_line(x) + ego.lane + sway
        else:
            x, y, yaw = self._point(x, ego.lane + sway)
            yaw = yaw + np.arctan2(sway_rate, ego.speed)
        return make_transform(yaw_rotation(yaw), np.stack([x, y, np.zeros_like(x)], -1))

    @property
    def world_from_street(self) -> Float[np.ndarray, "4 4"]:
        """From the internal street frame to the world: the ego frame at time zero."""
        return invert_transform(self.street_from_ego(np.zeros(1))[0])

    def world_from_ego(self, times: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t 4 4"]:
        """Ego poses in the world at seconds since the start."""
        return self.world_from_street @ self.street_from_ego(times)

    def tracks(self, times: Float[np.ndarray, "s"], start: float = 0.0) -> Tracks:
        """Boxes of all actors.

        Args:
          times: seconds since the start.
          start: added to the times of the result.
        """
        motion, valid = self._motion(times)
        positions = motion[..., :2] + motion[..., 2:4] * times[None, :, None]
        x, y, yaw = self._point(positions[..., 0], positions[..., 1])
        yaw = yaw + motion[..., 4]
        base = self.actor_base(positions[..., 1])
        z = base + self.actor_sizes[:, None, 2] / 2
        street_from_box = make_transform(yaw_rotation(yaw), np.stack([x, y, z], -1))
        world_from_box = self.world_from_street @ street_from_box
        return Tracks(
            times=start + times,
            centers=world_from_box[..., :3, 3],
            quats=matrix_to_quat(world_from_box[..., :3, :3]),
            sizes=np.asarray(self.actor_sizes, np.float64),
            valid=valid,
            category=np.asarray(self.actor_categories, np.int32),
            ids=self.actor_ids,
        )

    def _motion(self, times: Float[np.ndarray, "s"]) -> tuple[np.ndarray, np.ndarray]:
        """Rows (x, l at time zero, their velocities, heading) of all actors [A, S, 5], and whether
        they are there [A, S]; where they are not, the row of when they are."""
        count = len(self.actor_ids)
        motion = np.zeros((count, len(times), 5))
        valid = np.zeros((count, len(times)), bool)
        for epoch, columns in self.at(times):
            there = epoch.actors >= 0
            numbers = epoch.actors[there]
            rows = np.concatenate(
                [np.reshape(part, (len(part), -1)) for part in epoch.world.actors], axis=1
            ).astype(np.float64)[: len(there)][there]
            motion[numbers[:, None], columns] = rows[:, None]
            valid[numbers[:, None], columns] = True
        known = motion[np.arange(count), valid.argmax(1)] if len(times) else motion[:, :0]
        return np.where(valid[..., None], motion, known[:, None]), valid

    def actor_base(self, lateral: np.ndarray) -> np.ndarray:
        """Height of an actor's foot: people on the pavement stand on it from the first frame on."""
        on_pavement = np.abs(lateral[..., :1]) > float(self.world.road.half_width)
        return np.where(on_pavement, KERB_HEIGHT, 0.0) * np.ones_like(lateral)

    def lane_map(self) -> LaneMap:
        """Painted lines, road edges, lane centres and the crossing, in the world frame."""
        road = self.world.road
        lanes, half_width = float(road.lanes), float(road.half_width)
        x = np.arange(self.extent[0], self.extent[1] + 1e-3, MAP_SPACING)
        lines: list[np.ndarray] = []
        kinds: list[str] = []

        def line(lateral, kind, height=0.0):
            line_x, line_y, _ = self._point(x, np.full_like(x, lateral))
            lines.append(np.stack([line_x, line_y, np.full_like(x, height)], -1))
            kinds.append(kind)

        line(0.0, "lane_divider")
        if lanes > 1.5:
            line(LANE_WIDTH, "lane_divider")
            line(-LANE_WIDTH, "lane_divider")
        for side in (-1.0, 1.0):
            line(side * LANE_WIDTH * lanes, "lane_solid")
            line(side * half_width, "road_edge", KERB_HEIGHT)
            for lane in range(round(lanes)):
                line(side * LANE_WIDTH * (lane + 0.5), "centerline")
        crossings = {float(e.world.road.crosswalk) for e in self.epochs} | {float(road.crosswalk)}
        for middle in sorted(crossings):
            if not self.extent[0] < middle < self.extent[1]:
                continue
            reach, half = half_width - 0.3, CROSSWALK_LENGTH / 2
            corners = np.array([[-half, -reach], [half, -reach], [half, reach], [-half, reach]])
            corners = np.concatenate([corners, corners[:1]])
            cx, cy, _ = self._point(middle + corners[:, 0], corners[:, 1])
            lines.append(np.stack([cx, cy, np.zeros_like(cx)], -1))
            kinds.append("crosswalk")
        to_world = self.world_from_street
        return LaneMap(tuple(transform_points(to_world, p) for p in lines), tuple(kinds))


def split_of_seed(seed: int) -> str:
    """ "train" or "test": which split a seed belongs to (see `FIRST_TEST_SEED`)."""
    return "train" if seed < FIRST_TEST_SEED else "test"
