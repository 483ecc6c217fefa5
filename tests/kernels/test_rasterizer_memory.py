"""Memory grows with splats, list slots and pixels, never with the product of two of them."""

import jax
import jax.numpy as jnp
import pytest

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.cases import CASES
from jwm_kernels.gaussian_rasterizer.vjp import BlendSpec

CHANNELS, TILE_SIZE, SLOTS = 3, 16, 5_000_000
BYTES = {
    "forward": (135 + 4 * CHANNELS, 12, 8 * (CHANNELS + 1)),
    "gradient": (345 + 8 * CHANNELS, 12, 16 * (CHANNELS + 1)),
}
"""Of temporary arrays: per splat, per list slot and per pixel, as README.md states them."""


@pytest.mark.parametrize(
    ("direction", "host_sort"), [("forward", False), ("gradient", False), ("gradient", True)]
)
def test_a_million_splats_in_full_hd_take_what_the_readme_says(direction, host_sort):
    """Compiled only: an array of splats times tiles would alone take 33 GB."""
    case = CASES["huge"]
    n, spec = case.gaussians, BlendSpec(case.width, case.height, TILE_SIZE, 0.99)

    def render(*arrays):
        return rasterization(
            *arrays, case.width, case.height, tile_size=TILE_SIZE, capacity=SLOTS,
            host_sort=host_sort, backend="xla",
        )[:2]  # fmt: skip

    def loss(*arrays):
        image, alpha = render(*arrays)
        return jnp.sum(image**2) + jnp.sum(alpha)

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))
    function = render if direction == "forward" else gradient
    shapes = [(n, 3), (n, 4), (n, 3), (n,), (n, CHANNELS), (1, 4, 4), (1, 3, 3)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    pixels = spec.tiles_x * spec.tiles_y * TILE_SIZE**2
    counts = (n, SLOTS, pixels)
    most = sum(each * count for each, count in zip(BYTES[direction], counts, strict=True))
    assert 0.5 * most < memory.temp_size_in_bytes <= most
