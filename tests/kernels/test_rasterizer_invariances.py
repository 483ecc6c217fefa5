"""What must not change the image: order, tiles, groups, whole-tile shifts, batching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import bin_tiles, project, rasterization
from jwm_kernels.gaussian_rasterizer.blending import xla
from jwm_kernels.gaussian_rasterizer.blending.layout import pack_table
from jwm_kernels.gaussian_rasterizer.blending.vjp import BlendSpec


def _image(render, splats, **options):
    image, alpha, _ = render(*splats.arrays, splats.width, splats.height, **options)
    return np.concatenate([image, alpha], -1)


def test_order_of_the_gaussians_does_not_matter(splats, render):
    order = np.random.default_rng(0).permutation(64)
    arrays = [array[order] for array in splats.arrays[:5]]
    shuffled = render(*arrays, *splats.arrays[5:], splats.width, splats.height)[0]
    np.testing.assert_allclose(
        shuffled, render(*splats.arrays, splats.width, splats.height)[0], atol=1e-6
    )


@pytest.mark.parametrize("tile_size", [5, 64])
def test_tile_size_does_not_matter(splats, render, tile_size):
    np.testing.assert_allclose(
        _image(render, splats, tile_size=tile_size), _image(render, splats), atol=1e-6
    )


def test_grouping_does_not_matter(splats):
    """Groups of three tiles against all tiles at once."""
    projection = project(*splats.arrays[:4], *splats.arrays[5:], splats.width, splats.height)
    features = jnp.broadcast_to(splats.colors, (2, 64, 3))
    lists = bin_tiles(projection, splats.width, splats.height, tile_size=8, capacity=2048)
    spec = BlendSpec(splats.width, splats.height, 8, 0.99)
    arguments = (pack_table(projection, features), lists.rows, lists.starts, lists.counts)
    tuning = {"group_pixels": 200, "unroll": 3}
    expected = jax.jit(lambda *a: xla.forward(*a, spec))(*arguments)
    got = jax.jit(lambda *a: xla.forward(*a, spec, **tuning))(*arguments)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    cotangents = [jnp.cos(7 * value) for value in expected]
    arguments = (*arguments, *expected, *cotangents)
    grad = jax.jit(lambda *a: xla.backward(*a, spec))(*arguments)
    got = jax.jit(lambda *a: xla.backward(*a, spec, **tuning))(*arguments)
    np.testing.assert_allclose(got, grad, atol=2e-5 * float(jnp.abs(grad).max()))


def test_many_channels_are_blended_like_few(splats):
    """More than eight channels take another path through the blend."""
    weight = np.random.default_rng(2).normal(size=(2, 28, 44, 12)).astype(np.float32)
    few_weight = weight.reshape(2, 28, 44, 4, 3).sum(3)

    @jax.jit
    def gradients(colors, means):
        def loss(colors, means, copies, weight):
            image = rasterization(
                means, *splats.arrays[1:4], jnp.tile(colors, (1, copies)), *splats.arrays[5:],
                splats.width, splats.height,
            )[0]  # fmt: skip
            return jnp.sum(image * weight)

        many = jax.value_and_grad(loss, argnums=(0, 1))(colors, means, 4, weight)
        return many, jax.value_and_grad(loss, argnums=(0, 1))(colors, means, 1, few_weight)

    (many, many_grads), (few, few_grads) = gradients(splats.colors, splats.means)
    np.testing.assert_allclose(many, few, rtol=1e-5)
    for a, b in zip(many_grads, few_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_shift_by_whole_tiles_moves_the_image(splats, render):
    shifted = splats.Ks.copy()
    shifted[:, :2, 2] += [8, 16]
    image = render(*splats.arrays, splats.width, splats.height)[0]
    moved = render(*splats.arrays[:6], shifted, splats.width + 8, splats.height + 16)[0]
    np.testing.assert_allclose(moved[:, 16:, 8:], image, atol=2e-5)


def test_cameras_are_independent(splats, render):
    """A second camera that sees nothing changes nothing in the first."""
    views = splats.viewmats.copy()
    views[1, 2, 3] = -1000.0
    apart = render(*splats.arrays[:5], views, splats.Ks, splats.width, splats.height)[0]
    both = render(*splats.arrays, splats.width, splats.height)[0]
    np.testing.assert_allclose(apart[0], both[0], atol=1e-6)
    assert not np.any(apart[1])


def test_host_sort_gives_the_same_lists_and_image(splats, render):
    size = (splats.width, splats.height)
    projection = project(*splats.arrays[:4], *splats.arrays[5:], *size)
    lists = [
        bin_tiles(projection, *size, tile_size=8, capacity=4096, host_sort=host_sort)
        for host_sort in (True, False)
    ]
    jax.tree.map(np.testing.assert_array_equal, *lists)
    images = [_image(render, splats, host_sort=host_sort) for host_sort in (True, False)]
    np.testing.assert_allclose(*images, atol=1e-6)


def test_wide_keys_give_the_same_lists(splats, monkeypatch):
    """Where tile and rank do not fit into 32 bits, they are sorted as two keys."""
    projection = project(*splats.arrays[:4], *splats.arrays[5:], splats.width, splats.height)
    arguments = (projection, splats.width, splats.height)
    narrow = bin_tiles(*arguments, tile_size=8, capacity=1024)
    monkeypatch.setattr("jwm_kernels.gaussian_rasterizer.binning.tile_lists.KEY_BITS", 10)
    wide = bin_tiles(*arguments, tile_size=8, capacity=1024)
    listed = int(narrow.counts.sum())
    np.testing.assert_array_equal(narrow.counts, wide.counts)
    np.testing.assert_array_equal(narrow.starts, wide.starts)
    np.testing.assert_array_equal(narrow.rows[:listed], wide.rows[:listed])


def test_equal_depths_keep_the_order_of_the_input(render, splats):
    """Two coincident splats: the first one given is in front."""
    arrays = [np.repeat(array[:1], 64, 0) for array in splats.arrays[:5]]
    arrays[0] = np.tile(np.array([[0.0, 0.0, 5.0]], np.float32), (64, 1))
    arrays[2] = np.full((64, 3), 2.0, np.float32)
    arrays[3] = np.r_[0.9, 0.9, np.zeros(62)].astype(np.float32)
    arrays[4] = np.eye(64, 3, dtype=np.float32)
    centre = render(*arrays, *splats.arrays[5:], splats.width, splats.height)[0][0, 14, 22]
    assert centre[0] == pytest.approx(0.9, abs=0.01)
    assert centre[1] == pytest.approx(0.09, abs=0.01)
