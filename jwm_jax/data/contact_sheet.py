"""A clip on one page: lidar and boxes over its images, and its contents in words."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jwm_jax.data.checks import boxes_on_images, lidar_on_images
from jwm_jax.data.streets import left_out
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.drawing import contact_sheet, draw_boxes, draw_lidar
from jwm_jax.scene.transforms import transform_points

_WIDTH = 640
"""Pixels across a picture on the sheet."""

_COLUMNS = 3
"""Pictures to a row."""


def clip_sheet(clip: Clip, frames: int = 6) -> UInt8[np.ndarray, "h w 3"]:
    """Up to `frames` instants with every view, at most three to a row.

    A single view has two columns: drawn upon, and as it is.
    """
    chosen = np.unique(np.linspace(0, clip.num_frames - 1, max(1, frames)).round().astype(int))
    rows, labels = [], []
    for t in chosen:
        pictures = [_shrunk(annotated(clip, int(t), v)) for v in range(clip.num_views)]
        names = list(clip.view_names)
        if clip.num_views == 1:
            pictures.append(_shrunk(clip.view(0)[t]))
        for start in range(0, len(pictures), _COLUMNS):
            rows.append(pictures[start : start + _COLUMNS])
            seconds = clip.times[t, 0] - clip.start
            shown = ", ".join(names[start : start + _COLUMNS])
            labels.append(f"frame {t}  {seconds:.2f} s   {shown}")
    return contact_sheet(rows, labels)


def annotated(clip: Clip, t: int, v: int) -> UInt8[np.ndarray, "h w 3"]:
    """One picture with the lidar points and boxes of its instant on it."""
    image, camera = clip.view(v)[t], clip.camera(t, v)
    if clip.lidar is not None:
        points = clip.lidar[t][:, :3].astype(np.float64)
        image = draw_lidar(image, camera, transform_points(clip.world_from_ego[t], points))
    if clip.tracks is not None and clip.tracks.num_tracks:
        image = draw_boxes(image, camera, clip.tracks, float(clip.times[t, v]))
    return image


def describe(clip: Clip) -> list[str]:
    """What a clip holds and how much of it falls on its images, a line each."""
    seconds = float(clip.times.max() - clip.times.min())
    rate = f" at {clip.rate:.3g} Hz" if clip.num_frames > 1 else ""
    sizes = sorted({(c.width, c.height) for c in clip.cameras})
    lines = [
        f"{clip.name}: {_count(clip.num_frames, 'frame')}{rate}, {seconds:.2f} s; "
        f"{_count(clip.num_views, 'view')} "
        f"({', '.join(clip.view_names)}) of {', '.join(f'{w}x{h}' for w, h in sizes)} pixels"
    ]
    if clip.num_frames > 1:
        steps = np.diff(clip.world_from_ego[:, :3, 3], axis=0)
        lines.append(f"ego: {np.linalg.norm(steps, axis=1).sum():.1f} m driven")
    lines.append(_lidar_line(clip))
    if clip.tracks is None:
        lines.append("boxes: none")
    else:
        seen = sum(boxes_on_images(clip, 0))
        lines.append(
            f"boxes: {clip.tracks.num_tracks} things; in the first frame {seen} centres fall on "
            "images"
        )
    lines.append("map: none" if clip.map is None else f"map: {len(clip.map.polylines)} lines")
    missing = left_out(clip.name) if clip.name.startswith("procedural:") else 0
    if missing:
        lines.append(f"left out: {_count(missing, 'thing')} for which the street had no room")
    return lines


def _lidar_line(clip: Clip) -> str:
    if clip.lidar is None:
        return "lidar: none"
    total = sum(len(scan) for scan in clip.lidar)
    finite = all(np.isfinite(scan).all() for scan in clip.lidar)
    if not finite or not np.isfinite(clip.world_from_camera).all():
        return f"lidar: {total} points in {_count(len(clip.lidar), 'scan')}"
    seen = sum(lidar_on_images(clip, 0))
    return (
        f"lidar: {total} points in {_count(len(clip.lidar), 'scan')}; of the first scan's "
        f"{len(clip.lidar[0])} points, {seen} fall on images"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _shrunk(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if width <= _WIDTH:
        return image
    size = (_WIDTH, round(height * _WIDTH / width))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
