"""Training the video codec: a frozen linear base, then convolutions around it.

The base is the whitened Karhunen-Loeve transform of 4 x 8 x 8 x 3 patches: with patch mean m and the leading
eigenpairs (v_i, s_i^2) of the patch covariance,

    z_i = v_i . (patch - m) / s_i,        patch ~ m + sum_i s_i v_i z_i,

the best linear codec with c numbers a patch, in coordinates of unit variance. The convolutions start near
zero, so training starts from the linear codec's quality, and minimise

    w_mse |x - y|^2 + w_l1 |x - y| + w_grad |grad x - grad y| + w_latent |z|^2,   y = decode(z + noise),

where the noise makes the decoder bear the errors of a generator.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from jwm_jax.worldgen.codec_network import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    CodecConfig,
    decode_groups,
    encode_groups,
    initial_state,
    repeat_first_frame,
)


@dataclass(frozen=True)
class CodecLoss:
    """Weights of the codec's loss.

    Attributes:
        mse: weight of the squared error.
        l1: weight of the absolute error.
        gradient: weight of the absolute error of differences between neighbouring pixels.
        latent: weight of the squared latent.
        noise: standard deviation of the noise on the latents (which have about unit variance).
    """

    mse: float = 8.0
    l1: float = 0.1
    gradient: float = 0.02
    latent: float = 1e-4
    noise: float = 0.05


def fit_linear_base(
    patches: Float32[np.ndarray, "n patch"], channels: int
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Principal components of patches as the codec's base parameters.

    Args:
        patches: values in [0, 1], from `sample_patches`.
        channels: number of latent channels.

    Returns:
        ``base_mean`` [768], ``base_encode`` [768, channels] and ``base_decode`` [channels, 768].
    """
    mean = patches.mean(axis=0, dtype=np.float64)
    centred = patches - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(patches))
    values, vectors = values[::-1][:channels], vectors[:, ::-1][:, :channels]
    deviation = np.sqrt(np.maximum(values, 1e-8))
    return {
        "base_mean": mean.astype(np.float32),
        "base_encode": (vectors / deviation).astype(np.float32),
        "base_decode": (vectors * deviation).T.astype(np.float32),
    }


def codec_loss(
    config: CodecConfig,
    weights: CodecLoss,
    params: Any,
    video: Float[jax.Array, "batch frames height width 3"],
    key: jax.Array,
) -> tuple[Float[jax.Array, ""], dict[str, jax.Array]]:
    """The codec's loss on clips of 1 + 4k frames.

    Args:
        config: the codec's widths.
        weights: weights of the terms.
        params: parameters of `CodecNetwork`.
        video: RGB in [0, 1].
        key: key of the latents' noise.

    Returns:
        The loss and its parts: ``mse``, ``psnr`` (dB, of the batch), ``latent_std``.
    """
    batch, _, height, width, _ = video.shape
    zeros = initial_state(config, batch, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    latents, _ = encode_groups(config, params, repeat_first_frame(video), zeros)
    noisy = latents + weights.noise * jax.random.normal(key, latents.shape)
    decoded, _ = decode_groups(config, params, noisy, zeros)
    error = decoded[:, FRAMES_PER_LATENT - 1 :] - video
    mse = jnp.mean(error**2)
    gradient = jnp.mean(jnp.abs(jnp.diff(error, axis=2))) + jnp.mean(
        jnp.abs(jnp.diff(error, axis=3))
    )
    loss = (
        weights.mse * mse
        + weights.l1 * jnp.mean(jnp.abs(error))
        + weights.gradient * gradient
        + weights.latent * jnp.mean(latents**2)
    )
    metrics = {"mse": mse, "psnr": -10.0 * jnp.log10(mse + 1e-12), "latent_std": jnp.std(latents)}
    return loss, metrics
