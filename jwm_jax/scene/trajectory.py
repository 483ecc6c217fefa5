"""Where the ego vehicle goes."""

import numpy as np
from jaxtyping import Float

from jwm_jax.scene.pytree import Array, pytree_dataclass
from jwm_jax.scene.transforms import array_module, interpolate_transforms, invert_transform


@pytree_dataclass
class Trajectory:
    """Ego poses at F times.

    Attributes:
        times: Ascending seconds, on the clip's absolute clock on the host.
        world_from_ego: Metres.
    """

    times: Float[Array, "f"]
    world_from_ego: Float[Array, "f 4 4"]

    @property
    def num_frames(self) -> int:
        """F."""
        return self.times.shape[0]

    def at(self, times: Float[Array, "*q"]) -> Float[Array, "*q 4 4"]:
        """Interpolated poses; held constant beyond the ends."""
        return interpolate_transforms(self.times, self.world_from_ego, times)

    def shifted(self, left: float, over: float = 0.0) -> "Trajectory":
        """The same drive, `left` metres to the left of where it was.

        Args:
            left: Lateral shift in metres along each pose's own y axis; negative is to the right.
            over: Seconds over which a smooth lane change reaches the shift; 0 shifts at once.
        """
        xp = array_module(self.times, self.world_from_ego)
        if over > 0:
            s = xp.clip((self.times - self.times[0]) / over, 0.0, 1.0)
            amount = left * s * s * (3 - 2 * s)
        else:
            amount = xp.full(self.times.shape, left)
        step = amount[:, None].astype(self.world_from_ego.dtype) * self.world_from_ego[:, :3, 1]
        column = self.world_from_ego[:, :3, 3] + step
        top = xp.concatenate([self.world_from_ego[:, :3, :3], column[..., None]], axis=-1)
        return Trajectory(self.times, xp.concatenate([top, self.world_from_ego[:, 3:]], axis=-2))


def ego_motion(
    world_from_ego: Float[np.ndarray, "f 4 4"], times: Float[np.ndarray, "f"]
) -> Float[np.ndarray, "f-1 4"]:
    """Motion from each pose to the next, in the ego frame of the earlier one.

    Args:
        world_from_ego: Poses, metres.
        times: Ascending seconds.

    Returns:
        float32 [F - 1, 4]: forward metres, left metres, yaw radians, speed in metres a second.
    """
    step = invert_transform(world_from_ego[:-1]) @ world_from_ego[1:]
    yaw = np.arctan2(step[:, 1, 0], step[:, 0, 0])
    duration = np.maximum(np.diff(times), 1e-6)
    speed = np.linalg.norm(step[:, :2, 3], axis=-1) / duration
    return np.stack([step[:, 0, 3], step[:, 1, 3], yaw, speed], axis=-1).astype(np.float32)
