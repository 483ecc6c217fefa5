r"""The pixel-aligned baseline of WorldRec `tiny` at the budget of its first stage.

The same backbone, depth head, Gaussians a picture, boxes, sky, data, loss and steps as
`worldrec_easy_tiny`, but every query decodes from its own picture's features alone. To compare:

    jwm train worldrec_easy_tiny --out runs/worldrec_easy_tiny
    jwm train worldrec_pixel_tiny --out runs/worldrec_pixel_tiny
    jwm evaluate worldrec --rung easy --count 6 --rec runs/worldrec_easy_tiny/model \
        --pixel-aligned runs/worldrec_pixel_tiny/model
"""

from dataclasses import replace

from jwm_configs import worldrec_easy_tiny
from jwm_jax.paradigms.worldrec import WorldRecExperiment


def config() -> WorldRecExperiment:
    """The experiment."""
    easy = worldrec_easy_tiny.config()
    return replace(easy, name="worldrec_pixel_tiny", model=replace(easy.model, pixel_aligned=True))
