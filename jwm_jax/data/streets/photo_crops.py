"""Square crops of labelled photographs, by what they show: what the rung `photo` is papered with.

The photographs are CamVid's stills with their label maps in `$JWM_DATA/real_images/camvid_train`
(non-commercial; see the README there). They are read when a street is made and never packed.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from jwm_jax.data.streets.textures import SIDE
from jwm_jax.errors import DataError

PHOTOS = "$JWM_DATA/real_images/camvid_train"

LABELS = {
    "sky": (0,),
    "wall": (1,),
    "road": (3,),
    "pavement": (4,),
    "foliage": (5,),
    "sign": (6,),
    "car": (8,),
}
"""What a crop shows, and the labels of it in CamVid's eleven classes."""

SIDES = {
    "sky": (64, 128),
    "wall": (56, 128),
    "road": (56, 112),
    "pavement": (24, 40),
    "foliage": (32, 96),
    "sign": (16, 28),
    "car": (28, 72),
}
"""Shortest and longest side of a crop in pixels of a photograph of 360 rows."""

PURITY = {"sky": 0.99, "road": 0.99, "pavement": 0.95, "sign": 0.85, "car": 0.85}
"""Least share of a crop with its label; 0.97 for the others."""

CROPS = 96
"""Most crops of a kind."""

STEP = 4
"""Pixels of a photograph to which places and sides of crops are rounded."""

TRIES = 3
"""Crops of a kind that are tried in a photograph."""


def photo_crops() -> dict[str, UInt8[np.ndarray, "n side side 3"]]:
    """Crops of every kind in `LABELS`, the same on every call.

    Raises:
      DataError: `$JWM_DATA` holds no such photographs, or none of some kind.
    """
    return _crops_in(Path(os.path.expandvars(PHOTOS)).expanduser())


@lru_cache(maxsize=2)
def _crops_in(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.jpg")) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"the rung photo takes its textures from {PHOTOS}, and {folder} holds no photograph; "
            "set JWM_DATA to the folder that holds real_images, or use the rung full."
        )
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in LABELS}
    for number, file in enumerate(files):
        try:
            with Image.open(file) as image, Image.open(folder / "labels" / f"{file.stem}.png") as m:
                photo, labels = np.asarray(image.convert("RGB")), np.asarray(m)
        except OSError as error:
            raise DataError(f"{file} and its labels/{file.stem}.png: {error}") from None
        if labels.shape != photo.shape[:2]:
            raise DataError(f"{file} and its labels/{file.stem}.png differ in size.")
        random = np.random.default_rng([number, len(files)])
        for kind, wanted in LABELS.items():
            mine = np.isin(labels[::STEP, ::STEP], wanted)
            found[kind] += _crops(random, photo, mine, kind)
    empty = [kind for kind, crops in found.items() if not crops]
    if empty:
        raise DataError(f"{folder} shows nothing of the kind {', '.join(empty)} on its own.")
    return {kind: _chosen(crops, kind) for kind, crops in found.items()}


def _crops(
    random: np.random.Generator,
    photo: UInt8[np.ndarray, "h w 3"],
    mine: Bool[np.ndarray, "rows columns"],
    kind: str,
) -> list[np.ndarray]:
    """A few squares of one kind at random places, SIDE pixels wide; ``mine`` is every STEP-th."""
    sums = np.pad(mine.astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    crops = []
    for _ in range(TRIES):
        side = int(random.integers(SIDES[kind][0], SIDES[kind][1] + 1) * len(photo) / 360) // STEP
        if not 0 < side <= min(mine.shape):
            continue
        inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
        share = (inside + sums[:-side, :-side]) / side**2
        places = np.flatnonzero(share >= PURITY.get(kind, 0.97))
        if not len(places):
            continue
        place = np.unravel_index(random.choice(places), share.shape)
        row, column = (int(x) * STEP for x in place)
        crop = Image.fromarray(photo[row : row + side * STEP, column : column + side * STEP])
        crops.append(np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    return crops


def _chosen(crops: list[np.ndarray], kind: str) -> UInt8[np.ndarray, "n side side 3"]:
    """`CROPS` crops by the strength of their gradients relative to their mean.

    The strongest; of the ground those in the middle, and none of those that stand out from their
    median, which show painted lines; of foliage none with the sky between branches.
    """

    def strength(crop: np.ndarray) -> float:
        grey = crop.astype(np.float32).mean(-1)
        steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        return float(steps / (grey.mean() + 10.0))

    def bright(crop: np.ndarray) -> float:
        low, high = np.percentile(crop.mean(-1), (50, 97))
        return float((high + 10.0) / (low + 10.0))

    order = np.argsort([-strength(crop) for crop in crops], kind="stable")
    first = 0
    if kind in ("road", "pavement", "foliage"):
        order = order[np.argsort([bright(crops[i]) for i in order], kind="stable")]
        order = order[: max(len(order) // 2, min(len(order), CROPS))]
    if kind in ("road", "pavement"):
        order = order[np.argsort([-strength(crops[i]) for i in order], kind="stable")]
        first = max(0, len(order) - CROPS) // 2
    return np.stack([crops[i] for i in np.sort(order[first : first + CROPS])])
