"""Properties of the SH basis that hold for every degree, and colours seen from a camera."""

import jax
import jax.numpy as jnp
import numpy as np

from jwm_kernels import spherical_harmonics
from jwm_kernels.gaussian_rasterizer.api import _evaluate_sh
from jwm_kernels.gaussian_rasterizer.projection.spherical_harmonics import sum_of_harmonics

HARMONICS = jax.jit(spherical_harmonics, static_argnums=0)


def test_basis_is_orthonormal_up_to_degree_four():
    """The Gram matrix over the sphere is the identity (Gauss-Legendre times uniform azimuth)."""
    cos, weight = np.polynomial.legendre.leggauss(12)
    azimuth = np.arange(24) * 2 * np.pi / 24
    cos, azimuth = (grid.ravel() for grid in np.meshgrid(cos, azimuth, indexing="ij"))
    sin = np.sqrt(1 - cos**2)
    dirs = np.stack([sin * np.cos(azimuth), sin * np.sin(azimuth), cos], -1).astype(np.float32)
    each = np.broadcast_to(np.eye(25, dtype=np.float32), (len(dirs), 25, 25))
    basis = np.asarray(HARMONICS(4, dirs, each), np.float64)
    gram = (basis * np.repeat(weight, 24)[:, None] * 2 * np.pi / 24).T @ basis
    np.testing.assert_allclose(gram, np.eye(25), atol=1e-5)


def test_length_of_the_direction_does_not_matter_and_zero_is_safe():
    random = np.random.default_rng(0)
    dirs = random.normal(size=(10, 3)).astype(np.float32)
    coeffs = random.normal(size=(10, 16, 3)).astype(np.float32)
    expected = HARMONICS(3, dirs, coeffs)
    for factor in (1e-20, 1e20):
        got = HARMONICS(3, dirs * np.float32(factor), coeffs)
        np.testing.assert_allclose(got, expected, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda d: jnp.sum(HARMONICS(3, d, coeffs))))(dirs * 0)
    assert np.isfinite(gradient).all()


def test_colors_depend_on_the_view_direction(splats, render):
    """Degree 0 equals plain colours; degree 1 is evaluated along camera centre to Gaussian."""
    size = (splats.width, splats.height)
    flat = (splats.colors[:, None] - 0.5) / 0.2820947917738781
    linear = np.random.default_rng(0).normal(size=(64, 3, 3)).astype(np.float32) * 0.3
    got = render(*splats.arrays[:4], flat, *splats.arrays[5:], *size, sh_degree=0)[0]
    np.testing.assert_allclose(got, render(*splats.arrays, *size)[0], atol=1e-5)

    centres = np.linalg.inv(splats.viewmats.astype(np.float64))[:, :3, 3]
    dirs = splats.means - centres[:, None]
    x, y, z = np.moveaxis(dirs / np.linalg.norm(dirs, axis=-1, keepdims=True), -1, 0)[..., None]
    shaded = splats.colors - 0.4886025 * (y * linear[:, 0] - z * linear[:, 1] + x * linear[:, 2])
    shaded = np.maximum(shaded, 0).astype(np.float32)
    coeffs = np.concatenate([flat, linear], 1)
    got = render(*splats.arrays[:4], coeffs, *splats.arrays[5:], *size, sh_degree=1)[0]
    expected = render(*splats.arrays[:4], shaded, *splats.arrays[5:], *size)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_shared_coefficients_are_not_repeated_for_every_camera():
    """Coefficients of every camera would not fit into what colours and their gradient need."""
    cameras, n, degree = 6, 100_000, 3
    of_every_camera = cameras * n * (degree + 1) ** 2 * 3 * 4
    shapes = [(n, 3), (cameras, 3), (1, n, 16, 3)]

    def loss(*arrays):
        return jnp.sum(_evaluate_sh(degree, *arrays) ** 2)

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < of_every_camera


def test_broadcast_coefficients_equal_repeated_ones():
    """Value and gradient, of so many directions that XLA takes its code for large arrays."""
    random = np.random.default_rng(0)
    dirs = random.normal(size=(3, 20_000, 3)).astype(np.float32)
    coeffs = random.normal(size=(1, 20_000, 4, 3)).astype(np.float32)
    weight = random.normal(size=(3, 20_000, 3)).astype(np.float32)
    dirs /= np.linalg.norm(dirs, axis=-1, keepdims=True)

    def loss(dirs, coeffs):
        return jnp.sum(sum_of_harmonics(1, dirs, coeffs) * weight)

    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(dirs, coeffs)
    x, y, z = jnp.moveaxis(dirs, -1, 0)
    basis = np.stack([np.full_like(x, 0.2820948), *(0.4886025 * np.stack([-y, z, -x]))], -1)
    in_basis = np.einsum("cnd,nkd->cnk", weight, coeffs[0])
    across = 0.4886025 * np.stack([-in_basis[..., 3], -in_basis[..., 1], in_basis[..., 2]], -1)
    along = np.sum(across * dirs, -1, keepdims=True) * dirs
    np.testing.assert_allclose(got[0], across - along, atol=1e-5)
    np.testing.assert_allclose(got[1][0], np.einsum("cnk,cnd->nkd", basis, weight), atol=1e-5)
