"""Which photograph a street's things wear."""

import numpy as np

from jwm_jax.data.streets.appearance import (
    BODY,
    CABIN,
    FACADE,
    PLAIN,
    ROOF,
    SIGN,
    VEGETATION,
    VEHICLE,
)
from jwm_jax.data.streets.photo_crops import photo_crops
from jwm_jax.data.streets.textures import Textures, pyramid

GROUND_AND_SKY = (
    ("road", 3.0, 6.0),
    ("pavement", 2.0, 4.0),
    ("foliage", 1.5, 3.0),
    ("sky", 0.8, 1.4),
)
"""Kinds of the first textures, in the order of `textures.ROAD_TEXTURE` and so on, and between which
spans each is drawn."""

THINGS = (
    ("wall", 5.0, 12.0, 8),
    ("foliage", 1.5, 3.0, 4),
    ("foliage", 0.3, 0.6, 1),
    ("car", 0.0, 0.0, 8),
    ("sign", 0.0, 0.0, 6),
)
"""The same of walls, crowns, bark, cars and signs, and how many of each a street has."""

SKY_STRENGTH = 0.4
"""Contrast of the sky's photograph, which is bright enough to burn out."""


class Paper:
    """Photographs of one street.

    Attributes:
        texels: `Textures.texels`.
        spans: `Textures.spans`.
    """

    def __init__(self, random: np.random.Generator) -> None:
        """Draws the photographs.

        Raises:
          DataError: there are none.
        """
        self.random = random
        crops = photo_crops()
        pyramids: list[np.ndarray] = []
        spans: list[float] = []

        def hang(kind: str, low: float, high: float) -> tuple[int, np.ndarray]:
            """A random crop of a kind as a new texture: its index and its mean colour."""
            span = float(random.uniform(low, high))
            crop = crops[kind][int(random.integers(len(crops[kind])))]
            strength = SKY_STRENGTH if kind == "sky" else 1.0
            pyramids.append(1.0 + strength * (pyramid(crop) - 1.0))
            spans.append(span)
            return len(spans) - 1, crop.mean((0, 1)) / 255.0

        for kind, low, high in GROUND_AND_SKY:
            hang(kind, low, high)
        self.walls, self.crowns, self.bark, self.cars, self.signs = (
            [hang(kind, low, high) for _ in range(count)] for kind, low, high, count in THINGS
        )
        self.texels, self.spans = np.stack(pyramids), np.asarray(spans, np.float32)

    def cover(self, solids: list[list], rounds: list[list]) -> None:
        """Appends to every row the texture it wears, or -1, and gives it that texture's colour."""
        for row in solids:
            row.append(self._solid(row))
        for row in rounds:
            leafy = row[7] == VEGETATION
            row.append(self._pick(self.crowns)[0] if leafy else -1)
            if leafy:
                row[8:11] = (0.6 * np.asarray(row[8:11]) + 0.4 * np.mean(row[8:11])).tolist()

    def textures(self, solids: np.ndarray, ellipsoids: np.ndarray) -> Textures:
        """The textures, and who wears which."""
        return Textures(self.texels, self.spans, solids, ellipsoids)

    def _solid(self, row: list) -> int:
        material, label = row[10], row[11]
        if material == FACADE:
            texture = self._wear(row, self._pick(self.walls), 0.3, 0.6)
            if self.random.random() < 0.75:
                row[17] = 0.0  # the photograph's windows do
            return texture
        if material == ROOF:
            return self._pick(self.walls)[0]
        if material in (BODY, CABIN) or (material == PLAIN and label == VEHICLE):
            return self._wear(row, self._pick(self.cars), 0.15, 0.5)
        if material == SIGN:
            return self._wear(row, self._pick(self.signs), 0.35, 0.6)
        if material == PLAIN and label == VEGETATION:
            return self.bark[0][0]
        return -1

    def _pick(self, choices: list) -> tuple[int, np.ndarray]:
        return choices[int(self.random.integers(len(choices)))]

    def _wear(self, row: list, choice: tuple[int, np.ndarray], low: float, high: float) -> int:
        """Gives a row the mean colour of a texture, at some brightness and with some tint."""
        index, mean = choice
        color = mean * float(self.random.uniform(low, high)) / mean.mean()
        color = color * self.random.uniform(0.93, 1.07, 3)
        row[12:15] = np.clip(color, 0.03, 0.85).tolist()
        return index
