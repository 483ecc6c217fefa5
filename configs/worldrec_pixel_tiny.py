"""The pixel-aligned baseline of WorldRec `tiny`.

The same backbone, depth head, Gaussians a picture, boxes, sky, data, loss and budget, but every
query decodes from its own picture's features alone.

Command: jwm train worldrec_pixel_tiny
"""

from dataclasses import replace

from jwm_configs import worldrec_tiny
from jwm_jax.training.worldrec import WorldRecExperiment


def config() -> WorldRecExperiment:
    """The experiment."""
    tiny = worldrec_tiny.config()
    return replace(tiny, name="worldrec_pixel_tiny", model=replace(tiny.model, pixel_aligned=True))
