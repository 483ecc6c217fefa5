"""The views of a rig as one picture, where a driver would look for them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from jwm_jax.export.pictures import to_uint8

_COLUMN_OF = {"left": 0, "right": 2}
_LABEL_HEIGHT = 14
_BACKGROUND = 18


def rig_mosaic(
    views: Sequence[np.ndarray], names: Sequence[str], labels: bool = True
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Views side by side: front left, front, front right above back left, back, back right.

    Views whose names say neither front nor back are put in rows of three in their order.

    Args:
        views: One a camera, [h, w, 3] or [F, h, w, 3], uint8 or in [0, 1]; each is scaled to the
            height of the first.
        names: One a view, such as "CAM_FRONT_LEFT".
        labels: Whether names are written on the pictures.

    Returns:
        A picture, or F pictures.
    """
    arrays = [to_uint8(view) for view in views]
    still = arrays[0].ndim == 3
    arrays = [a[None] if still else a for a in arrays]
    if len(arrays) == 1:
        return arrays[0][0] if still else arrays[0]
    arrays = [_scaled(a, arrays[0].shape[1]) for a in arrays]
    if labels:
        arrays = [label_picture(a, name) for a, name in zip(arrays, names, strict=True)]
    rows = _arrange(names)
    widths = [max(arrays[v].shape[2] for row in rows for v in row if v is not None)] * 3
    stacked = [_row(arrays, row, widths) for row in rows]
    widest = max(row.shape[2] for row in stacked)
    stacked = [_padded(row, widest) for row in stacked]
    sheet = np.concatenate(stacked, axis=1)
    return sheet[0] if still else sheet


def label_picture(pictures: UInt8[np.ndarray, "*b h w 3"], text: str):
    """The pictures with a word at the top left, white on a dark plate."""
    plate = Image.new("L", (8 + 7 * len(text), _LABEL_HEIGHT), 0)
    ImageDraw.Draw(plate).text((4, 1), text, fill=255)
    mask = np.asarray(plate)[..., None].astype(np.float32) / 255.0
    mask = mask[: pictures.shape[-3], : pictures.shape[-2]]
    h, w = mask.shape[:2]
    out = pictures.copy()
    under = out[..., :h, :w, :].astype(np.float32) * 0.35
    out[..., :h, :w, :] = (under * (1 - mask) + 255.0 * mask).astype(np.uint8)
    return out


def _arrange(names: Sequence[str]) -> list[list[int | None]]:
    """Rows of view indices; None leaves a gap."""
    grid: list[list[int | None]] = [[None] * 3, [None] * 3]
    for index, name in enumerate(names):
        words = name.lower()
        row = 1 if "back" in words or "rear" in words else 0 if "front" in words else None
        column = next((c for side, c in _COLUMN_OF.items() if side in words), 1)
        if row is None or grid[row][column] is not None:
            return [list(range(s, min(s + 3, len(names)))) for s in range(0, len(names), 3)]
        grid[row][column] = index
    rows = [row for row in grid if any(v is not None for v in row)]
    if len(rows) == 1:
        rows = [[v for v in rows[0] if v is not None]]
    return rows


def _row(arrays: list[np.ndarray], row: list[int | None], widths: list[int]) -> np.ndarray:
    frames, height = arrays[0].shape[:2]
    gap = [np.full((frames, height, widths[0], 3), _BACKGROUND, np.uint8)]
    return np.concatenate([gap[0] if v is None else arrays[v] for v in row], axis=2)


def _padded(row: np.ndarray, width: int) -> np.ndarray:
    missing = width - row.shape[2]
    return np.pad(row, ((0, 0), (0, 0), (0, missing), (0, 0)), constant_values=_BACKGROUND)


def _scaled(frames: np.ndarray, height: int) -> np.ndarray:
    if frames.shape[1] == height:
        return frames
    size = (round(frames.shape[2] * height / frames.shape[1]), height)
    return np.stack([np.asarray(Image.fromarray(f).resize(size)) for f in frames])
