"""Clips as latents: encoded once, kept in a folder, drawn from as windows.

Encoding costs far more than a training step's arithmetic can wait for, so a data set is run through
the codec once: pictures, layout frames, and priors where there are any, with ego motion, style and
rays (`latent_encoding`).
A window of F latent frames that begins inside a clip needs a first latent as a session makes one,
from a single still frame; those stills are encoded too. Priors are a plug: a function from a clip
to rendered frames and alphas. Without it the prior is zeros and its mask is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jwm_jax.errors import UsageError
from jwm_jax.scene.clip import Clip
from jwm_jax.worldgen.conditions import LatentConditions

Prior = Callable[[Clip], tuple[np.ndarray, np.ndarray]]
"""A clip of T frames and V views to rendered frames [V, T, H, W, 3] and alphas [V, T, H, W]."""


@dataclass(frozen=True)
class LatentSource:
    """Where clips come from and how they are cut.

    Attributes:
        datasets: folders made by `jwm data make`.
        clips: real drives and films as `load_clip` takes them, with `$VAR` expanded, at 10 Hz.
            Wide ones are cut out several times, and pieces overlap by half.
        frames: video frames of an example, 1 + 4k; longer clips give several.
        window: latent frames of a training window, at most 1 + k.
        height: rows; streets are resized to this size, real pictures cut to its aspect.
        width: columns.
        views: views of an example; 1 makes every view an example of its own.
        mirror: whether every example is also there mirrored left to right.
        held_out: clips at the end of each data set that are kept for evaluation.
        limit: most clips taken from each data set; 0 for all.
    """

    datasets: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()
    frames: int = 25
    window: int = 7
    height: int = 96
    width: int = 160
    views: int = 1
    mirror: bool = True
    held_out: int = 8
    limit: int = 0

    def __post_init__(self) -> None:
        if self.frames % 4 != 1 or self.window > 1 + self.frames // 4 or self.window < 2:
            raise UsageError(
                f"frames must be 1 + 4k and window between 2 and 1 + k, got frames {self.frames} "
                f"and window {self.window}."
            )
        if self.mirror and self.views > 1:
            raise UsageError("mirror works on single views only: set mirror=False or views=1.")


@dataclass(frozen=True)
class LatentSet:
    """Encoded examples; arrays are memory maps with the example as first axis.

    Attributes:
        latents: [N, V, F, h, w, c] float16.
        stills: single-frame encodings at each possible start of a window, [N, V, S, h, w, c].
        layout: as latents.
        layout_stills: as stills.
        layout_valid: [N], 1 where there is a layout.
        prior: as latents.
        prior_mask: [N, V, F, h, w, 1].
        ego_motion: [N, F, 4, 4] float32; zeros for frame 0.
        ego_valid: [N].
        style: [N, n] int32.
        rays: [N, V, h, w, 6] float32.
        held_out: [N] bool.
        real: [N] bool, whether the pictures are of the real drives and films.
    """

    latents: np.ndarray
    stills: np.ndarray
    layout: np.ndarray
    layout_stills: np.ndarray
    layout_valid: np.ndarray
    prior: np.ndarray
    prior_mask: np.ndarray
    ego_motion: np.ndarray
    ego_valid: np.ndarray
    style: np.ndarray
    rays: np.ndarray
    held_out: np.ndarray
    real: np.ndarray

    def window(self, example: int, start: int, frames: int) -> tuple[np.ndarray, LatentConditions]:
        """One window with a leading axis of 1: latents [1, V, F, h, w, c] and their conditions."""
        part = slice(start, start + frames)

        def cut(name: str) -> np.ndarray:
            values = np.array(getattr(self, name)[example, :, part], np.float32)
            stills = {"latents": self.stills, "layout": self.layout_stills}.get(name)
            if stills is not None:
                values[:, 0] = stills[example, :, start]
            elif name.startswith("prior"):
                values[:, 0] = 0.0
            return values[None]

        motion = np.array(self.ego_motion[example, part])
        motion[0] = 0.0
        known = np.full((1, frames), self.ego_valid[example], np.float32)
        known[:, 0] = 0.0
        views = self.latents.shape[1]
        conditions = LatentConditions(
            layout=cut("layout"),
            layout_valid=np.full((1, views, frames), self.layout_valid[example], np.float32),
            prior=cut("prior"),
            prior_mask=cut("prior_mask"),
            ego_motion=motion[None],
            ego_valid=known,
            style=np.array(self.style[example])[None],
            rays=np.array(self.rays[example])[None],
            guidance=np.ones(1, np.float32),
        )
        return cut("latents"), conditions


def stack_windows(
    windows: list[tuple[np.ndarray, LatentConditions]],
) -> tuple[np.ndarray, LatentConditions]:
    """Joins windows along their first axis."""
    import jax

    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *windows)
