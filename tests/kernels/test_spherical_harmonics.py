"""Properties of the SH basis that hold for every degree, and colours seen from a camera."""

import jax
import jax.numpy as jnp
import numpy as np

from jwm_kernels import spherical_harmonics


def test_basis_is_orthonormal_up_to_degree_four():
    """The Gram matrix over the sphere is the identity (Gauss-Legendre times uniform azimuth)."""
    cos, weight = np.polynomial.legendre.leggauss(12)
    azimuth = np.arange(24) * 2 * np.pi / 24
    cos, azimuth = (grid.ravel() for grid in np.meshgrid(cos, azimuth, indexing="ij"))
    sin = np.sqrt(1 - cos**2)
    dirs = np.stack([sin * np.cos(azimuth), sin * np.sin(azimuth), cos], -1).astype(np.float32)
    each = np.broadcast_to(np.eye(25, dtype=np.float32), (len(dirs), 25, 25))
    basis = np.asarray(spherical_harmonics(4, dirs, each), np.float64)
    gram = (basis * np.repeat(weight, 24)[:, None] * 2 * np.pi / 24).T @ basis
    np.testing.assert_allclose(gram, np.eye(25), atol=1e-5)


def test_length_of_the_direction_does_not_matter_and_zero_is_safe():
    random = np.random.default_rng(0)
    dirs = random.normal(size=(10, 3)).astype(np.float32)
    coeffs = random.normal(size=(10, 16, 3)).astype(np.float32)
    expected = spherical_harmonics(3, dirs, coeffs)
    for factor in (1e-20, 1e20):
        got = spherical_harmonics(3, dirs * np.float32(factor), coeffs)
        np.testing.assert_allclose(got, expected, atol=1e-5)
    gradient = jax.grad(lambda d: jnp.sum(spherical_harmonics(3, d, coeffs)))(dirs * 0)
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
