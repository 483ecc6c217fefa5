"""One small scene and one compiled renderer, shared by all tests of the rasterizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.cases import Case, Splats, make_splats

STATIC = (
    "width", "height", "tile_size", "render_mode", "rasterize_mode", "camera_model", "max_alpha",
    "capacity", "host_sort", "near_plane", "far_plane", "radius_clip", "eps2d", "sh_degree",
    "backend",
)  # fmt: skip


@pytest.fixture(scope="session")
def splats() -> Splats:
    """64 wide splats seen by two cameras in 44x28 pixels: neither side is a multiple of a tile."""
    return make_splats(Case(64, 44, 28, cameras=2), seed=3, sigma=2.5)


@pytest.fixture(scope="session")
def render():
    """`rasterization`, compiled once for each combination of shapes and options."""
    return jax.jit(rasterization, static_argnames=STATIC)


@pytest.fixture(scope="session")
def weights() -> np.ndarray:
    """Fixed random weights that turn an image of 3 colours, depth and alpha into a loss."""
    return np.random.default_rng(5).normal(size=(2, 28, 44, 5)).astype(np.float32)


@pytest.fixture(scope="session")
def value_and_grad(splats, weights):
    """Loss of the weighted image and its gradient in all seven arrays, for the scene's shapes."""

    def loss(*arrays):
        image, alpha, _ = rasterization(*arrays, splats.width, splats.height, render_mode="RGB+D")
        return jnp.sum(weights * jnp.concatenate([image, alpha], -1))

    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(7))))
