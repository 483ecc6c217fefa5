"""Memory grows with splats, list slots and pixels, never with the product of two of them."""

import jax
import jax.numpy as jnp
import pytest

from jwm_kernels import rasterization
from jwm_kernels.gaussian_rasterizer.blending.vjp import BlendSpec
from jwm_kernels.gaussian_rasterizer.cases import CASES

CHANNELS, TILE_SIZE, SLOTS = 3, 16, 5_000_000
BYTES = {
    "forward": (135 + 4 * CHANNELS, 12, 8 * (CHANNELS + 1)),
    "gradient": (345 + 8 * CHANNELS, 12, 16 * (CHANNELS + 1)),
}
"""Of temporary arrays: per splat, per list slot and per pixel, as README.md states them."""

COEFFICIENTS = 16
EXTRAS = {
    "plain": ({}, {"forward": 0, "gradient": 0}),
    "harmonics": ({"sh_degree": 3}, {"forward": 12 * COEFFICIENTS, "gradient": 24 * COEFFICIENTS}),
    "unscented": ({"with_ut": True}, {"forward": 10, "gradient": 100}),
}
"""Options, and the bytes that they add to a splat."""


@pytest.mark.parametrize(
    ("direction", "kind", "host_sort"),
    [
        ("forward", "plain", False),
        ("gradient", "plain", False),
        ("gradient", "plain", True),
        ("forward", "harmonics", False),
        ("gradient", "harmonics", False),
        ("forward", "unscented", False),
        ("gradient", "unscented", False),
    ],
)
def test_a_million_splats_in_full_hd_take_what_the_readme_says(direction, kind, host_sort):
    """Compiled only: an array of splats times tiles would alone take 33 GB."""
    options, more = EXTRAS[kind]
    case = CASES["huge"]
    n, spec = case.gaussians, BlendSpec(case.width, case.height, TILE_SIZE, 0.99)

    def render(*arrays):
        return rasterization(
            *arrays, case.width, case.height, tile_size=TILE_SIZE, capacity=SLOTS,
            host_sort=host_sort, backend="xla", **options,
        )[:2]  # fmt: skip

    def loss(*arrays):
        image, alpha = render(*arrays)
        return jnp.sum(image**2) + jnp.sum(alpha)

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))
    function = render if direction == "forward" else gradient
    colors = (n, COEFFICIENTS, 3) if kind == "harmonics" else (n, CHANNELS)
    shapes = [(n, 3), (n, 4), (n, 3), (n,), colors, (1, 4, 4), (1, 3, 3)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    pixels = spec.tiles_x * spec.tiles_y * TILE_SIZE**2
    counts = (n, SLOTS, pixels)
    most = sum(each * count for each, count in zip(BYTES[direction], counts, strict=True))
    most += more[direction] * n
    assert 0.5 * most < memory.temp_size_in_bytes <= most
