"""Brute force oracle: every Gaussian at every pixel, no tiles, no custom gradient, any precision.

Same arguments and result as the core of `rasterization`, for scenes of at most a few hundred
Gaussians. Under `jax.enable_x64` it computes in float64. It shares no code with the fast path
except the two thresholds: projection uses explicit 3x3 matrices, the blend a plain scan in depth
order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jwm_kernels.gaussian_rasterizer.constants import ALPHA_MIN, TRANSMITTANCE_MIN

Array = jax.Array | np.ndarray


def rasterization_reference(
    means: Float[Array, "n 3"],
    quats: Float[Array, "n 4"],
    scales: Float[Array, "n 3"],
    opacities: Float[Array, "n"],
    colors: Float[Array, "n d"],
    viewmats: Float[Array, "c 4 4"],
    Ks: Float[Array, "c 3 3"],
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
    max_alpha: float = 0.99,
) -> tuple[Float[Array, "c h w x"], Float[Array, "c h w 1"], Float[Array, "c h w"]]:
    """Renders colours and, as last channel, accumulated depth.

    Args:
      means: as in `rasterization`, and so all the others.
      quats: rotations.
      scales: standard deviations.
      opacities: opacities.
      colors: plain colours.
      viewmats: camera from world.
      Ks: intrinsics.
      width: image width in pixels.
      height: image height in pixels.
      near_plane: nearest visible depth.
      far_plane: farthest visible depth.
      eps2d: blur in px^2.
      rasterize_mode: "classic" or "antialiased".
      camera_model: "pinhole" or "ortho".
      max_alpha: limit of a splat's alpha.

    Returns:
      colours and depth [C, H, W, D + 1], alpha [C, H, W, 1], and for every pixel the smallest
      relative distance of any splat's alpha or transmittance from a threshold [C, H, W]: pixels
      where it is tiny may legitimately differ between two precisions.
    """
    means, quats, scales, opacities, colors = map(
        jnp.asarray, (means, quats, scales, opacities, colors)
    )
    rotation = _rotation_matrices(quats)
    covars = jnp.einsum(
        "nij,nj,nkj->nik", rotation, scales**2, rotation, precision=lax.Precision.HIGHEST
    )

    def one_camera(view, K):
        mean2d, cov2d, depth = _project_one(
            means, covars, view, K, width, height, camera_model, near_plane
        )
        blurred = cov2d + eps2d * jnp.eye(2, dtype=cov2d.dtype)
        opacity = opacities
        if rasterize_mode == "antialiased":
            ratio = jnp.linalg.det(cov2d) / jnp.linalg.det(blurred)
            opacity = opacity * jnp.sqrt(jnp.maximum(ratio, 0.005**2))
        seen = (depth > near_plane) & (depth < far_plane)
        features = jnp.concatenate([colors, depth[:, None]], 1)
        order = jnp.argsort(jnp.where(seen, depth, jnp.inf))
        return composite(
            mean2d[order], jnp.linalg.inv(blurred)[order], opacity[order], features[order],
            seen[order], width, height, max_alpha,
        )  # fmt: skip

    image, alpha, margin = jax.vmap(one_camera)(viewmats, Ks)
    return image, alpha[..., None], margin


def _rotation_matrices(quats):
    w, x, y, z = jnp.moveaxis(quats / jnp.linalg.norm(quats, axis=-1, keepdims=True), -1, 0)
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _project_one(means, covars, view, K, width, height, camera_model, near_plane):
    rotation = view[:3, :3]
    camera = jnp.sum(rotation * means[:, None, :], -1) + view[:3, 3]
    cov = jnp.einsum("ij,njk,lk->nil", rotation, covars, rotation, precision=lax.Precision.HIGHEST)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    x, y, depth = camera.T
    z = jnp.where(depth > near_plane, depth, 1.0)
    zero, one = jnp.zeros_like(z), jnp.ones_like(z)
    if camera_model == "ortho":
        mean2d = jnp.stack([fx * x + cx, fy * y + cy], -1)
        rows = [[fx * one, zero, zero], [zero, fy * one, zero]]
    else:
        mean2d = jnp.stack([fx * x / z + cx, fy * y / z + cy], -1)
        tx = z * jnp.clip(x / z, -(cx + 0.15 * width) / fx, (1.15 * width - cx) / fx)
        ty = z * jnp.clip(y / z, -(cy + 0.15 * height) / fy, (1.15 * height - cy) / fy)
        rows = [[fx / z, zero, -fx * tx / z**2], [zero, fy / z, -fy * ty / z**2]]
    jacobian = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    cov2d = jnp.einsum("nij,njk,nlk->nil", jacobian, cov, jacobian, precision=lax.Precision.HIGHEST)
    return mean2d, cov2d, depth


def composite(means2d, conics, opacities, features, seen, width, height, max_alpha):
    """Blends splats given front to back, every one at every pixel.

    Args:
      means2d: [N, 2] pixels.
      conics: [N, 2, 2] inverse covariances.
      opacities: [N].
      features: [N, D].
      seen: bool [N], which splats count.
      width: image width in pixels.
      height: image height in pixels.
      max_alpha: limit of a splat's alpha.

    Returns:
      features [H, W, D], alpha [H, W], and the distance from a threshold [H, W].
    """
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    pixels = jnp.stack([x, y], -1).astype(means2d.dtype)

    def step(carry, splat):
        transmittance, out, stopped, margin = carry
        mean, conic, opacity, feature, is_seen = splat
        offset = pixels - mean
        power = -0.5 * jnp.einsum("hwi,ij,hwj->hw", offset, conic, offset)
        raw = jnp.where(is_seen, opacity * jnp.exp(power), 0.0)
        alpha = jnp.where(raw >= ALPHA_MIN, jnp.minimum(raw, max_alpha), 0.0)
        after = transmittance * (1 - alpha)
        stop = stopped | (after <= TRANSMITTANCE_MIN)
        weight = jnp.where(stop, 0.0, alpha * transmittance)
        near = jnp.minimum(jnp.abs(raw / ALPHA_MIN - 1), jnp.abs(raw / max_alpha - 1))
        near = jnp.minimum(near, jnp.abs(after / TRANSMITTANCE_MIN - 1))
        margin = jnp.where(stopped, margin, jnp.minimum(margin, near))
        transmittance = jnp.where(stop, transmittance, after)
        return (transmittance, out + weight[..., None] * feature, stop, margin), None

    shape = (height, width)
    dtype = means2d.dtype
    first = (
        jnp.ones(shape, dtype),
        jnp.zeros((*shape, features.shape[-1]), dtype),
        jnp.zeros(shape, bool),
        jnp.full(shape, jnp.inf, dtype),
    )
    splats = (means2d, conics, opacities, features, seen)
    (transmittance, out, _, margin), _ = lax.scan(step, first, splats)
    return out, 1 - transmittance, lax.stop_gradient(margin)
