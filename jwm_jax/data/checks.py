"""What can be wrong with a clip, in sentences; and how many frames the generator can use.

A finding is an error where nothing sensible can be computed from the clip, and a warning where
something looks like a mixed-up convention but may be real.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jwm_jax.errors import DataError, UsageError
from jwm_jax.scene.cameras import Intrinsics, inside_image
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.tracks import CATEGORIES
from jwm_jax.scene.transforms import transform_points

ROTATION_TOLERANCE = 1e-3
"""Largest entry of R^T R - I that still counts as a rotation; calibration files carry 7 digits."""

MIN_FRAMES = 9
"""Fewest frames from which a future can be generated and judged: 1 + 4 * 2."""

_FASTEST = 80.0  # metres a second
_CROOKED_GROUND = 1.0  # metres
_OFF_CENTRE = 0.25  # of the image's width or height
_OTHER_SIZE = 0.06  # by how much both halves of an image and its principal point differ
_TURNED = 0.12  # the same, where one is too large and the other too small
_SKEWED = 0.01  # pixels
_LONGEST_GAP = 10.0  # seconds between frames of a drive
_SHORTEST_GAP = 1e-3
_LATEST = 1e11  # seconds since 1970: the year 5138
_NO_MOTION = 0.5  # metres
_REVERSED = 0.9  # of the way driven along the vehicle


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or strange.

    Attributes:
        severity: "error" or "warning".
        message: A sentence that names the field, what was expected and what came.
    """

    severity: str
    message: str


def check_clip(clip: Clip) -> list[Finding]:
    """Everything that is wrong with a clip, errors first."""
    findings = [
        *map(_warning, clip.notes),
        *_check_shapes(clip),
        *_check_images(clip),
        *_check_times(clip),
        *_check_cameras(clip),
        *_check_poses(clip),
        *_check_lidar(clip),
        *_check_tracks(clip),
    ]
    return sorted(findings, key=lambda finding: finding.severity)


def validate(clip: Clip) -> Clip:
    """The clip, if nothing is broken.

    Raises:
        DataError: With the first two errors of `check_clip`.
    """
    errors = [f.message for f in check_clip(clip) if f.severity == "error"]
    if errors:
        more = f" ({len(errors) - 2} more; see `jwm data check`.)" if len(errors) > 2 else ""
        raise DataError(f"{clip.name}: " + " ".join(errors[:2]) + more)
    return clip


def trim_frames(clip: Clip, limit: int | None = None, say: Callable[[str], None] = print) -> Clip:
    """The clip's first 1 + 4k frames, which is what the video codec takes.

    Args:
        clip: At least `MIN_FRAMES` frames.
        limit: Most frames wanted, or None.
        say: Told in a sentence what was left out, if anything was.

    Raises:
        DataError: The clip has fewer than `MIN_FRAMES` frames.
        UsageError: The limit is below `MIN_FRAMES`.
    """
    have = clip.num_frames
    if limit is not None and limit < MIN_FRAMES:
        raise UsageError(f"{limit} frames were asked for; generating needs at least {MIN_FRAMES}.")
    if have < MIN_FRAMES:
        raise DataError(
            f"{clip.name} has {have} frame{'s' * (have != 1)}; generating needs at least "
            f"{MIN_FRAMES}. Use a longer drive (`jwm reconstruct` accepts a single instant)."
        )
    wanted = have if limit is None else min(have, limit)
    keep = 1 + 4 * ((wanted - 1) // 4)
    if keep == have:
        return clip
    why = "" if keep == wanted else ": the video model takes 1 + 4k frames"
    say(f"Using the first {keep} of {have} frames{why}.")
    return clip.select(slice(0, keep))


def require_rigid(matrix: np.ndarray, where: str) -> np.ndarray:
    """The [..., 4, 4] or [..., 3, 3] matrix as float64, if its rotation is one.

    Raises:
        DataError: Wrong shape, not finite, or not orthonormal with determinant +1.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape[-2:] not in ((3, 3), (4, 4)):
        raise DataError(f"{where}: expected 3x3 or 4x4 matrices, got shape {list(matrix.shape)}.")
    problem = _rotation_problem(matrix)
    if problem:
        raise DataError(f"{where}: {problem}.")
    return matrix


def _rotation_problem(matrix: np.ndarray) -> str | None:
    """Why the rotations of [..., n, n] matrices are none, or None."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    broken = ~np.isfinite(flat).all(axis=(1, 2))
    if broken.any():
        return f"holds NaN or infinity ({_which(broken)})"
    if matrix.shape[-1] == 4 and not np.allclose(flat[:, 3], [0, 0, 0, 1], atol=1e-6):
        return "the last row of a pose must be 0 0 0 1"
    rotation = flat[:, :3, :3]
    error = np.abs(rotation.swapaxes(1, 2) @ rotation - np.eye(3)).max(axis=(1, 2))
    mirrored = np.linalg.det(rotation) < 0
    if (error > ROTATION_TOLERANCE).any():
        return (
            f"is not a rotation: R^T R differs from the identity by {error.max():.3g} "
            f"({_which(error > ROTATION_TOLERANCE)})"
        )
    if mirrored.any():
        return f"is mirrored: its determinant is -1, expected +1 ({_which(mirrored)})"
    return None


def _which(mask: np.ndarray) -> str:
    """ "matrix 3" or "matrices 3 to 7" or so."""
    index = np.flatnonzero(mask)
    if mask.size == 1:
        return "the only matrix"
    if index.size == 1:
        return f"matrix {index[0]} of {mask.size}"
    return f"{index.size} of {mask.size} matrices, the first is {index[0]}"


def _error(message: str) -> Finding:
    return Finding("error", message)


def _warning(message: str) -> Finding:
    return Finding("warning", message)


def _check_shapes(clip: Clip):
    frames, views = clip.times.shape
    expected = {
        "world_from_ego": (clip.world_from_ego.shape, (frames, 4, 4)),
        "world_from_camera": (clip.world_from_camera.shape, (frames, views, 4, 4)),
    }
    for field, (got, want) in expected.items():
        if got != want:
            yield _error(f"{field} has shape {list(got)}, expected {list(want)}.")
    counts = {
        "cameras": len(clip.cameras),
        "view_names": len(clip.view_names),
    }
    for field, got in counts.items():
        if got != views:
            yield _error(f"{field} holds {got} entries for {views} views.")
    if len(set(clip.view_names)) != len(clip.view_names):
        yield _error(f"two views have the same name: {', '.join(clip.view_names)}.")
    if clip.lidar is not None and len(clip.lidar) != frames:
        yield _error(f"lidar holds {len(clip.lidar)} scans for {frames} frames.")
    if frames == 0:
        yield _error("there are no frames.")


def _check_images(clip: Clip):
    for v, name in enumerate(clip.view_names):
        images = clip.view(v)
        lens = clip.cameras[v]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            yield _error(
                f"images of view {name!r} are {images.dtype} {list(images.shape)}, expected uint8 "
                "[T, h, w, 3]."
            )
            continue
        if images.shape[0] != clip.num_frames:
            yield _error(
                f"view {name!r} has {images.shape[0]} images for {clip.num_frames} frames."
            )
        if images.shape[1:3] != (lens.height, lens.width):
            yield _error(
                f"images of view {name!r} are {images.shape[2]}x{images.shape[1]} pixels, but its "
                f"calibration is for {lens.width}x{lens.height}, which is no plain resize: give "
                "the K and the size of these images."
            )
        dark = [t for t, image in enumerate(images) if image[::8, ::8].max(initial=0) < 8]
        if dark:
            yield _warning(
                f"{len(dark)} images of view {name!r} are black, the first is {dark[0]}."
            )


def _check_times(clip: Clip):
    if not np.isfinite(clip.times).all():
        yield _error("times hold NaN or infinity.")
        return
    for v, name in enumerate(clip.view_names):
        backward = np.flatnonzero(np.diff(clip.times[:, v]) <= 0)
        if backward.size:
            t = int(backward[0])
            yield _error(
                f"times of view {name!r} are out of order: frame {t + 1} at "
                f"{clip.times[t + 1, v]:.6f} s does not come after frame {t} at "
                f"{clip.times[t, v]:.6f} s."
            )
    yield from _check_unit(clip)
    steps = np.diff(clip.times[:, 0])
    if steps.size > 1 and steps.min() > 0 and steps.max() > 2.5 * np.median(steps):
        yield _warning(
            f"frames are missing: after frame {int(steps.argmax())} there is a gap of "
            f"{steps.max():.2f} s where {np.median(steps):.2f} s are usual."
        )


def _check_unit(clip: Clip):
    """Times that are no seconds: the first sign of it is enough."""

    def other_unit(what: str, seconds: float, units=(1e4, 1e7)) -> Finding:
        place = int(np.searchsorted(units, abs(seconds)))
        unit, factor = (("milli", "1000"), ("micro", "1e6"), ("nano", "1e9"))[place]
        return _error(
            f"{what}, which looks like {unit}seconds: times are in seconds, divide them by "
            f"{factor}."
        )

    columns = {f"view {n!r}": c for n, c in zip(clip.view_names, clip.times.T, strict=False)}
    if clip.tracks is not None:
        columns["the tracks"] = np.asarray(clip.tracks.times)
    gaps = {name: float(np.median(np.diff(c))) for name, c in columns.items() if len(c) > 1}
    long = [name for name, gap in gaps.items() if gap > _LONGEST_GAP]
    spread = float(np.ptp(clip.times, axis=1).max(initial=0))
    latest = max((float(np.abs(c).max()) for c in columns.values() if len(c)), default=0.0)
    if long:
        gap = gaps[long[0]]
        what = f"times of {', '.join(long)} are {gap:.4g} s apart (the median gap)"
        yield other_unit(what, gap)
    elif spread > _LONGEST_GAP:
        yield other_unit(f"times of the views at one frame are up to {spread:.4g} s apart", spread)
    elif latest > _LATEST:
        yield other_unit(f"there is a time of {latest:.4g} seconds", latest, (1e14, 1e17))
    elif clip.num_frames > 1 and 0 < gaps[f"view {clip.view_names[0]!r}"] < _SHORTEST_GAP:
        yield _warning(
            f"the clip has {clip.rate:.3g} frames a second; times may be in another unit than "
            "seconds."
        )


def _check_cameras(clip: Clip):
    for lens, name in zip(clip.cameras, clip.view_names, strict=False):
        K = np.asarray(lens.K, np.float64)
        if not np.isfinite(K).all():
            yield _error(f"K of view {name!r} holds NaN or infinity.")
        elif K[0, 0] <= 0 or K[1, 1] <= 0:
            yield _error(
                f"K of view {name!r} has focal lengths {K[0, 0]:.4g} and {K[1, 1]:.4g} pixels; "
                "both must be positive."
            )
        elif not np.allclose(K[2], [0, 0, 1], atol=1e-9):
            yield _error(f"the last row of K of view {name!r} must be 0 0 1, got {K[2].tolist()}.")
        elif _skew(lens) > _SKEWED:
            yield _error(
                f"K of view {name!r} has a skew of {K[0, 1]:.4g} (and {K[1, 0]:.4g} below it), "
                "which is not drawn; both must be 0. Rectify the images to a camera without skew."
            )
        elif _of_another_size(lens):
            width, height = 2 * K[0, 2], 2 * K[1, 2]
            yield _warning(
                f"the principal point of view {name!r}, ({K[0, 2]:.1f}, {K[1, 2]:.1f}), is far "
                f"from the centre of its {lens.width}x{lens.height} image; K may belong to another "
                f"size, such as {width:.0f}x{height:.0f}. Then multiply its first row by "
                f"{lens.width}/{width:.0f} and its second by {lens.height}/{height:.0f}."
            )


def _skew(lens: Intrinsics) -> float:
    """Pixels by which the entries of K beside its diagonal move the edge of the image."""
    K = np.asarray(lens.K, np.float64)
    across = abs(K[0, 1]) * lens.height / (2 * K[1, 1])
    return float(max(across, abs(K[1, 0]) * lens.width / (2 * K[0, 0])))


def _of_another_size(lens: Intrinsics) -> bool:
    """Whether K looks like that of a larger, smaller or turned picture, by its principal point."""
    K = np.asarray(lens.K, np.float64)
    across, down = 2 * K[0, 2] / lens.width - 1, 2 * K[1, 2] / lens.height - 1
    less, more = sorted((abs(across), abs(down)))
    limit = _OTHER_SIZE if across * down > 0 else _TURNED
    return bool(more > 2 * _OFF_CENTRE or less > limit)


def _check_poses(clip: Clip):
    broken = False
    for field in ("world_from_ego", "world_from_camera"):
        problem = _rotation_problem(getattr(clip, field))
        if problem:
            broken = True
            yield _error(f"{field} {problem}.")
    if broken or clip.world_from_ego.shape[0] != clip.num_frames:
        return
    upside_down = clip.world_from_camera[0, :, 2, 1] > 0.2
    for v in np.flatnonzero(upside_down):
        yield _warning(
            f"view {clip.view_names[v]!r} is upside down: its image rows run upward in the world; "
            "cameras are x right, y down, z forward and world is z up."
        )
    steps = np.diff(clip.times[:, 0])
    if steps.size and (steps > 0).all():
        speed = np.linalg.norm(np.diff(clip.world_from_ego[:, :3, 3], axis=0), axis=1) / steps
        if speed.max() > _FASTEST:
            yield _warning(
                f"the ego moves at {speed.max():.0f} m/s after frame {int(speed.argmax())}; poses "
                "or times may be in other units than metres and seconds."
            )
    yield from _check_direction(clip)
    away = np.abs(clip.world_from_ego[0] - np.eye(4)).max()
    if away > 1e-6:
        yield _warning("the world is not the ego frame of the first frame.")


def _check_direction(clip: Clip):
    """A car that never drives forward has cameras whose z axis points backward."""
    moved = np.diff(clip.world_from_ego[:, :3, 3], axis=0)
    forward = np.einsum("ti,ti->t", moved, clip.world_from_ego[:-1, :3, 0])
    driven = float(np.linalg.norm(moved, axis=1).sum())
    backward = float(-forward[forward < 0].sum())
    along = float(np.abs(forward).sum())
    if driven > _NO_MOTION and backward > max(_REVERSED * along, driven / 2):
        yield _warning(
            f"the vehicle drives backward all the way ({backward:.1f} m). Camera poses may be in "
            "the convention of OpenGL and NeRF (x right, y up, z back): multiply each from the "
            "right by diag(1, -1, -1, 1). If the camera looks backward, give its ego_from_camera."
        )


def _check_lidar(clip: Clip):
    if clip.lidar is None or len(clip.lidar) != clip.num_frames:
        return
    bad = [t for t, scan in enumerate(clip.lidar) if not np.isfinite(scan).all()]
    if bad:
        yield _error(f"{len(bad)} lidar scans hold NaN or infinity, the first is scan {bad[0]}.")
        return
    empty = [t for t, scan in enumerate(clip.lidar) if len(scan) == 0]
    if empty:
        yield _warning(f"{len(empty)} of {clip.num_frames} lidar scans are empty.")
    scan = clip.lidar[0]
    near = scan[(np.abs(scan[:, 1]) < 3) & (np.abs(scan[:, 0]) > 4) & (np.abs(scan[:, 0]) < 15)]
    if len(near) > 100:
        ground = float(np.percentile(near[:, 2], 10))
        if abs(ground) > _CROOKED_GROUND:
            yield _warning(
                f"the ground around the vehicle lies at z = {ground:.1f} m in lidar points; the "
                "ego frame has its origin on the ground, x forward, y left, z up."
            )
    if np.isfinite(clip.world_from_camera).all() and sum(lidar_on_images(clip, 0)) == 0:
        yield _warning("no lidar point of the first frame falls on any image; check extrinsics.")


def _check_tracks(clip: Clip):
    tracks = clip.tracks
    if tracks is None:
        return
    if not np.isfinite(tracks.times).all():
        yield _error("times of the tracks hold NaN or infinity.")
    elif any(a >= b for a, b in pairwise(tracks.times.tolist())):
        yield _error("times of the tracks are out of order.")
    elif len(tracks.times) and np.isfinite(clip.times).all():
        early, late = clip.start - tracks.times[-1], tracks.times[0] - clip.times.max()
        if max(early, late) > _LONGEST_GAP:
            yield _warning(
                f"the times of the tracks and of the frames are {max(early, late):.4g} s apart; "
                "both count seconds from the same moment."
            )
    seen = np.asarray(tracks.valid)
    finite = np.isfinite(tracks.centers).all(axis=-1) & np.isfinite(tracks.quats).all(axis=-1)
    if (seen & ~finite).any():
        yield _error(f"{int((seen & ~finite).any(axis=1).sum())} tracks hold NaN or infinity.")
    zero = seen & finite & ~np.asarray(tracks.quats).any(axis=-1)
    if zero.any():
        yield _error(f"{int(zero.any(axis=1).sum())} tracks have quaternions of length 0.")
    category = np.asarray(tracks.category)
    if ((category < 0) | (category >= len(CATEGORIES))).any():
        yield _error(f"categories of the tracks must be 0 to {len(CATEGORIES) - 1}.")
    if len(tracks.ids) != tracks.num_tracks or len(set(tracks.ids)) != len(tracks.ids):
        yield _error(
            f"the ids of the tracks are not one name for each of {tracks.num_tracks}: "
            f"{len(tracks.ids)} given, {len(set(tracks.ids))} of them different."
        )
    if tracks.num_tracks and not (np.asarray(tracks.sizes) > 0).all():
        count = int((~(np.asarray(tracks.sizes) > 0).all(axis=1)).sum())
        yield _error(f"{count} boxes have a size that is not positive.")


def lidar_on_images(clip: Clip, t: int) -> list[int]:
    """How many lidar points of frame t fall on each view's image; zeros without lidar."""
    if clip.lidar is None:
        return [0] * clip.num_views
    world = transform_points(clip.world_from_ego[t], clip.lidar[t][:, :3].astype(np.float64))
    counts = []
    for v in range(clip.num_views):
        camera = clip.camera(t, v)
        uv, depth = camera.project(world)
        counts.append(int(inside_image(uv, depth, camera.height, camera.width).sum()))
    return counts


def boxes_on_images(clip: Clip, t: int) -> list[int]:
    """How many box centres fall on each view's image at frame t; zeros without tracks."""
    if clip.tracks is None:
        return [0] * clip.num_views
    counts = []
    for v in range(clip.num_views):
        camera = clip.camera(t, v)
        poses, there = clip.tracks.at(clip.times[t, v])
        uv, depth = camera.project(poses[there][:, :3, 3])
        counts.append(int(inside_image(uv, depth, camera.height, camera.width).sum()))
    return counts
