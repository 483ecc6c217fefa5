"""The prior: what the reconstructed scene shows at the poses that come next.

A prior is drawn without the sky, so that it is black where the scene says nothing, and comes with
its alpha. WorldGen fills those holes from its own last frame and sees the alpha as a mask.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jwm_jax.scene import Camera, Intrinsics, Scene
from jwm_jax.scene.pytree import Array


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
    """Draw a scene for the generator.

    Args:
        scene: What is known.
        camera: World frame, any leading axes [*b].
        times: Seconds since the scene's start, [*b].
    """
    lens = camera.intrinsics
    scene = replace(scene, start=0.0)  # it is part of the program, and not used in it
    return _render(scene, camera.world_from_camera, lens.K, times, (lens.height, lens.width))


@partial(jax.jit, static_argnums=4)
def _render(scene, world_from_camera, K, times, size) -> Prior:
    lens = Intrinsics(K=K, height=size[0], width=size[1])
    picture = scene.render(Camera(lens, world_from_camera), times, sky=False)
    return Prior(jnp.clip(picture.rgb, 0.0, 1.0), picture.alpha, picture.depth, picture.overflow)
