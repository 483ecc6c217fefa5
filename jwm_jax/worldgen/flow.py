"""Rectified flow: the straight path between data and noise.

    x_sigma  = (1 - sigma) x0 + sigma eps,            sigma in [0, 1]
    velocity = eps - x0 = (x_sigma - x0) / sigma
    Euler    : x_sigma' = x_sigma + (sigma' - sigma) velocity
    guidance : uncond + s (cond - uncond)
    shift s  : sigma(u) = s u / (1 + (s - 1) u),      u in [0, 1]

Guidance may be applied to x0 instead of the velocity: at a given x_sigma one is an affine function
of the other, and the combination's weights sum to 1. Sigmas come per latent frame, ``[..., F]``,
and spread over the axes of a latent frame.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.scene.pytree import Array

SMALLEST_SIGMA = 1e-3


def shift_sigma(u: Float[Array, "*b"], shift: float) -> Float[Array, "*b"]:
    """Warps uniform positions in [0, 1] towards noise (shift > 1)."""
    return shift * u / (1.0 + (shift - 1.0) * u)


def sigma_schedule(steps: int, shift: float) -> Float[np.ndarray, " sigmas"]:
    """Sigmas of a sampler from 1 down to 0, float32.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    u = np.linspace(1.0, 0.0, steps + 1)
    return shift_sigma(u, shift).astype(np.float32)


def add_noise(
    x0: Float[jax.Array, "*b f h w c"],
    noise: Float[jax.Array, "*b f h w c"],
    sigma: Float[jax.Array, "*s"],
) -> Float[jax.Array, "*b f h w c"]:
    """x_sigma on the straight path; ``sigma`` broadcasts against [..., F] after `spread`."""
    sigma = spread(sigma, x0)
    return (1.0 - sigma) * x0 + sigma * noise


def velocity_from_x0(
    x: Float[jax.Array, "*b f h w c"],
    x0: Float[jax.Array, "*b f h w c"],
    sigma: Float[jax.Array, "*s"],
) -> Float[jax.Array, "*b f h w c"]:
    """The velocity at ``x`` that leads back to ``x0``."""
    return (x - x0) / jnp.maximum(spread(sigma, x), SMALLEST_SIGMA)


def euler_step(
    x: Float[jax.Array, "*b f h w c"],
    x0: Float[jax.Array, "*b f h w c"],
    sigma: Float[jax.Array, ""],
    next_sigma: Float[jax.Array, ""],
) -> Float[jax.Array, "*b f h w c"]:
    """One Euler step from ``sigma`` to ``next_sigma``, given the predicted clean latent."""
    return x0 + (x - x0) * (next_sigma / sigma)


def guided(
    unconditional: Float[jax.Array, "*b"],
    conditional: Float[jax.Array, "*b"],
    cfg_scale: float | Float[jax.Array, ""] | Float[jax.Array, "rows"],
) -> Float[jax.Array, "*b"]:
    """Classifier-free guidance: uncond + s (cond - uncond), s of all rows or of each."""
    if jnp.ndim(cfg_scale) == 1:
        cfg_scale = cfg_scale.reshape(-1, *(1,) * (conditional.ndim - 1))
    return unconditional + cfg_scale * (conditional - unconditional)


def logit_normal_sigma(
    key: jax.Array, shape: tuple[int, ...], mean: float, deviation: float
) -> Float[jax.Array, "..."]:
    """Random sigmas in (0, 1): the logistic function of a normal variable."""
    return jax.nn.sigmoid(mean + deviation * jax.random.normal(key, shape))


def x0_weight(sigma: Float[jax.Array, "*b"]) -> Float[jax.Array, "*b"]:
    """Weight of the squared error of x0: that of the velocity's, 1 / sigma^2, kept below 25."""
    return 1.0 / jnp.square(jnp.maximum(sigma, 0.2))


def spread(sigma: Float[jax.Array, "*s"], like: Float[jax.Array, "*b f h w c"]) -> jax.Array:
    """Appends the axes of a latent frame to sigmas that are given per latent frame.

    A sigma of shape [B, F] meets latents [B, V, F, h, w, c] as [B, 1, F, 1, 1, 1]; a scalar stays
    one.
    """
    if sigma.ndim == 0:
        return sigma
    views = (1,) * (like.ndim - 3 - sigma.ndim)
    return sigma.reshape(*sigma.shape[:-1], *views, sigma.shape[-1], 1, 1, 1)
