"""A clip as a flat dictionary of arrays, the form in which clips are stored, and back.

Pictures and depth maps are stored one by one (so that a reader decodes only those it needs), their
bytes end to end in one array with their lengths beside it:

- `images`: JPEG without chroma subsampling, or PNG; frame by frame, within a frame view by view.
- `depth`: float16 metres (relative error 2^-11), zlib; the same order.
- `lidar`: one blob a frame, zlib; int16 [4, P]: x, y, z in units of LIDAR_UNIT metres, intensity in
  units of 1 / 32767. Points beyond +-81.9 m do not fit and are left out.

Clips may lack lidar, boxes, map, style and depth: their arrays are then empty and `has` says so.
"""

import io
import json
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from jwm_jax.data.files import read_image
from jwm_jax.errors import DataError, UsageError
from jwm_jax.reading import require_shapes
from jwm_jax.scene import Clip, Intrinsics, LaneMap, Tracks

LIDAR_UNIT = 0.0025
"""Metres per step of a stored lidar coordinate."""

LIDAR_LIMIT = 32767 * LIDAR_UNIT

OPTIONAL = ("lidar", "tracks", "map", "style", "depth")
"""Fields of a clip that may be None."""

FIELDS: dict[str, tuple[tuple[int | None, ...], type[np.generic]]] = {
    "images": ((None,), np.uint8),
    "image_bytes": ((None,), np.int64),
    "depth": ((None,), np.uint8),
    "depth_bytes": ((None,), np.int64),
    "lidar": ((None,), np.uint8),
    "lidar_bytes": ((None,), np.int64),
    "times": ((None,), np.float64),
    "world_from_ego": ((None, 4, 4), np.float64),
    "world_from_camera": ((None, 4, 4), np.float64),
    "K": ((None, 3, 3), np.float64),
    "image_sizes": ((None, 2), np.int64),
    "track_times": ((None,), np.float64),
    "track_centers": ((None, 3), np.float64),
    "track_quats": ((None, 4), np.float64),
    "track_valid": ((None,), np.uint8),
    "track_sizes": ((None, 3), np.float64),
    "track_category": ((None,), np.int64),
    "map_points": ((None, 3), np.float64),
    "map_lengths": ((None,), np.int64),
}
"""Shape and dtype of every array of a record; `header` (JSON text) holds the names beside them."""


def _join(blobs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.asarray([len(b) for b in blobs], np.int64)
    return np.frombuffer(b"".join(blobs), np.uint8), lengths


def _blob(joined: np.ndarray, lengths: np.ndarray, index: int) -> bytes:
    start = int(lengths[:index].sum())
    return joined[start : start + int(lengths[index])].tobytes()


def encode_image(image: np.ndarray, image_format: str = "jpeg", quality: int = 95) -> bytes:
    """uint8 [h, w, 3] as JPEG (4:4:4) or PNG bytes.

    Raises:
      UsageError: another format.
    """
    buffer = io.BytesIO()
    if image_format == "jpeg":
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    elif image_format == "png":
        Image.fromarray(image).save(buffer, "PNG")
    else:
        raise UsageError(f"image format: expected 'jpeg' or 'png', got {image_format!r}.")
    return buffer.getvalue()


def _encode_spin(points: np.ndarray) -> bytes:
    points = points[np.abs(points[:, :3]).max(axis=1, initial=0.0) <= LIDAR_LIMIT]
    steps = np.round(points[:, :3] / LIDAR_UNIT).astype(np.int16)
    strength = np.round(np.clip(points[:, 3:], 0.0, 1.0) * 32767).astype(np.int16)
    return zlib.compress(np.concatenate([steps, strength], 1).T.tobytes(), 6)


def _inflate(blob: bytes, dtype: type[np.generic], what: str) -> np.ndarray:
    try:
        return np.frombuffer(zlib.decompress(blob), dtype)
    except (zlib.error, ValueError) as error:
        raise DataError(f"{what} cannot be unpacked ({error}); make the dataset again.") from None


def _decode_spin(blob: bytes, what: str) -> np.ndarray:
    steps = _inflate(blob, np.int16, what)
    if steps.size % 4:
        raise DataError(f"{what} is no whole number of points; make the dataset again.")
    points = steps.reshape(4, -1).T.astype(np.float32)
    return points * np.asarray([LIDAR_UNIT] * 3 + [1 / 32767], np.float32)


def encode_clip(clip: Clip, image_format: str = "jpeg", quality: int = 95) -> dict[str, np.ndarray]:
    """The record of a clip: every array of `FIELDS` and `header`, a uint8 array of JSON text.

    Args:
      clip: any clip with pinhole cameras.
      image_format: "jpeg" or "png" (lossless).
      quality: of JPEG.

    Raises:
      UsageError: an unknown format.
      DataError: a camera with distortion or rolling shutter; records hold rectified pictures.
    """
    for name, camera in zip(clip.view_names, clip.cameras, strict=True):
        if camera.model != "pinhole" or camera.distortion is not None:
            raise DataError(f"clip {clip.name}: view {name} is not a rectified pinhole camera.")
    frames, views = range(clip.num_frames), range(clip.num_views)
    pictures = [clip.view(v) for v in views]
    record: dict[str, np.ndarray] = {}
    record["images"], record["image_bytes"] = _join(
        [encode_image(pictures[v][t], image_format, quality) for t in frames for v in views]
    )
    depth = clip.depth or ()
    record["depth"], record["depth_bytes"] = _join(
        [zlib.compress(d[t].astype(np.float16).tobytes(), 6) for t in frames for d in depth]
    )
    record["lidar"], record["lidar_bytes"] = _join([_encode_spin(s) for s in clip.lidar or ()])
    record["times"] = clip.times.reshape(-1)
    record["world_from_ego"] = clip.world_from_ego
    record["world_from_camera"] = clip.world_from_camera.reshape(-1, 4, 4)
    record["K"] = np.stack([np.asarray(c.K) for c in clip.cameras])
    record["image_sizes"] = np.asarray([(c.height, c.width) for c in clip.cameras])
    tracks, lanes = clip.tracks, clip.map
    if tracks is not None:
        record["track_times"] = tracks.times
        record["track_centers"] = tracks.centers.reshape(-1, 3)
        record["track_quats"] = tracks.quats.reshape(-1, 4)
        record["track_valid"] = tracks.valid.reshape(-1)
        record["track_sizes"] = tracks.sizes
        record["track_category"] = tracks.category
    if lanes is not None and lanes.polylines:
        record["map_points"] = np.concatenate(lanes.polylines)
        record["map_lengths"] = np.asarray([len(p) for p in lanes.polylines])
    header = {
        "name": clip.name,
        "frames": clip.num_frames,
        "views": list(clip.view_names),
        "has": [name for name in OPTIONAL if getattr(clip, name) is not None],
        "track_ids": list(tracks.ids) if tracks is not None else [],
        "map_kinds": list(lanes.kinds) if lanes is not None else [],
        "style": clip.style or {},
    }
    for field, (shape, dtype) in FIELDS.items():
        empty = np.zeros([0 if n is None else n for n in shape], dtype)
        record[field] = np.asarray(record.get(field, empty)).astype(dtype)
    record["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return record


_HEADER = {
    "name": str,
    "frames": int,
    "views": list,
    "has": list,
    "track_ids": list,
    "map_kinds": list,
    "style": dict,
}
"""What a record holds besides arrays."""


def read_header(record: Mapping[str, np.ndarray]) -> dict:
    """What a record holds besides arrays: name, frames, views, has, track_ids, map_kinds, style.

    Raises:
      DataError: it is no record of a clip.
    """
    try:
        header = json.loads(np.asarray(record["header"], np.uint8).tobytes())
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"this is no record of a clip: its header is broken ({error}).") from None
    found = header if isinstance(header, dict) else {}
    wrong = [k for k, kind in _HEADER.items() if not isinstance(found.get(k), kind)]
    if wrong:
        raise DataError(f"this is no record of a clip: its header lacks {', '.join(wrong)}.")
    return header


def _require_whole(record: Mapping[str, np.ndarray], header: dict) -> None:
    """Refuse a record whose arrays do not fit its header and each other."""
    where = f"record {header['name']}"
    letters = "abc"
    shapes = {
        field: " ".join(letters[i] if n is None else str(n) for i, n in enumerate(shape))
        for field, (shape, _) in FIELDS.items()
    }
    for field, shape in shapes.items():
        require_shapes(record, {field: shape}, where)
    frames, views = header["frames"], len(header["views"])
    pictures, has = frames * views, header["has"]
    things, samples = len(record["track_sizes"]), len(record["track_times"])
    expected = {
        "image_bytes": pictures,
        "times": pictures,
        "world_from_camera": pictures,
        "world_from_ego": frames,
        "K": views,
        "image_sizes": views,
        "depth_bytes": pictures * ("depth" in has),
        "lidar_bytes": frames * ("lidar" in has),
        "track_centers": things * samples,
        "track_quats": things * samples,
        "track_valid": things * samples,
        "track_category": things,
        "map_lengths": len(header["map_kinds"]),
        "map_points": int(np.sum(record["map_lengths"])),
    }
    for field, count in expected.items():
        if len(record[field]) != count:
            raise DataError(
                f"{where}: {field} has {len(record[field])} entries, expected {count}; make the "
                "dataset again."
            )
    if (np.asarray(record["image_sizes"]) < 1).any():
        raise DataError(f"{where}: image_sizes must be positive; make the dataset again.")
    for blobs in ("images", "depth", "lidar"):
        lengths = record["image_bytes" if blobs == "images" else f"{blobs}_bytes"]
        if (np.asarray(lengths) < 0).any() or int(np.sum(lengths)) != len(record[blobs]):
            raise DataError(f"{where}: {blobs} is cut short; make the dataset again.")


def decode_clip(
    record: Mapping[str, np.ndarray],
    frames: Sequence[int] | None = None,
    views: Sequence[int] | None = None,
    depth: bool = True,
    lidar: bool = True,
) -> Clip:
    """The clip of a record, or some of its instants and views (only these are decoded).

    Args:
      record: from `encode_clip`.
      frames: instants to keep; None for all.
      views: views to keep; None for all.
      depth: whether to decode depth maps where there are any.
      lidar: whether to decode lidar where there is any.

    Raises:
      DataError: the record or a picture in it is broken.
    """
    header = read_header(record)
    _require_whole(record, header)
    total, count = header["frames"], len(header["views"])
    keep_frames = list(range(total)) if frames is None else [int(f) for f in frames]
    keep_views = list(range(count)) if views is None else [int(v) for v in views]
    sizes = np.asarray(record["image_sizes"])

    def named(what, t, view=None):
        of_view = "" if view is None else f" of view {header['views'][view]}"
        return f"record {header['name']}: {what} of frame {t}{of_view}"

    def pictures(view):
        result = np.empty((len(keep_frames), *sizes[view], 3), np.uint8)
        for row, t in enumerate(keep_frames):
            data = _blob(record["images"], record["image_bytes"], t * count + view)
            picture = read_image(io.BytesIO(data), named("picture", t, view))
            if picture.shape != result.shape[1:]:
                raise DataError(f"{named('picture', t, view)} is not of its view's size.")
            result[row] = picture
        return result

    def depths(view):
        result = np.empty((len(keep_frames), *sizes[view]), np.float32)
        for row, t in enumerate(keep_frames):
            blob = _blob(record["depth"], record["depth_bytes"], t * count + view)
            flat = _inflate(blob, np.float16, named("depth", t, view))
            if flat.size != result[row].size:
                raise DataError(f"{named('depth', t, view)} is not of the size of its picture.")
            result[row] = flat.reshape(result.shape[1:])
        return result

    def spin(t):
        blob = _blob(record["lidar"], record["lidar_bytes"], t)
        return _decode_spin(blob, named("lidar", t))

    has = header["has"]
    poses = np.asarray(record["world_from_camera"]).reshape(total, count, 4, 4)
    return Clip(
        images=tuple(pictures(v) for v in keep_views),
        times=np.asarray(record["times"]).reshape(total, count)[np.ix_(keep_frames, keep_views)],
        world_from_ego=np.asarray(record["world_from_ego"])[keep_frames],
        world_from_camera=poses[np.ix_(keep_frames, keep_views)],
        cameras=tuple(
            Intrinsics(
                K=np.asarray(record["K"])[v], width=int(sizes[v][1]), height=int(sizes[v][0])
            )
            for v in keep_views
        ),
        view_names=tuple(header["views"][v] for v in keep_views),
        lidar=tuple(spin(t) for t in keep_frames) if lidar and "lidar" in has else None,
        tracks=_decode_tracks(record, header) if "tracks" in has else None,
        map=_decode_map(record, header) if "map" in has else None,
        style=header["style"] if "style" in has else None,
        depth=tuple(depths(v) for v in keep_views) if depth and "depth" in has else None,
        name=header["name"],
    )


def _decode_tracks(record: Mapping[str, np.ndarray], header: dict) -> Tracks:
    times = np.asarray(record["track_times"])
    count = len(record["track_sizes"])
    return Tracks(
        times=times,
        centers=np.asarray(record["track_centers"]).reshape(count, len(times), 3),
        quats=np.asarray(record["track_quats"]).reshape(count, len(times), 4),
        sizes=np.asarray(record["track_sizes"]),
        valid=np.asarray(record["track_valid"]).reshape(count, len(times)).astype(bool),
        category=np.asarray(record["track_category"]).astype(np.int32),
        ids=tuple(header["track_ids"]),
    )


def _decode_map(record: Mapping[str, np.ndarray], header: dict) -> LaneMap:
    ends = np.cumsum(np.asarray(record["map_lengths"]))[:-1]
    lines = np.split(np.asarray(record["map_points"]), ends) if header["map_kinds"] else []
    return LaneMap(tuple(lines), tuple(header["map_kinds"]))
