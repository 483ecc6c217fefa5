"""Calls written for gsplat, and covariances in place of rotations and scales."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels import gsplat, quat_scale_to_covar, rasterization

SIZE = (44, 28)
ORDER = """
means quats scales opacities colors viewmats Ks width height near_plane far_plane radius_clip eps2d
sh_degree packed tile_size backgrounds render_mode sparse_grad absgrad rasterize_mode channel_chunk
distributed camera_model segmented covars with_ut with_eval3d radial_coeffs tangential_coeffs
thin_prism_coeffs ftheta_coeffs rolling_shutter viewmats_rs
"""
"""The parameters of gsplat 1.5."""


def test_parameters_stand_in_the_order_of_gsplat():
    parameters = inspect.signature(gsplat.rasterization).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ORDER.split()


def test_positional_arguments_after_the_height(splats, render):
    """Up to `camera_model`, each with a value that changes the image."""
    background = np.full((2, 3), 0.5, np.float32)
    got = jax.jit(
        lambda *a: gsplat.rasterization(
            *a, *SIZE, 3.5, 50.0, 1.0, 0.5, None, False, 16, background, "ED", True, False,
            "antialiased", 8, False, "fisheye",
        )
    )(*splats.arrays)  # fmt: skip
    expected = render(
        *splats.arrays, *SIZE, near_plane=3.5, far_plane=50.0, radius_clip=1.0, eps2d=0.5,
        tile_size=16, backgrounds=background, render_mode="ED", rasterize_mode="antialiased",
        camera_model="fisheye",
    )  # fmt: skip
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    assert not np.array_equal(got[0], render(*splats.arrays, *SIZE, render_mode="ED")[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"distributed": True}, r"distributed: .* pass sharding=SplatSharding\(mesh, axis\)"),
        ({"with_eval3d": True}, "with_eval3d: not available here, expected the default"),
        ({"global_z_order": False}, "global_z_order: not available here"),
        ({"extra_signals": np.zeros((64, 2))}, "extra_signals: .* append them to colors"),
        ({"lidar_coeffs": object()}, "lidar_coeffs: not available here"),
        ({"channel_chunk": False}, "channel_chunk: .* order of gsplat 1.5, so name them"),
        ({"render_mode": "Ed"}, "render_mode: expected one of RGB, D, ED"),
    ],
)
def test_what_is_not_available(splats, options, expected):
    with pytest.raises(ValueError, match=expected):
        gsplat.rasterization(*splats.arrays, *SIZE, **options)


def test_covariances_equal_rotations_and_scales(splats):
    """Value and gradient, directly and through covariances."""

    def loss(through_covars, means, quats, scales, opacities):
        shape = {"quats": quats, "scales": scales}
        if through_covars:
            shape = {"quats": None, "scales": None, "covars": quat_scale_to_covar(quats, scales)}
        image, alpha, _ = rasterization(
            means, opacities=opacities, colors=splats.colors, viewmats=splats.viewmats,
            Ks=splats.Ks, width=44, height=28, render_mode="RGB+D", rasterize_mode="antialiased",
            **shape,
        )  # fmt: skip
        return jnp.sum(jnp.sin(image)) + jnp.sum(alpha**2)

    function = jax.jit(jax.value_and_grad(loss, argnums=(1, 2, 3, 4)), static_argnums=0)
    value, gradients = function(True, *splats.arrays[:4])
    expected, expected_gradients = function(False, *splats.arrays[:4])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_singular_and_broken_covariances(splats):
    """Discs, needles, points, what is wider than the image by far, and NaN."""
    covars = np.array(quat_scale_to_covar(splats.quats, splats.scales))
    flat = splats.scales.copy()
    flat[0:8, 0], flat[8:16, :2], flat[16:24] = 0.0, 0.0, 0.0
    covars[:24] = quat_scale_to_covar(splats.quats[:24], flat[:24])
    covars[24:28] *= 1e10
    covars[28:32] = np.eye(3) * 1e11
    covars[32:36, 0, 1] = np.nan
    covars[36:40] *= -1

    @jax.jit
    def gradient(means, covars):
        def loss(means, covars):
            image, _, meta = rasterization(
                means, None, None, *splats.arrays[3:], *SIZE, covars=covars,
                rasterize_mode="antialiased",
            )  # fmt: skip
            return jnp.sum(jnp.sin(image)), meta["dropped"]

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(means, covars)

    (of_means, of_covars), dropped = gradient(splats.means, covars)
    assert int(dropped) == 4
    assert np.isfinite(of_means).all()
    assert np.isfinite(of_covars).all()
    assert np.any(of_covars[:8])
    assert not np.any(of_covars[32:36])
    np.testing.assert_allclose(of_covars, np.swapaxes(of_covars, -1, -2))
