"""Sets of 3D Gaussians, flat and padded."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jwm_jax.scene.pytree import Array, pytree_dataclass
from jwm_jax.scene.transforms import array_module


@pytree_dataclass
class Gaussians:
    """N Gaussians, some of which may be padding. Leading axes batch sets.

    Attributes:
        means: Metres; world frame for owner 0, else the frame of the owner's box.
        quats: Orientation wxyz in the same frame, not necessarily normalised.
        scales: Standard deviations along the Gaussian's own axes, metres.
        opacities: In [0, 1], at the Gaussian's own time.
        colors: RGB in [0, 1].
        mask: False for padding.
        time: When the Gaussian was seen, seconds since the clip's start.
        lifespan: How long beyond the scene's tau it stays, seconds, >= 0.
        owner: 0 for the static world, k for the thing of track k - 1.
        confidence: 1 for what a sensor saw, less for what a generator made up.
        feature: Optional vector for learned refinement.
    """

    means: Float[Array, "*b n 3"]
    quats: Float[Array, "*b n 4"]
    scales: Float[Array, "*b n 3"]
    opacities: Float[Array, "*b n"]
    colors: Float[Array, "*b n 3"]
    mask: Bool[Array, "*b n"]
    time: Float[Array, "*b n"]
    lifespan: Float[Array, "*b n"]
    owner: Int[Array, "*b n"]
    confidence: Float[Array, "*b n"]
    feature: Float[Array, "*b n d"] | None = None

    @property
    def capacity(self) -> int:
        """N, with padding."""
        return self.means.shape[-2]

    def count(self) -> int:
        """How many are not padding (host)."""
        return int(np.asarray(self.mask).sum())


def make_gaussians(
    means: Float[Array, "n 3"],
    colors: Float[Array, "n 3"],
    scales: Float[Array, "n 3"],
    opacities: Float[Array, "n"],
    quats: Float[Array, "n 4"] | None = None,
    **others: Array,
) -> Gaussians:
    """Gaussians with defaults: static, identity rotation, seen at time 0, everlasting, certain."""
    xp = array_module(means)
    n, dtype = means.shape[0], means.dtype
    if quats is None:
        quats = xp.broadcast_to(xp.asarray([1.0, 0.0, 0.0, 0.0], dtype), (n, 4))
    fields = {
        "mask": xp.ones(n, bool),
        "time": xp.zeros(n, dtype),
        "lifespan": xp.full(n, 1e6, dtype),
        "owner": xp.zeros(n, np.int32),
        "confidence": xp.ones(n, dtype),
        "feature": None,
    } | others
    return Gaussians(
        means=means, quats=quats, scales=scales, opacities=opacities, colors=colors, **fields
    )


def concatenate(*sets: Gaussians) -> Gaussians:
    """One set from several. Features are kept only if every set has them."""

    def joined(name):
        parts = [getattr(s, name) for s in sets]
        return None if any(p is None for p in parts) else jnp.concatenate(parts)

    names = [f for f in Gaussians.__dataclass_fields__]
    return Gaussians(**{name: joined(name) for name in names})
