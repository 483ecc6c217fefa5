"""Clips of procedural streets: a rig driven along a street, with every kind of ground truth.

clip = load_procedural("procedural:full:SEED?frames=25&views=front&rate=10")
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jwm_jax.data.specs import number, split_options, switch, whole_number
from jwm_jax.data.streets.generate import make_street
from jwm_jax.data.streets.render import LIDAR_MOUNT, Picture, render_world, scan_world
from jwm_jax.data.streets.street import FIRST_SECONDS, Street
from jwm_jax.errors import UsageError
from jwm_jax.scene import (
    EGO_FROM_OPENCV,
    Camera,
    Clip,
    Intrinsics,
    Rig,
    invert_transform,
    make_transform,
    yaw_rotation,
)

FIELD_OF_VIEW = 70.0
"""Horizontal, degrees, of every camera of the rig."""

PITCH = 3.0
"""Degrees that the cameras look down."""

CAMERA_HEIGHT = 1.6
"""Metres above the road."""

VIEW_YAWS = {
    "front_left": 55.0,
    "front": 0.0,
    "front_right": -55.0,
    "back_left": 115.0,
    "back": 180.0,
    "back_right": -115.0,
}
"""Views that a rig can have, and where they look: degrees to the left."""

DEFAULT_VIEWS = ("front_left", "front", "front_right")

LIDAR_BEAMS, LIDAR_AZIMUTHS = 24, 240


def make_rig(views: Sequence[str] = DEFAULT_VIEWS, height: int = 96, width: int = 160) -> Rig:
    """The streets' camera rig: pinhole cameras on a ring of 0.5 m around a point above the hood.

    Raises:
      UsageError: no view, or an unknown one.
    """
    unknown = [v for v in views if v not in VIEW_YAWS]
    if unknown or not views:
        raise UsageError(
            f"procedural streets: expected views out of {tuple(VIEW_YAWS)}, got {tuple(views)}."
        )
    focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    K = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    pitch = np.radians(PITCH)
    # Looking down turns the forward axis towards the ground: a rotation about y (left).
    down = np.array(
        [
            [np.cos(pitch), 0.0, np.sin(pitch)],
            [0.0, 1.0, 0.0],
            [-np.sin(pitch), 0.0, np.cos(pitch)],
        ]
    )
    poses = []
    for view in views:
        turn = yaw_rotation(np.asarray(np.radians(VIEW_YAWS[view])))
        position = np.array([1.2, 0.0, CAMERA_HEIGHT]) + turn @ np.array([0.5, 0.0, 0.0])
        poses.append(make_transform(turn @ down, position) @ EGO_FROM_OPENCV)
    intrinsics = tuple(Intrinsics(K=K.copy(), width=width, height=height) for _ in views)
    return Rig(tuple(views), intrinsics, np.stack(poses))


def render(
    street: Street,
    K: Float[np.ndarray, "*n 3 3"],
    world_from_camera: Float[np.ndarray, "n 4 4"],
    times: Float[np.ndarray, "n"],
    *,
    width: int,
    height: int,
) -> Picture:
    """Pictures of a street from n pinhole cameras at any pose, each at its own time.

    Args:
      street: from `make_street`.
      K: one camera matrix, or one a camera, in pixels.
      world_from_camera: poses in the world (ego frame at time zero), OpenCV axes, above the ground.
      times: seconds since the start.
      width: columns.
      height: rows.

    Returns:
      Host arrays: rgb, planar depth of the pixel centres (0 = sky), class ids, instance ids.
    """
    street_from_camera = invert_transform(street.world_from_street) @ world_from_camera
    count = len(times)
    K = np.broadcast_to(K, (count, 3, 3)).astype(np.float32)
    parts, order = [], []
    for epoch, rows in street.at(times):
        picture = render_world(
            epoch.world,
            K[rows],
            street_from_camera[rows].astype(np.float32),
            times[rows].astype(np.float32),
            width=width,
            height=height,
        )
        names = np.concatenate([[0], epoch.actors + 1])
        small = np.uint8 if len(street.actor_ids) < 255 else np.uint16
        parts.append(picture._replace(instances=names[picture.instances].astype(small)))
        order.append(rows)
    back = np.argsort(np.concatenate(order))
    return Picture(*(np.concatenate(part)[back] for part in zip(*parts, strict=True)))


def render_views(
    street: Street, cameras: Sequence[Camera], times: Float[np.ndarray, "n"]
) -> Picture:
    """Ground truth for views that nobody drove: lane shifts, frozen time, counterfactual ways.

    Args:
      street: from `make_street`.
      cameras: n cameras of one size, in the world of the street's clips.
      times: seconds since the start, one a camera.

    Raises:
      UsageError: cameras of different sizes.
    """
    sizes = {(c.height, c.width) for c in cameras}
    if len(sizes) != 1:
        raise UsageError(f"render_views: expected cameras of one size, got {sorted(sizes)}.")
    ((height, width),) = sizes
    return render(
        street,
        np.stack([np.asarray(c.K, np.float64) for c in cameras]),
        np.stack([np.asarray(c.world_from_camera, np.float64) for c in cameras]),
        times,
        width=width,
        height=height,
    )


def scan_lidar(
    street: Street,
    times: Float[np.ndarray, "t"],
    beams: int = LIDAR_BEAMS,
    azimuths: int = LIDAR_AZIMUTHS,
) -> tuple[np.ndarray, ...]:
    """Simulated spins, one an instant: float32 [P, 4] of x, y, z in that instant's ego frame and
    intensity in [0, 1]; beams that return nothing are left out."""
    ego_from_lidar = make_transform(np.eye(3), np.asarray(LIDAR_MOUNT))
    poses = street.street_from_ego(times) @ ego_from_lidar
    spins: list[np.ndarray] = [np.zeros(0)] * len(times)
    for epoch, rows in street.at(times):
        unit, distance, strength = scan_world(
            epoch.world,
            poses[rows].astype(np.float32),
            times[rows].astype(np.float32),
            beams=beams,
            azimuths=azimuths,
        )
        points = unit * distance[..., None] + np.asarray(LIDAR_MOUNT, np.float32)
        whole = np.concatenate([points, strength[..., None]], -1).astype(np.float32)
        for row, spin, r in zip(rows, whole, distance, strict=True):
            spins[row] = spin[r > 0]
    return tuple(spins)


def make_clip(
    seed: int,
    rung: str = "easy",
    num_frames: int = 25,
    rate: float = 10.0,
    height: int = 96,
    width: int = 160,
    views: Sequence[str] = DEFAULT_VIEWS,
    loop: bool = False,
) -> Clip:
    """A drive along the street of a seed with images, depth, boxes, lane map, lidar and style.

    Args:
      seed: see `make_street`.
      rung: one of `RUNGS`.
      num_frames: instants, 1 or more.
      rate: instants a second.
      height: rows of every picture.
      width: columns.
      views: names out of `VIEW_YAWS`.
      loop: whether the street is a closed course.

    Raises:
      UsageError: an unknown rung or view, or a size, rate or number of frames that is not positive.
    """
    for name, value in (
        ("frames", num_frames), ("rate", rate), ("height", height), ("width", width)
    ):  # fmt: skip
        if not value > 0:
            raise UsageError(f"procedural streets: {name} must be positive, got {value}.")
    times = np.arange(num_frames) / rate
    street = make_street(seed, rung, float(times[-1]), loop)
    rig = make_rig(views, height, width)
    world_from_ego = street.world_from_ego(times)
    poses = world_from_ego[:, None] @ rig.ego_from_camera
    count = len(views)
    picture = render(
        street,
        rig.intrinsics[0].K,
        poses.reshape(-1, 4, 4),
        np.repeat(times, count),
        width=width,
        height=height,
    )
    shape = (num_frames, count, height, width)
    rgb, depth = picture.rgb.reshape(*shape, 3), picture.depth.reshape(shape)
    return Clip(
        images=tuple(np.ascontiguousarray(rgb[:, v]) for v in range(count)),
        times=np.repeat(times[:, None], count, axis=1),
        world_from_ego=world_from_ego,
        world_from_camera=poses,
        cameras=rig.intrinsics,
        view_names=rig.names,
        lidar=scan_lidar(street, times),
        tracks=street.tracks(times),
        map=street.lane_map(),
        style=dict(street.style),
        depth=tuple(np.ascontiguousarray(depth[:, v]) for v in range(count)),
        name=_name(seed, rung, num_frames, rate, loop),
    )


def _name(seed: int, rung: str, num_frames: int, rate: float, loop: bool) -> str:
    """A spec of the street, for `true_views`."""
    options = []
    if (num_frames - 1) / rate > FIRST_SECONDS:
        options += [f"frames={num_frames}", f"rate={rate:g}"]
    if loop:
        options.append("loop=1")
    return f"procedural:{rung}:{seed}" + ("?" + "&".join(options) if options else "")


def parse_spec(spec: str) -> dict[str, object]:
    """Arguments of `make_clip` from "procedural:RUNG:SEED?frames=25&views=front&rate=10".

    Options: frames, rate, height, width, views (names joined by commas), loop (0 or 1).

    Raises:
      UsageError: the text does not follow the form.
    """
    readers = {
        "frames": whole_number(1),
        "rate": number(0.0),
        "loop": switch,
        "height": whole_number(1),
        "width": whole_number(1),
        "views": lambda text: tuple(text.split(",")),
    }
    body, given = split_options("clip", spec, readers)
    rung, _, seed = body.removeprefix("procedural:").partition(":")
    if not seed.isdigit():
        form = "procedural:RUNG:SEED (easy, full or photo), perhaps ?frames=25&views=front&rate=10"
        raise UsageError(f"clip {spec!r}: expected {form}.")
    if "frames" in given:
        given["num_frames"] = given.pop("frames")
    return {"rung": rung, "seed": int(seed)} | given


def true_views(
    spec: str, cameras: Sequence[Camera], times: Float[np.ndarray, "n"]
) -> Picture | None:
    """Ground truth for views that nobody drove, or None for a drive that is no procedural street.

    Args:
      spec: where a clip comes from, or its name.
      cameras: see `render_views`.
      times: see `render_views`.
    """
    if not spec.startswith("procedural:"):
        return None
    return render_views(_street_of(spec), cameras, times)


def left_out(spec: str) -> int:
    """Things for which a long street's arrays had no room, and which are missing in it.

    Args:
      spec: of a procedural street, or the name of its clip.
    """
    return _street_of(spec).left_out


def _street_of(spec: str) -> Street:
    arguments = parse_spec(spec)
    seconds = (arguments.get("num_frames", 1) - 1) / arguments.get("rate", 10.0)
    return make_street(arguments["seed"], arguments["rung"], seconds, arguments.get("loop", False))


def load_procedural(spec: str) -> Clip:
    """The clip of a spec, see `parse_spec`."""
    return make_clip(**parse_spec(spec))
