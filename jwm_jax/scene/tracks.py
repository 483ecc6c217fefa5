"""Box tracks: what moves, how large it is, and where it is when."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from jwm_jax.scene.pytree import Array, host_field, pytree_dataclass
from jwm_jax.scene.transforms import (
    array_module,
    interpolation_weights,
    make_transform,
    matrix_to_quat,
    quat_slerp,
    quat_to_matrix,
)

CATEGORIES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "other",
)
"""Categories of tracked things; `Tracks.category` indexes into this."""


@pytree_dataclass
class Tracks:
    """Boxes of N things at S times on one shared time axis.

    On the host times are float64 absolute seconds; on a device float32 seconds since the clip's
    start. A box frame has x forward, y left, z up and its origin at the box centre.

    Attributes:
        times: Ascending, seconds.
        centers: World, metres.
        quats: Box to world, wxyz.
        sizes: Length, width, height in metres.
        valid: Whether the thing was annotated at that time.
        category: Index into `CATEGORIES`.
        ids: One name a thing; forgotten by transformations.
    """

    times: Float[Array, "s"]
    centers: Float[Array, "n s 3"]
    quats: Float[Array, "n s 4"]
    sizes: Float[Array, "n 3"]
    valid: Bool[Array, "n s"]
    category: Int[Array, "n"]
    ids: tuple[str, ...] = host_field(())

    @property
    def num_tracks(self) -> int:
        """How many things there are."""
        return self.sizes.shape[0]

    def at(
        self, time: Float[Array, ""] | float | np.floating
    ) -> tuple[Float[Array, "n 4 4"], Bool[Array, "n"]]:
        """Poses at one time: linear centre, slerp rotation.

        Between two times of the axis of which only one is annotated, and before the first and after
        the last time of the axis, a thing is there and its annotated pose is held.

        Returns:
            world_from_box [N, 4, 4] and whether each thing is there [N].
        """
        xp = array_module(self.times, self.centers, time)
        times = xp.asarray(self.times)
        left, weight = interpolation_weights(times, xp.asarray(time, times.dtype))
        right = xp.minimum(left + 1, times.shape[0] - 1)
        valid = xp.asarray(self.valid)
        valid_left, valid_right = valid[:, left] & (weight < 1), valid[:, right] & (weight > 0)
        weight = xp.where(valid_left & valid_right, weight, xp.where(valid_right, 1.0, 0.0))
        weight = weight.astype(self.centers.dtype)
        centers, quats = xp.asarray(self.centers), xp.asarray(self.quats)
        center = centers[:, left] + weight[:, None] * (centers[:, right] - centers[:, left])
        quat = quat_slerp(quats[:, left], quats[:, right], weight)
        return make_transform(quat_to_matrix(quat), center), valid_left | valid_right

    def select(self, keep: np.ndarray) -> "Tracks":
        """The tracks of a boolean mask or an index array (host arrays)."""
        index = np.flatnonzero(keep) if np.asarray(keep).dtype == bool else np.asarray(keep)
        return Tracks(
            times=self.times,
            centers=self.centers[index],
            quats=self.quats[index],
            sizes=self.sizes[index],
            valid=self.valid[index],
            category=self.category[index],
            ids=tuple(self.ids[i] for i in index) if self.ids else (),
        )

    def around(self, moments: Float[np.ndarray, "*m"]) -> "Tracks":
        """The times that poses at some moments depend on: the nearest before and after each.

        Args:
            moments: Seconds on the tracks' clock.
        """
        times = np.asarray(self.times)
        after = np.searchsorted(times, np.ravel(moments))
        kept = np.unique(np.clip([after - 1, after], 0, len(times) - 1))
        return replace(
            self,
            times=self.times[kept],
            centers=self.centers[:, kept],
            quats=self.quats[:, kept],
            valid=self.valid[:, kept],
        )

    def shifted(self, seconds: float) -> "Tracks":
        """The same motion, `seconds` later."""
        return replace(self, times=self.times + seconds)

    def moved(self, new_from_old: Float[np.ndarray, "4 4"]) -> "Tracks":
        """The same boxes with their world expressed in another frame (host arrays)."""
        boxes = new_from_old @ make_transform(quat_to_matrix(self.quats), self.centers)
        return replace(self, centers=boxes[..., :3, 3], quats=matrix_to_quat(boxes[..., :3, :3]))

    def on_device(self, start: float, count: int | None = None) -> "Tracks":
        """Float32 tracks on the scene's clock: seconds since `start`, padded to `count` things.

        Args:
            start: The clip's start, absolute seconds.
            count: Number of things to pad to with ones that are never there; None for no padding.

        Raises:
            ValueError: There are more than `count` things.
        """
        pad = 0 if count is None else count - self.num_tracks
        if pad < 0:
            raise ValueError(f"tracks: {self.num_tracks} things do not fit into {count}.")

        def padded(array, value, dtype):
            widths = [(0, pad)] + [(0, 0)] * (array.ndim - 1)
            return np.pad(np.asarray(array, dtype), widths, constant_values=value)

        quats = padded(self.quats, 0.0, np.float32)
        quats[self.num_tracks :, :, 0] = 1.0
        return Tracks(
            times=np.asarray(self.times - start, np.float32),
            centers=padded(self.centers, 0.0, np.float32),
            quats=quats,
            sizes=padded(self.sizes, 1.0, np.float32),
            valid=padded(self.valid, False, bool),
            category=padded(self.category, len(CATEGORIES) - 1, np.int32),
            ids=self.ids,
        )


def box_corners(sizes: Float[Array, "*b 3"]) -> Float[Array, "*b 8 3"]:
    """Corners in the box frame; the first four are the front face (x = +length / 2)."""
    xp = array_module(sizes)
    signs = [(x, y, z) for x in (1, -1) for y, z in ((1, -1), (-1, -1), (-1, 1), (1, 1))]
    return sizes[..., None, :] * 0.5 * xp.asarray(signs, sizes.dtype)
