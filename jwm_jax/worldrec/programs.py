"""Reconstruction and rendering as one StableHLO program that a process with jax alone runs.

    pictures, alpha, depth, overflow = scene(weights, inputs)

`inputs` are the fields of `Pictures` for P pictures of one scene without boxes (padding has mask
False), and any number b of views to draw: ``view_K`` [b, 3, 3] in pixels, ``view_pose`` [b, 4, 4]
(world from camera, metres) and ``view_time`` [b] in seconds since the clip's start. ``overflow``
[b] counts (splat, tile) pairs that did not fit into a picture's lists and are missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jwm_jax.checkpoint.model_dir import flatten, unflatten
from jwm_jax.scene.cameras import Camera, Intrinsics
from jwm_jax.scene.scene import Scene
from jwm_jax.worldrec.model import WorldRec, blank_pictures
from jwm_jax.worldrec.network import WorldRecNetwork

BOXES = ("world_from_box", "box_there", "box_sizes")
"""Fields of `Pictures` that the program fills in: there are no boxes."""


def weights_of(rec: WorldRec) -> dict[str, np.ndarray]:
    """The arrays that the program takes, float32."""
    return {name: np.asarray(value, np.float32) for name, value in flatten(rec.params).items()}


def export_reconstruction(
    rec: WorldRec, pictures: int, height: int, width: int, platforms: Sequence[str]
) -> dict[str, export.Exported]:
    """The program `scene` of a reconstruction model.

    Args:
        rec: the model.
        pictures: room for so many.
        height: of the pictures and of what is drawn, in pixels.
        width: of the pictures and of what is drawn.
        platforms: that the program is lowered for.

    Raises:
        ValueError: a size that the network does not take.
    """
    config = rec.config
    if (height, width) != config.picture_size(height, width):
        fits = " x ".join(str(n) for n in config.picture_size(height, width))
        raise ValueError(f"this model takes no pictures of {height} x {width}; {fits} would do.")
    blank = blank_pictures(config, pictures, height, width)
    given = [f.name for f in fields(blank) if f.name not in BOXES]
    (views,) = export.symbolic_shape("b")

    def scene(weights: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array]) -> Any:
        boxes = {name: jnp.asarray(getattr(blank, name)) for name in BOXES}
        seen = replace(blank, **boxes, **{name: inputs[name] for name in given})
        found = WorldRecNetwork(config).apply({"params": unflatten(weights)}, seen)
        made = Scene(found.gaussians, None, found.sky, tau=config.tau)
        lens = Intrinsics(K=inputs["view_K"], width=width, height=height)
        camera = Camera(lens, inputs["view_pose"])
        drawn = made.render(camera, inputs["view_time"], backend="xla")
        return drawn.rgb, drawn.alpha, drawn.depth, drawn.overflow

    inputs = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in vars(blank).items()}
    inputs = {name: inputs[name] for name in given} | {
        "view_K": jax.ShapeDtypeStruct((views, 3, 3), jnp.float32),
        "view_pose": jax.ShapeDtypeStruct((views, 4, 4), jnp.float32),
        "view_time": jax.ShapeDtypeStruct((views,), jnp.float32),
    }
    weights = {n: jax.ShapeDtypeStruct(x.shape, jnp.float32) for n, x in weights_of(rec).items()}
    return {"scene": export.export(jax.jit(scene), platforms=platforms)(weights, inputs)}
