"""The prior: what the reconstructed scene shows at the poses that come next.

A prior is drawn without the sky, so that it is black where the scene says nothing, and comes with
its alpha. WorldGen fills those holes from its own last frame and sees the alpha as a mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.scene import Camera, Scene
from jwm_jax.scene.pytree import Array
from jwm_jax.scene.scene import default_capacity


class Prior(NamedTuple):
    """Rendered pictures of a scene.

    Attributes:
        rgb: [..., H, W, 3] in [0, 1], black where nothing is known.
        alpha: [..., H, W] in [0, 1].
        depth: [..., H, W] metres, 0 where nothing is known.
        overflow: [...], see `Rendering`.
    """

    rgb: jax.Array
    alpha: jax.Array
    depth: jax.Array
    overflow: jax.Array


def render_prior(scene: Scene, camera: Camera, times: Float[Array, "*b"]) -> Prior:
    """Draw a scene for the generator, with a fixed capacity whose overflow is counted: a world in
    motion must neither count first nor compile again.

    Args:
        scene: What is known.
        camera: World frame, any leading axes [*b].
        times: Seconds since the scene's start, [*b].
    """
    slots = default_capacity(scene.gaussians.capacity, camera.height, camera.width)
    picture = scene.render(camera, times, sky=False, capacity=slots)
    return Prior(jnp.clip(picture.rgb, 0.0, 1.0), picture.alpha, picture.depth, picture.overflow)
