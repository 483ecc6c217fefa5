"""One future, chunk by chunk: what a loop may close on.

    state = world.start(clip, seed=0)
    chunk, state = world.step(state, poses)          # again and again

The state is a pytree whose shapes do not depend on the horizon: a copy is a fork, and a file of it
goes on bitwise. It holds the scene with room for key frames, the generator's session, the vehicle's
newest pose and time, and where the next key frame's Gaussians go.
"""

import json
import time as clock
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jwm_jax.errors import DataError, UsageError
from jwm_jax.files import write_beside
from jwm_jax.joint.feedback import extend_scene, with_room
from jwm_jax.joint.prior import render_prior
from jwm_jax.reading import read_arrays
from jwm_jax.scene import (
    Camera,
    Clip,
    Intrinsics,
    LaneMap,
    Rig,
    Scene,
    Tracks,
    ego_motion,
    layout_frames,
)
from jwm_jax.scene.pytree import pytree_dataclass, static_field
from jwm_jax.worldgen import Conditions, WorldGen
from jwm_jax.worldgen.conditions import known_style, style_codes
from jwm_jax.worldgen.session import Session
from jwm_jax.worldrec import WorldRec, measured_depth

FRAME_SECONDS = 0.1
"""Between frames, for a clip of one instant."""


@dataclass(frozen=True)
class KeyFrames:
    """When generated frames go back into the scene.

    Attributes:
        every: The last frame of every n-th chunk may.
        holes: It does where at least this share of the prior below the horizon was open.
        room: Room for them in the scene, as a multiple of what WorldRec makes of one.
    """

    every: int = 1
    holes: float = 0.1
    room: int = 4

    def __post_init__(self) -> None:
        if self.every < 1 or self.room < 1 or not 0.0 <= self.holes <= 1.0:
            raise UsageError(
                "key frames need every and room of at least 1 and holes from 0 to 1, got "
                f"{self.every}, {self.room} and {self.holes}."
            )


@pytree_dataclass
class JointState:
    """Everything that carries over from one chunk to the next.

    Attributes:
        session: The generator's.
        scene: What the prior is drawn from; None without a prior.
        row: First row of the scene that the next key frame may write.
        chunks: Generated so far.
        pose: Newest ego pose, world from ego, metres.
        time: Its absolute seconds.
        interval: Seconds between frames.
        style: Codes of the generator's style properties.
        intrinsics: Of the cameras, one a view.
        mounts: Ego from camera, one a view.
        tracks: Boxes that the layout shows, on the absolute clock, or None.
        own: Those of the scene's things, in its order; None where it has none.
        lane_map: Or None.
        posed: Whether poses mean anything; without, there is no ego motion.
        names: Of the views.
        things: Names of the scene's things in its order; empty where they have none.
        key_frames: Or None for none.
    """

    session: Session
    scene: Scene | None
    row: np.int32
    chunks: np.int32
    pose: Float[np.ndarray, "4 4"]
    time: np.float64
    interval: np.float64
    style: Int[np.ndarray, " n"]
    intrinsics: tuple[Intrinsics, ...]
    mounts: Float[np.ndarray, "v 4 4"]
    tracks: Tracks | None = None
    own: Tracks | None = None
    lane_map: LaneMap | None = None
    posed: bool = static_field(default=True)
    names: tuple[str, ...] = static_field(default=())
    things: tuple[str, ...] = static_field(default=())
    key_frames: KeyFrames | None = static_field(default=None)

    @property
    def rig(self) -> Rig:
        """The cameras on the vehicle."""
        return Rig(self.names, self.intrinsics, self.mounts)

    def save(self, path: str | Path) -> Path:
        """Writes everything to one .npz file, which `load` reads.

        Raises:
            ResourceError: It cannot be written.
        """
        arrays, kinds = {}, {}
        for name, leaf in _leaves(self).items():
            kinds[name] = "key" if _is_key(leaf) else str(leaf.dtype)
            value = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
            arrays[name] = value.view(np.uint16) if kinds[name] == "bfloat16" else value
        about = json.dumps({"kinds": kinds, "fixed": _fixed(self)})
        path = Path(path)
        with write_beside(path) as file:
            np.savez(file, about=about, **arrays)
        return path

    def load(self, path: str | Path) -> "JointState":
        """The state of a file, given one of the same world and clip; boxes come from the file.

        Args:
            path: Written by `save`.

        Raises:
            DataError: It is missing or broken, or the state of another world or clip.
        """
        arrays = read_arrays(Path(path), {"about": "text"})
        try:
            about = json.loads(str(arrays.pop("about")))
            kinds, fixed = dict(about["kinds"]), about["fixed"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a saved state ({error}).") from error
        other = f"{path} is the state of another world or clip"
        if fixed != _fixed(self):
            odd = [name for name, value in _fixed(self).items() if fixed.get(name) != value]
            raise DataError(f"{other}: {', '.join(odd)} differ.")
        boxes = {name for name in arrays if name.startswith(_BOXES)}
        like = _without_boxes(self)
        own = _leaves(like)
        if arrays.keys() - boxes != own.keys() or kinds.keys() != arrays.keys():
            odd = sorted((arrays.keys() - boxes) ^ own.keys())
            raise DataError(f"{other}: {', '.join(odd[:4]) or 'its arrays'} differ.")
        leaves = [_restored(arrays[n], kinds[n], leaf, f"{other}: {n}") for n, leaf in own.items()]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        tracks = {}
        for prefix in _BOXES:
            fields = {n.removeprefix(prefix): arrays[n] for n in boxes if n.startswith(prefix)}
            tracks[prefix] = Tracks(**fields) if fields else None
        if state.scene is not None:
            state = replace(state, scene=replace(state.scene, tracks=tracks["scene.tracks."]))
        return replace(state, tracks=tracks["tracks."], own=tracks["own."])


_BOXES = ("tracks.", "own.", "scene.tracks.")
"""Prefixes of what a step may give another number and other times of."""


@dataclass(frozen=True)
class Chunk:
    """What one step shows and what the generator was told, T frames of V views.

    Attributes:
        frames: Generated pictures.
        times: Absolute seconds.
        prior: What the scene showed, or None without one.
        alpha: Where it showed anything, in [0, 1]; or None.
        layout: Boxes and lanes, or None.
        seconds: Spent on "prior", "generate" and "feedback".
        key_frame: Gaussians that a key frame added and those that did not fit; None if none went
            back.
        overflow: (splat, tile) pairs that did not fit into the rasterizer's capacity.
    """

    frames: UInt8[np.ndarray, "t v h w 3"]
    times: Float[np.ndarray, "t"]
    prior: Float[np.ndarray, "t v h w 3"] | None
    alpha: Float[np.ndarray, "t v h w"] | None
    layout: UInt8[np.ndarray, "t v h w 3"] | None
    seconds: dict[str, float]
    key_frame: tuple[int, int] | None
    overflow: int


def start_joint(
    rec: WorldRec,
    gen: WorldGen,
    clip: Clip,
    *,
    seed: int = 0,
    use_prior: bool = True,
    scene: Scene | None = None,
    tracks: Tracks | None = None,
    key_frames: KeyFrames | None = None,
) -> JointState:
    """See `JointWorldModel.start`."""
    if use_prior:
        clip.require_poses("a scene that guides the future")
    lens = clip.cameras[0]
    clip = clip.resized(*gen.config.picture_size(lens.height, lens.width))
    if not use_prior:
        scene = None
    elif scene is None:
        scene = jax.block_until_ready(rec(clip, measured_depth(clip)))
    row = 0
    if scene is not None and key_frames is not None:
        row = scene.gaussians.capacity
        size = rec.config.picture_size(*clip.images.shape[2:4])
        scene = with_room(scene, key_frames.room * rec.config.capacity(clip.num_views, *size))
    rig = clip.rig(clip.num_frames - 1)
    shown = clip.tracks if tracks is None else tracks
    style = style_codes(gen.config, known_style(gen.config, clip.style))
    layout = _layout(rig.cameras_at(clip.world_from_ego[-1:]), shown, clip.map, clip.times[-1:, 0])
    session = gen.start(
        clip.images[-1], rig, seed=seed, conditions=Conditions(layout=layout, style=style)
    )
    things = () if scene is None or scene.tracks is None else scene.tracks.ids
    between = np.diff(clip.times[:, 0])
    state = JointState(
        session=session,
        scene=scene,
        row=np.int32(row),
        chunks=np.int32(0),
        pose=np.asarray(clip.world_from_ego[-1], np.float64),
        time=np.float64(clip.times[-1, 0]),
        interval=np.float64(np.median(between) if len(between) else FRAME_SECONDS),
        style=style,
        intrinsics=rig.intrinsics,
        mounts=np.asarray(rig.ego_from_camera, np.float64),
        tracks=shown,
        own=None,
        lane_map=clip.map,
        posed=clip.posed,
        names=rig.names,
        things=things,
        key_frames=None if scene is None else key_frames,
    )
    if shown is None or scene is None or scene.tracks is None:
        return state
    if tracks is not None:
        return with_tracks(state, tracks)
    return replace(state, own=things_of(scene, shown))


def step_joint(
    rec: WorldRec,
    gen: WorldGen,
    state: JointState,
    poses: Float[np.ndarray, "t 4 4"],
    tracks: Tracks | None = None,
    times: Float[np.ndarray, "n"] | None = None,
    steps: int | None = None,
) -> tuple[Chunk, JointState]:
    """See `JointWorldModel.step`."""
    count = gen.config.frames_per_chunk
    poses = np.asarray(poses, np.float64)
    if poses.shape != (count, 4, 4) or not np.isfinite(poses).all():
        raise DataError(
            f"step: a chunk needs {count} finite poses [4, 4], got an array of shape {poses.shape}."
        )
    if times is None:
        times = state.time + state.interval * np.arange(1, count + 1)
    times = np.asarray(times, np.float64)
    after = np.diff([state.time, *times.ravel()]) if state.posed else np.diff(times.ravel())
    if times.shape != (count,) or not (np.isfinite(times).all() and (after > 0).all()):
        raise DataError(
            f"step: the {count} times of a chunk should rise from after {state.time:g} s, got "
            f"{times.tolist()}."
        )
    state = with_tracks(state, tracks)
    cameras = state.rig.cameras_at(poses)
    layout = _layout(cameras, state.tracks, state.lane_map, times)
    seconds, prior, alpha, overflow = {}, None, None, 0
    if state.scene is not None:
        start = clock.perf_counter()
        prior, alpha, overflow = _prior(state.scene, cameras, times)
        seconds["prior"] = clock.perf_counter() - start
    motion = None
    if state.posed:
        motion = ego_motion(np.stack([state.pose, *poses]), np.asarray([state.time, *times]))
    start = clock.perf_counter()
    given = Conditions(
        layout=layout, prior=prior, prior_alpha=alpha, ego_motion=motion, style=state.style
    )
    frames, session = gen.step(state.session, given, steps=steps)
    frames = as_bytes(np.asarray(frames))
    seconds["generate"] = clock.perf_counter() - start
    state = replace(
        state,
        session=session,
        chunks=state.chunks + np.int32(1),
        pose=poses[-1].copy(),
        time=np.float64(times[-1]),
    )
    key_frame = None
    if _goes_back(state, alpha):
        start = clock.perf_counter()
        last = tuple(camera.at(count - 1) for camera in cameras)
        scene, added, unfit = extend_scene(
            rec,
            state.scene,
            frames[:, -1],
            last,
            poses[-1],
            float(times[-1]),
            state.own,
            int(state.row),
        )
        state = replace(state, scene=scene, row=state.row + np.int32(added))
        key_frame = (added, unfit)
        seconds["feedback"] = clock.perf_counter() - start
    chunk = Chunk(
        frames=_frames_first(frames),
        times=times,
        prior=None if prior is None else _frames_first(prior),
        alpha=None if alpha is None else _frames_first(alpha),
        layout=None if layout is None else _frames_first(layout),
        seconds=seconds,
        key_frame=key_frame,
        overflow=overflow,
    )
    return chunk, state


def with_tracks(state: JointState, tracks: Tracks | None) -> JointState:
    """The state with other boxes, which the scene's things follow; None changes nothing."""
    if tracks is None:
        return state
    state = replace(state, tracks=tracks)
    scene = state.scene
    if scene is None or scene.tracks is None:
        return state
    named = replace(scene, tracks=replace(scene.tracks, ids=state.things))
    own = things_of(named, tracks)
    moved = own.on_device(scene.start, scene.tracks.num_tracks)
    return replace(state, own=own, scene=replace(scene, tracks=moved))


def things_of(scene: Scene, tracks: Tracks) -> Tracks:
    """The tracks of a scene's own things, in the scene's order.

    Args:
        scene: Reconstructed with tracks.
        tracks: Host tracks; the scene's things are found by id. Without ids on either side they
            are taken in their order.

    Returns:
        One track a thing of the scene; a thing that `tracks` does not have is never there.

    Raises:
        DataError: Without ids, there are more tracks than the scene has things.
    """
    ids = scene.tracks.ids
    if not ids or not tracks.ids:
        if tracks.num_tracks > scene.tracks.num_tracks:
            raise DataError(
                f"rollout: {tracks.num_tracks} tracks without ids cannot be told apart in a scene "
                f"of {scene.tracks.num_tracks} things; give them the ids of the clip's tracks."
            )
        return tracks
    place = {name: i for i, name in enumerate(tracks.ids)}
    known = np.asarray([name in place for name in ids])
    found = tracks.select(np.asarray([place.get(name, 0) for name in ids]))
    return replace(found, valid=np.asarray(found.valid) & known[:, None], ids=ids)


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as uint8."""
    return np.round(np.clip(pictures, 0.0, 1.0) * 255.0).astype(np.uint8)


def _layout(
    cameras: tuple[Camera, ...], tracks: Tracks | None, lane_map: LaneMap | None, times: Any
) -> np.ndarray | None:
    """Layout frames [V, T, H, W, 3] of cameras that all see the same instants, or None."""
    return layout_frames(cameras, tracks, lane_map, np.stack([times] * len(cameras), axis=1))


def _prior(
    scene: Scene, cameras: tuple[Camera, ...], times: Any
) -> tuple[np.ndarray, np.ndarray, int]:
    """Prior pictures [V, T, H, W, 3], their alpha [V, T, H, W], and pairs that did not fit."""
    when = (np.asarray(times) - scene.start).astype(np.float32)
    drawn = [render_prior(scene, camera, when) for camera in cameras]
    left_out = sum(int(p.overflow.sum()) for p in drawn)
    return np.stack([p.rgb for p in drawn]), np.stack([p.alpha for p in drawn]), left_out


def _goes_back(state: JointState, alpha: np.ndarray | None) -> bool:
    """Whether the newest chunk's last frame extends the scene."""
    chosen = state.key_frames
    if chosen is None or alpha is None or state.chunks % chosen.every:
        return False
    open_share = 1 - alpha[:, -1, alpha.shape[2] // 2 :].mean()
    return bool(open_share >= chosen.holes)


def _frames_first(pictures: np.ndarray) -> np.ndarray:
    """[V, T, ...] to [T, V, ...]."""
    return np.asarray(pictures).swapaxes(0, 1)


def _leaves(state: JointState) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_boxes(state: JointState) -> JointState:
    scene = None if state.scene is None else replace(state.scene, tracks=None)
    return replace(state, tracks=None, own=None, scene=scene)


def _fixed(state: JointState) -> dict[str, Any]:
    """What of a state is no array, for JSON."""
    frames = state.key_frames
    return {
        "posed": state.posed,
        "names": list(state.names),
        "things": list(state.things),
        "key_frames": None if frames is None else [frames.every, frames.holes, frames.room],
        "sizes": [[lens.height, lens.width] for lens in state.intrinsics],
        "scene": None if state.scene is None else [state.scene.start, state.scene.tau],
        "leading": state.session.leading,
    }


def _restored(value: np.ndarray, kind: str, like: Any, what: str) -> Any:
    """An array of a file as the leaf it was.

    Raises:
        DataError: It has another shape or type than the leaf `like` has.
    """
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(value))
    value = value.view(jnp.bfloat16) if kind == "bfloat16" else value
    if value.shape != like.shape or value.dtype != like.dtype:
        raise DataError(f"{what} is {value.dtype}{value.shape}, not {like.dtype}{like.shape}.")
    return jnp.asarray(value) if isinstance(like, jax.Array) else value[()]
