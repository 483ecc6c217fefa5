"""Boxes, lanes and lidar on images: layout frames for the generator and contact sheets for people.

Everything is drawn at twice the size and averaged down, so that thin lines neither shimmer nor
vanish. Host code: numpy and Pillow.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from jwm_jax.scene.cameras import Camera, inside_image
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.lane_map import LaneMap
from jwm_jax.scene.tracks import CATEGORIES, Tracks, box_corners
from jwm_jax.scene.transforms import invert_transform, transform_points

NEAR = 0.3
"""Geometry nearer than this many metres is cut off."""

FAR = 120.0
"""Layout beyond this many metres is not drawn."""

_SUPERSAMPLING = 2

LINE_COLORS = {
    "lane_divider": (255, 255, 255),
    "lane_solid": (255, 255, 255),
    "road_edge": (50, 230, 75),
    "crosswalk": (60, 110, 255),
}
_LINE_WIDTH = {"lane_divider": 0.15, "lane_solid": 0.15, "road_edge": 0.2}  # metres

CATEGORY_COLORS = {
    "car": (255, 70, 30),
    "truck": (255, 150, 0),
    "bus": (255, 200, 0),
    "trailer": (200, 130, 60),
    "motorcycle": (255, 0, 160),
    "bicycle": (220, 80, 255),
    "pedestrian": (0, 200, 255),
    "other": (150, 150, 150),
}

# Corner indices of each face, and how bright it is: the front is brightest and the rear darkest, so
# that a picture of a box tells which way it points.
_FACES = (
    ((0, 1, 2, 3), 1.0),
    ((4, 5, 6, 7), 0.45),
    ((0, 3, 7, 4), 0.7),
    ((1, 2, 6, 5), 0.7),
    ((2, 3, 7, 6), 0.85),
    ((0, 1, 5, 4), 0.3),
)
_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)


def draw_layout(
    camera: Camera, tracks: Tracks | None, lane_map: LaneMap | None, time: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The scene's layout as seen by a camera: lane lines and solid boxes on black.

    Args:
        camera: One camera, host arrays, world frame.
        tracks: Boxes, or None.
        lane_map: Lines, or None.
        time: On the tracks' clock, seconds.
    """
    scale = _SUPERSAMPLING
    canvas = Image.new("RGB", (camera.width * scale, camera.height * scale))
    draw = ImageDraw.Draw(canvas)
    pixels = _Projection(camera, scale)
    if lane_map is not None:
        for polyline, kind in sorted(
            zip(lane_map.polylines, lane_map.kinds, strict=True), key=lambda line: line[1]
        ):
            _draw_line(draw, pixels, polyline, kind)
    if tracks is not None and tracks.num_tracks:
        _draw_solid_boxes(draw, pixels, tracks, time)
    return np.asarray(canvas.reduce(scale))


def layout_frames(
    cameras: Sequence[Camera],
    tracks: Tracks | None,
    lane_map: LaneMap | None,
    times: Float[np.ndarray, "t v"],
) -> UInt8[np.ndarray, "v t h w 3"] | None:
    """`draw_layout` for every view and instant, or None where neither boxes nor lines are known.

    Args:
        cameras: One a view, each with leading axis T; all of one size.
        tracks: Boxes, or None.
        lane_map: Lines, or None.
        times: On the tracks' clock, seconds.
    """
    if tracks is None and lane_map is None:
        return None

    def view(camera: Camera, when: np.ndarray) -> np.ndarray:
        drawn = (draw_layout(camera.at(t), tracks, lane_map, time) for t, time in enumerate(when))
        return np.stack(list(drawn))

    return np.stack([view(*pair) for pair in zip(cameras, times.T, strict=True)])


def clip_layout(clip: Clip) -> UInt8[np.ndarray, "v t h w 3"] | None:
    """The layout frames of a clip whose views have one size; see `layout_frames`."""
    paths = [clip.camera_path(v) for v in range(clip.num_views)]
    return layout_frames(paths, clip.tracks, clip.map, clip.times)


def draw_boxes(
    image: UInt8[np.ndarray, "h w 3"], camera: Camera, tracks: Tracks, time: float
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the image with the wire frames of the boxes; front faces are crossed."""
    scale = _SUPERSAMPLING
    canvas = Image.fromarray(image).resize((camera.width * scale, camera.height * scale))
    draw = ImageDraw.Draw(canvas)
    pixels = _Projection(camera, scale)
    poses, there = tracks.at(time)
    for pose, size, category in zip(
        poses[there], tracks.sizes[there], tracks.category[there], strict=True
    ):
        corners = transform_points(pose, box_corners(size))
        color = CATEGORY_COLORS[CATEGORIES[category]]
        for a, b in (*_EDGES, (0, 2), (1, 3)):
            segment = pixels.clip_segment(corners[a], corners[b])
            if segment is not None:
                draw.line(segment, fill=color, width=scale)
    return np.asarray(canvas.reduce(scale))


def draw_lidar(
    image: UInt8[np.ndarray, "h w 3"], camera: Camera, points: Float[np.ndarray, "p 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the image with world points on it, red at 2 m to blue at 60 m and more."""
    out = image.copy()
    uv, depth = camera.project(points)
    seen = inside_image(uv, depth, camera.height, camera.width)
    uv, depth = uv[seen].astype(int), depth[seen]
    order = np.argsort(-depth)
    uv, depth = uv[order], depth[order]
    nearness = 1 - np.clip(np.log(np.maximum(depth, 2.0) / 2) / np.log(30), 0, 1)
    colors = np.stack([nearness, 1 - np.abs(2 * nearness - 1), 1 - nearness], axis=1)
    radius = max(0, camera.width // 640)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            row = np.clip(uv[:, 1] + dy, 0, camera.height - 1)
            column = np.clip(uv[:, 0] + dx, 0, camera.width - 1)
            out[row, column] = (colors * 255).astype(np.uint8)
    return out


def color_depth(
    depth: Float[np.ndarray, "*b h w"], nearest: float = 3.0, farthest: float = 80.0
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Depth in metres as colour: warm is near, blue is far, black is none."""
    t = np.log(np.clip(depth, nearest, farthest) / nearest) / np.log(farthest / nearest)
    stops = np.array(
        [[255, 240, 160], [240, 110, 50], [140, 30, 100], [30, 20, 110], [10, 60, 120]]
    )
    position = t * (len(stops) - 1)
    low = np.minimum(position.astype(int), len(stops) - 2)
    weight = (position - low)[..., None]
    color = stops[low] * (1 - weight) + stops[low + 1] * weight
    return np.where(depth[..., None] > 0, color, 0).astype(np.uint8)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str] = (), gap: int = 2
) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures in rows, with a label at the start of each row.

    Args:
        rows: uint8 [h, w, 3] pictures; those of one row share a height.
        labels: One a row, or none.
        gap: Pixels between pictures.
    """
    margin = 12 if labels else 0
    heights = [max(p.shape[0] for p in row) + margin for row in rows]
    width = max(sum(p.shape[1] + gap for p in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(heights) + gap * len(rows)), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    y = 0
    for index, row in enumerate(rows):
        if labels:
            draw.text((2, y), labels[index], fill=(230, 230, 230))
        x = 0
        for picture in row:
            sheet.paste(Image.fromarray(picture), (x, y + margin))
            x += picture.shape[1] + gap
        y += heights[index] + gap
    return np.asarray(sheet)


class _Projection:
    """Projects world geometry to supersampled pixels, cut off at the near plane."""

    def __init__(self, camera: Camera, scale: int):
        self.camera_from_world = invert_transform(np.asarray(camera.world_from_camera, np.float64))
        self.K = np.asarray(camera.K, np.float64) * np.array([[scale], [scale], [1.0]])
        self.bound = 4.0 * scale * max(camera.width, camera.height)

    def local(self, points):
        return transform_points(self.camera_from_world, np.asarray(points, np.float64))

    def pixels(self, local):
        uv = local @ self.K.T
        uv = uv[:, :2] / uv[:, 2:]
        return np.clip(uv, -self.bound, self.bound)

    def clip_segment(self, a, b):
        """Pixels of a world segment, or None where it is behind the near plane."""
        p, q = self.local(np.stack([a, b]))
        if p[2] < NEAR and q[2] < NEAR:
            return None
        if p[2] < NEAR or q[2] < NEAR:
            cut = p + (NEAR - p[2]) / (q[2] - p[2]) * (q - p)
            p, q = (cut, q) if p[2] < NEAR else (p, cut)
        uv = self.pixels(np.stack([p, q]))
        return [tuple(uv[0]), tuple(uv[1])]

    def clip_polygon(self, local):
        """Pixels of a camera-frame polygon cut at the near plane, or None (Sutherland-Hodgman)."""
        kept = []
        for p, q in zip(local, np.roll(local, -1, axis=0), strict=True):
            if p[2] >= NEAR:
                kept.append(p)
            if (p[2] >= NEAR) != (q[2] >= NEAR):
                kept.append(p + (NEAR - p[2]) / (q[2] - p[2]) * (q - p))
        if len(kept) < 3:
            return None
        return [tuple(uv) for uv in self.pixels(np.stack(kept))]


def _fade(distance: float) -> float:
    return 0.35 + 0.65 * float(np.exp(-max(distance, 0.0) / 50.0))


def _shade(color, factor: float):
    return tuple(int(c * factor) for c in color)


def _draw_line(draw, pixels: _Projection, polyline, kind: str):
    if kind not in LINE_COLORS:
        return
    if kind == "crosswalk":
        outline = pixels.clip_polygon(pixels.local(polyline))
        if outline is not None:
            distance = pixels.local(polyline)[:, 2].mean()
            draw.polygon(outline, fill=_shade(LINE_COLORS[kind], 0.6 * _fade(distance)))
        return
    points = pixels.local(_resampled(np.asarray(polyline, np.float64), spacing=2.0))
    focal = pixels.K[0, 0]
    for p, q in pairwise(points):
        if max(p[2], q[2]) < NEAR or min(p[2], q[2]) > FAR:
            continue
        if p[2] < NEAR or q[2] < NEAR:
            cut = p + (NEAR - p[2]) / (q[2] - p[2]) * (q - p)
            p, q = (cut, q) if p[2] < NEAR else (p, cut)
        distance = 0.5 * (p[2] + q[2])
        uv = pixels.pixels(np.stack([p, q]))
        width = int(np.clip(round(focal * _LINE_WIDTH[kind] / distance), 1, 24))
        color = _shade(LINE_COLORS[kind], _fade(distance))
        draw.line([tuple(uv[0]), tuple(uv[1])], fill=color, width=width)


def _resampled(polyline, spacing: float):
    """Points at most `spacing` metres apart along a polyline."""
    pieces = [polyline[:1]]
    for a, b in pairwise(polyline):
        n = max(1, int(np.ceil(np.linalg.norm(b - a) / spacing)))
        pieces.append(a + (b - a) * (np.arange(1, n + 1) / n)[:, None])
    return np.concatenate(pieces)


def _draw_solid_boxes(draw, pixels: _Projection, tracks: Tracks, time: float):
    poses, there = tracks.at(time)
    faces = []
    for index in np.flatnonzero(there):
        corners = pixels.local(transform_points(poses[index], box_corners(tracks.sizes[index])))
        center = corners.mean(axis=0)
        if center[2] > FAR or corners[:, 2].max() < NEAR:
            continue
        color = CATEGORY_COLORS[CATEGORIES[tracks.category[index]]]
        for face, brightness in _FACES:
            quad = corners[list(face)]
            if (quad.mean(axis=0) - center) @ quad.mean(axis=0) >= 0:
                continue  # turned away
            polygon = pixels.clip_polygon(quad)
            if polygon is not None:
                distance = float(np.linalg.norm(center))
                faces.append((distance, polygon, _shade(color, brightness * _fade(distance))))
    for _, polygon, color in sorted(faces, key=lambda f: -f[0]):
        draw.polygon(polygon, fill=color)
