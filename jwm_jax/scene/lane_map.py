"""A vector map: polylines on the ground, in the world frame of a clip."""

import numpy as np
from jaxtyping import Float

from jwm_jax.scene.pytree import pytree_dataclass, static_field
from jwm_jax.scene.transforms import transform_points

LINE_KINDS = ("lane_divider", "lane_solid", "road_edge", "crosswalk", "centerline")
"""What a polyline can be. A crosswalk is the closed outline of its area."""


@pytree_dataclass
class LaneMap:
    """Polylines in metres.

    Attributes:
        polylines: One [P, 3] array a line.
        kinds: One of `LINE_KINDS` a line.
    """

    polylines: tuple[np.ndarray, ...]
    kinds: tuple[str, ...] = static_field()

    def __post_init__(self):
        if len(self.polylines) != len(self.kinds):
            raise ValueError(
                f"lane map: {len(self.polylines)} polylines but {len(self.kinds)} kinds."
            )
        unknown = sorted(set(self.kinds) - set(LINE_KINDS))
        if unknown:
            raise ValueError(f"lane map: unknown kinds {unknown}; expected some of {LINE_KINDS}.")

    def moved(self, new_from_old: Float[np.ndarray, "4 4"]) -> "LaneMap":
        """The same lines with their world expressed in another frame."""
        lines = tuple(transform_points(new_from_old, line) for line in self.polylines)
        return LaneMap(lines, self.kinds)
