"""A vector map: polylines on the ground, in the world frame of a clip."""

from dataclasses import dataclass

import numpy as np

LINE_KINDS = ("lane_divider", "lane_solid", "road_edge", "crosswalk", "centerline")
"""What a polyline can be. A crosswalk is the closed outline of its area."""


@dataclass(frozen=True)
class LaneMap:
    """Polylines in metres.

    Attributes:
        polylines: One [P, 3] array a line.
        kinds: One of `LINE_KINDS` a line.
    """

    polylines: tuple[np.ndarray, ...]
    kinds: tuple[str, ...]

    def __post_init__(self):
        if len(self.polylines) != len(self.kinds):
            raise ValueError(
                f"lane map: {len(self.polylines)} polylines but {len(self.kinds)} kinds."
            )
        unknown = sorted(set(self.kinds) - set(LINE_KINDS))
        if unknown:
            raise ValueError(f"lane map: unknown kinds {unknown}; expected some of {LINE_KINDS}.")
