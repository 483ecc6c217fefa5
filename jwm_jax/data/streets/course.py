"""How a street goes on after its first `FIRST_SECONDS`, in arrays of the same size.

The first part of a street is built as a whole and lasts as long as its ego vehicle does not come
near its end. From then on the vehicle takes a window along, as long as the first part is: what lies
ahead comes into it, what lies behind leaves it. Every `STEP` metres the arrays change; a thing has
the same slot in them while it is there, and what does not fit is left out and counted. The end of
what is built comes nearer during the first part and then stays away as far as it is.

Sections of `SECTION` metres have generators of their own, so a street's beginning does not depend
on how long it is.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from jwm_jax.data.streets.appearance import LANE_WIDTH
from jwm_jax.data.streets.building import (
    MAX_ACTORS,
    MAX_ELLIPSOIDS,
    MAX_SOLIDS,
    Builder,
    add_car,
    add_houses,
    add_lamps,
    add_pedestrian,
    add_signs,
    add_trees,
    pack,
)
from jwm_jax.data.streets.papering import Paper
from jwm_jax.data.streets.street import (
    FIRST_SECONDS,
    ROAD_EXTENT,
    RUNGS,
    EgoPath,
    Epoch,
    Street,
)

MOST_SECONDS = 900.0
"""Seconds of the longest street."""

STEP = 8.0
"""Metres of the ego vehicle's way between changes of the arrays."""

SECTION = 100.0
"""Metres that are built together."""

CROSSING_EVERY = 320.0
"""Metres between crossings: more than a window, for the arrays know one."""


@dataclass
class _Thing:
    """Shapes that come and go together.

    Attributes:
        x: Where, in the street frame; of an actor at time zero.
        solids: Rows of `Builder.solids`.
        rounds: Rows of `Builder.rounds`.
        actor: Its row of `Builder.actors` and its number in the street, or None for what is fixed.
    """

    x: float
    solids: list[list]
    rounds: list[list]
    actor: tuple[list, int] | None = None

    def position(self, time: float) -> tuple[float, float]:
        """x and lateral offset; the latter 0 for what is fixed."""
        if self.actor is None:
            return self.x, 0.0
        x, lateral, vx, vl, _ = self.actor[0]
        return x + vx * time, lateral + vl * time


def continued(street: Street, first: Builder, paper: Paper | None, seconds: float) -> Street:
    """The street with all that comes after its first part.

    Args:
        street: Its first part.
        first: What that was built with.
        paper: Its photographs.
        seconds: For how long it shall last.
    """
    speed = street.ego.speed
    reach = speed * FIRST_SECONDS
    behind, ahead = reach - ROAD_EXTENT[0], ROAD_EXTENT[1] - reach
    end = speed * seconds + ahead
    slots = _Slots(_things(first, 0), street.ego)
    fresh: list[_Thing] = []
    builders = []
    for section in range(int(np.ceil((end - ROAD_EXTENT[1]) / SECTION))):
        b = _section(street, first, paper, section, ahead)
        before = len(first.ids) + sum(len(other.ids) for other in builders)
        fresh += [thing for thing, _ in _things(b, before)]
        builders.append(b)

    wide = float(first.road.half_width + first.road.pavement) + 0.5
    epochs = [Epoch(-np.inf, street.world, np.arange(len(street.actor_ids)))]
    for step in range(int(np.ceil((seconds - FIRST_SECONDS) * speed / STEP))):
        start = FIRST_SECONDS + step * STEP / speed
        low, high = speed * start - behind, speed * start + ahead

        def near(thing: _Thing, low=low, high=high, start=start) -> bool:
            x, lateral = thing.position(start)
            return low <= x <= high and abs(lateral) <= max(wide, abs(thing.position(0.0)[1]))

        slots.leave(near)
        coming = [thing for thing in fresh if near(thing)]
        fresh = [t for t in fresh if not near(t) and t.position(start)[0] > low]
        for thing in coming:
            slots.enter(thing)
        crossing = float(first.road.crosswalk)
        if crossing > ROAD_EXTENT[0]:
            crossing += CROSSING_EVERY * max(0.0, np.floor((high - crossing) / CROSSING_EVERY))
        road = first.road._replace(crosswalk=np.float32(crossing))
        world = pack(road, street.world.look, *slots.rows(), paper)
        epochs.append(Epoch(start, world, slots.actors()))
    whole = [first, *builders]
    return replace(
        street,
        epochs=tuple(epochs),
        extent=(ROAD_EXTENT[0], end),
        left_out=slots.left_out,
        actor_ids=tuple(f"{name.rsplit('_', 1)[0]}_{i}" for i, name in enumerate(_joined(whole))),
        actor_sizes=np.concatenate([np.reshape(b.sizes, (-1, 3)) for b in whole]).astype(float),
        actor_categories=np.concatenate([np.asarray(b.categories, np.int32) for b in whole]),
    )


def _joined(builders: Sequence[Builder]) -> list[str]:
    return [name for b in builders for name in b.ids]


def _section(
    street: Street, first: Builder, paper: Paper | None, section: int, ahead: float
) -> Builder:
    """Builds `SECTION` metres; what moves is where it is when it comes into view."""
    b = Builder(street.seed, street.rung)
    b.random = np.random.default_rng([street.seed, RUNGS.index(street.rung), 1 + section])
    b.road = first.road
    low = ROAD_EXTENT[1] + section * SECTION
    b.extent = (low, low + SECTION - 10.0)  # a house may reach over by that much
    add_houses(b)
    add_trees(b)
    b.extent = (low, low + SECTION + 40.0)  # lamps keep that far from an end
    if b.full:
        add_lamps(b)
    b.extent = (low, low + SECTION)
    lanes, half_width = round(float(b.road.lanes)), float(b.road.half_width)
    speed = street.ego.speed
    for _ in range(int(b.random.integers(1, 4 if b.full else 3))):  # they come towards us
        lane = 0.5 if lanes == 1 or b.random.random() < 0.6 else 1.5
        x, toward = b.uniform(low, low + SECTION), b.uniform(4, 8 if b.full else 5)
        when = (x - ahead) / speed
        lateral = lane * LANE_WIDTH + b.uniform(-0.2, 0.2)
        add_car(b, x + toward * when, lateral, -toward, np.pi)
    if half_width - LANE_WIDTH * lanes > 1:
        for side in (-1.0, 1.0):
            x = low + b.uniform(0, 12)
            while x < low + SECTION - 6:
                add_car(b, x, side * (half_width - 1.1), 0.0, 0.0 if side < 0 else np.pi)
                x += b.uniform(10, 30)
    for _ in range(int(b.random.integers(1, 4))):
        side, walk = b.pick((-1.0, 1.0)), b.pick((-1.0, 1.0)) * b.uniform(0.8, 1.6)
        lateral = side * (half_width + b.uniform(1.4, float(b.road.pavement) - 0.4))
        x = b.uniform(low, low + SECTION)
        add_pedestrian(b, x - walk * (x - ahead) / speed, lateral, walk, 0.0)
    if paper is not None:
        add_signs(b)
        paper = copy(paper)
        paper.random = b.random
        paper.cover(b.solids, b.rounds)
    return b


_Places = tuple[list[int], list[int], list[int]]
"""Slots in the arrays of solids, ellipsoids and actors."""


def _things(b: Builder, actors_before: int) -> list[tuple[_Thing, _Places]]:
    """What a builder holds, thing by thing, and where in its lists; an actor's shapes with it."""
    things = [
        (_Thing(row[0], [row], []), ([i], [], [])) for i, row in enumerate(b.solids) if row[9] == 0
    ]
    things += [
        (_Thing(row[0], [], [row]), ([], [i], [])) for i, row in enumerate(b.rounds) if row[6] == 0
    ]
    for number, actor in enumerate(b.actors):
        solids = [i for i, row in enumerate(b.solids) if row[9] == number + 1]
        rounds = [i for i, row in enumerate(b.rounds) if row[6] == number + 1]
        shapes = [b.solids[i] for i in solids], [b.rounds[i] for i in rounds]
        thing = _Thing(actor[0], *shapes, (actor, actors_before + number))
        things.append((thing, (solids, rounds, [number])))
    return things


def _driving_on(thing: _Thing, ego: EgoPath) -> None:
    """Whoever drives before the ego vehicle and slower drives a little faster than it from the end
    of the first part on, so that they never meet."""
    if thing.actor is None:
        return
    (x, lateral, vx, vl, heading), number = thing.actor
    faster = 1.05 * ego.speed
    if 0.0 < vx < faster and abs(lateral - ego.lane) < 1.0 and x > 0.0:
        row = [x + (vx - faster) * FIRST_SECONDS, lateral, faster, vl, heading]
        thing.actor = (row, number)


class _Slots:
    """Places in the arrays of a `World`; those of the first part are where its builder put them."""

    def __init__(self, things: list[tuple[_Thing, _Places]], ego: EgoPath) -> None:
        self.left_out = 0
        self._taken: list[tuple[_Thing, _Places]] = things
        self._free = [set(range(n)) for n in (MAX_SOLIDS, MAX_ELLIPSOIDS, MAX_ACTORS)]
        for thing, places in things:
            _driving_on(thing, ego)
            for free, slots in zip(self._free, places, strict=True):
                free.difference_update(slots)

    def enter(self, thing: _Thing) -> None:
        """Gives a thing the first free slots, or leaves it out."""
        needed = (len(thing.solids), len(thing.rounds), int(thing.actor is not None))
        if any(count > len(free) for count, free in zip(needed, self._free, strict=True)):
            self.left_out += 1
            return
        places = tuple(sorted(free)[:n] for n, free in zip(needed, self._free, strict=True))
        for free, slots in zip(self._free, places, strict=True):
            free.difference_update(slots)
        self._taken.append((thing, places))

    def leave(self, near: Callable[[_Thing], bool]) -> None:
        """Frees the slots of what is no longer near."""
        for thing, places in self._taken:
            if not near(thing):
                for free, slots in zip(self._free, places, strict=True):
                    free.update(slots)
        self._taken = [(thing, places) for thing, places in self._taken if near(thing)]

    def rows(self) -> tuple[list, list, list]:
        """Rows of solids, ellipsoids and actors, None where a slot is free."""
        solids: list = [None] * MAX_SOLIDS
        rounds: list = [None] * MAX_ELLIPSOIDS
        actors: list = [None] * MAX_ACTORS
        for thing, (own_solids, own_rounds, own_actor) in self._taken:
            owner = own_actor[0] + 1 if own_actor else 0
            for place, row in zip(own_solids, thing.solids, strict=True):
                solids[place] = [*row[:9], owner, *row[10:]]
            for place, row in zip(own_rounds, thing.rounds, strict=True):
                rounds[place] = [*row[:6], owner, *row[7:]]
            for place in own_actor:
                actors[place] = thing.actor[0]
        return solids, rounds, actors

    def actors(self) -> np.ndarray:
        """The street's number of the actor in every slot, -1 for none."""
        numbers = np.full(MAX_ACTORS, -1)
        for thing, (_, _, own_actor) in self._taken:
            numbers[own_actor] = thing.actor[1] if own_actor else -1
        return numbers
