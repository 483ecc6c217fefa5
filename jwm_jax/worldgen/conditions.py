"""What a generated frame is conditioned on, in pixels as users give it and in latents as the model
sees it.

`Conditions` holds one chunk of pictures and numbers, everything optional. `ChunkConditions` is its
dense form: what is absent is zeros and says so, and so one compiled function serves every
combination. `LatentConditions` is the same over any number of latent frames: an absent condition is
zeros with a zero mask (layout, prior, ego motion) or code 0 (style), and training drops conditions
with `drop_conditions` to make every combination known.

A prior picture has holes (alpha 0). They are filled from the last frame already known, because a
black hole would bleed through the codec into the latents around it, and the mask is pooled to
latent pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jaxtyping import Bool, Float, Int, Num

from jwm_jax.scene.cameras import Camera, Rig
from jwm_jax.scene.pytree import Array, pytree_dataclass
from jwm_jax.worldgen.config import WorldGenConfig

RAY_CHANNELS = 6


@pytree_dataclass
class Conditions:
    """Conditions of one chunk of T video frames (``config.frames_per_chunk``; four a latent frame);
    each optional. A leading batch axis is there if the session has one.

    Attributes:
        layout: layout frames [(B), V, T, H, W, 3], uint8 or in [0, 1]: boxes and lanes on black. At
            the start of a session one frame, [(B), V, 1, H, W, 3].
        prior: rendered frames [(B), V, T, H, W, 3], uint8 or in [0, 1].
        prior_alpha: where the prior is valid, [(B), V, T, H, W] in [0, 1]; None means everywhere.
        ego_motion: [(B), T, 4]: for each video frame (dx m, dy m, dyaw rad, v m/s) from the frame
            before it, in the ego frame of the frame before it.
        style: codes int32 [(B), n] from `style_codes`, or a mapping such as {"weather": "rain"}.
    """

    layout: Num[Array, "*b f height width 3"] | None = None
    prior: Num[Array, "*b f height width 3"] | None = None
    prior_alpha: Float[Array, "*b f height width"] | None = None
    ego_motion: Float[Array, "*m t 4"] | None = None
    style: Int[Array, "*s n"] | Mapping[str, str] | None = None


@pytree_dataclass
class ChunkConditions:
    """`Conditions` with nothing absent: zeros instead, and whether they mean anything.

    Attributes:
        layout: [B, V, T, H, W, 3] in [0, 1].
        has_layout: scalar.
        prior: [B, V, T, H, W, 3] in [0, 1].
        prior_alpha: [B, V, T, H, W].
        has_prior: scalar.
        ego_motion: [B, T, 4].
        has_motion: scalar.
        style: codes [B, n].
    """

    layout: Float[Array, "b v f height width 3"]
    has_layout: Bool[Array, ""]
    prior: Float[Array, "b v t height width 3"]
    prior_alpha: Float[Array, "b v t height width"]
    has_prior: Bool[Array, ""]
    ego_motion: Float[Array, "b t 4"]
    has_motion: Bool[Array, ""]
    style: Int[Array, "b n"]


@pytree_dataclass
class LatentConditions:
    """Dense conditions of F latent frames.

    Attributes:
        layout: latents [B, V, F, h, w, c]; zeros where absent.
        layout_valid: [B, V, F], 1 where there is a layout.
        prior: latents [B, V, F, h, w, c].
        prior_mask: [B, V, F, h, w, 1], validity of the prior in [0, 1].
        ego_motion: [B, F, 4, 4] as in `Conditions`.
        ego_valid: [B, F], 1 where the ego motion is known.
        style: codes [B, n]; 0 is unknown.
        rays: Plücker coordinates of the latent pixels in the ego frame [B, V, h, w, 6].
        guidance: strength of guidance [B] that a network distilled with it imitates; 1 is none.
    """

    layout: Float[Array, "b v f h w c"]
    layout_valid: Float[Array, "b v f"]
    prior: Float[Array, "b v f h w c"]
    prior_mask: Float[Array, "b v f h w 1"]
    ego_motion: Float[Array, "b f 4 4"]
    ego_valid: Float[Array, "b f"]
    style: Int[Array, "b n"]
    rays: Float[Array, "b v h w 6"]
    guidance: Float[Array, "b"]

    def frames(self, index: Sequence[int] | slice | Array) -> "LatentConditions":
        """The conditions of some latent frames."""
        index = index if isinstance(index, slice) else jnp.asarray(index)
        return replace(
            self,
            layout=self.layout[:, :, index],
            layout_valid=self.layout_valid[:, :, index],
            prior=self.prior[:, :, index],
            prior_mask=self.prior_mask[:, :, index],
            ego_motion=self.ego_motion[:, index],
            ego_valid=self.ego_valid[:, index],
        )


def no_conditions(
    config: WorldGenConfig,
    shape: tuple[int, int, int, int, int],
    rays: Float[Array, "b v h w 6"] | None = None,
) -> LatentConditions:
    """Every condition absent.

    Args:
        config: for the latent channels and the number of style codes.
        shape: (B, V, F, h, w).
        rays: `camera_rays` of the views; zeros if not known.
    """
    batch, views, frames, height, width = shape
    latents = jnp.zeros((*shape, config.latent_channels))
    return LatentConditions(
        layout=latents,
        layout_valid=jnp.zeros((batch, views, frames)),
        prior=latents,
        prior_mask=jnp.zeros((*shape, 1)),
        ego_motion=jnp.zeros((batch, frames, config.frames_per_latent, 4)),
        ego_valid=jnp.zeros((batch, frames)),
        style=jnp.zeros((batch, len(config.styles)), jnp.int32),
        rays=jnp.zeros((batch, views, height, width, RAY_CHANNELS)) if rays is None else rays,
        guidance=jnp.ones(batch),
    )


def drop_conditions(
    key: jax.Array, conditions: LatentConditions, rates: Mapping[str, float]
) -> LatentConditions:
    """Removes each condition from each sample with its own probability.

    Args:
        key: typed PRNG key.
        conditions: of a batch.
        rates: probability per name: "layout", "prior", "ego_motion", "style", "rays"; absent means
            0.
    """
    names = ("layout", "prior", "ego_motion", "style", "rays")
    batch = conditions.layout.shape[0]
    keep = {
        name: (jax.random.uniform(k, (batch,)) >= rates.get(name, 0.0)).astype(jnp.float32)
        for name, k in zip(names, jax.random.split(key, len(names)), strict=True)
    }

    def kept(name: str, value: jax.Array) -> jax.Array:
        factor = keep[name].reshape(-1, *(1,) * (value.ndim - 1))
        return value * factor.astype(value.dtype)

    return replace(
        conditions,
        layout=kept("layout", conditions.layout),
        layout_valid=kept("layout", conditions.layout_valid),
        prior=kept("prior", conditions.prior),
        prior_mask=kept("prior", conditions.prior_mask),
        ego_motion=kept("ego_motion", conditions.ego_motion),
        ego_valid=kept("ego_motion", conditions.ego_valid),
        style=kept("style", conditions.style),
        rays=kept("rays", conditions.rays),
    )


def densify(
    config: WorldGenConfig, conditions: Conditions, shape: tuple[int, int, int, int, int]
) -> ChunkConditions:
    """Zeros for what is absent.

    Args:
        config: for the number of style codes.
        conditions: with batch and view axes, pictures in [0, 1] and style codes.
        shape: (B, V, T, H, W).
    """
    batch, frames = shape[0], shape[2]

    def dense(value: Array | None, *size: int) -> Array:
        return jnp.zeros(size) if value is None else value

    has_prior, style = conditions.prior is not None, conditions.style
    alpha = jnp.full(shape, 1.0 if has_prior else 0.0)
    return ChunkConditions(
        layout=dense(conditions.layout, *shape, 3),
        has_layout=jnp.asarray(conditions.layout is not None),
        prior=dense(conditions.prior, *shape, 3),
        prior_alpha=alpha if conditions.prior_alpha is None else conditions.prior_alpha,
        has_prior=jnp.asarray(has_prior),
        ego_motion=dense(conditions.ego_motion, batch, frames, 4),
        has_motion=jnp.asarray(conditions.ego_motion is not None),
        style=jnp.zeros((batch, len(config.styles)), jnp.int32) if style is None else style,
    )


def unconditional(conditions: LatentConditions) -> LatentConditions:
    """The null branch of guidance: style is dropped, geometry and actions stay."""
    return replace(conditions, style=jnp.zeros_like(conditions.style))


def known_style(config: WorldGenConfig, style: Mapping[str, str] | None) -> dict[str, str] | None:
    """The properties of a style for which a generator has a vocabulary; None if there are none."""
    names = {name for name, _ in config.styles}
    return {k: v for k, v in (style or {}).items() if k in names} or None


def style_codes(config: WorldGenConfig, style: Mapping[str, str] | None) -> Int[np.ndarray, " n"]:
    """Codes of named style properties, 0 for what is not named or not in the vocabulary.

    Raises:
        ValueError: a property that the model has no vocabulary for.
    """
    style = style or {}
    names = [name for name, _ in config.styles]
    unknown = sorted(set(style) - set(names))
    if unknown:
        raise ValueError(f"style: unknown properties {unknown}; this model knows {names}.")
    codes = [
        1 + words.index(style[name]) if style.get(name) in words else 0
        for name, words in config.styles
    ]
    return np.asarray(codes, np.int32)


def camera_rays(
    cameras: Rig | Sequence[Camera], height: int, width: int
) -> Float[np.ndarray, "v h w 6"]:
    """Plücker coordinates of latent pixels: unit direction d and moment o x d in the ego frame.

    Args:
        cameras: a rig, or one camera a view whose pose is relative to the ego frame.
        height: rows of a latent.
        width: columns of a latent.
    """
    if isinstance(cameras, Rig):
        pairs = zip(cameras.intrinsics, cameras.ego_from_camera, strict=True)
    else:
        pairs = ((camera.intrinsics, camera.world_from_camera) for camera in cameras)
    views = []
    for intrinsics, ego_from_camera in pairs:
        pose = np.asarray(ego_from_camera, np.float64)
        lens = intrinsics.resized(height, width)
        directions = np.asarray(lens.pixel_rays(), np.float64) @ pose[:3, :3].T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        moments = np.cross(np.broadcast_to(pose[:3, 3], directions.shape), directions)
        views.append(np.concatenate([directions, moments], axis=-1))
    return np.stack(views).astype(np.float32)


def fill_holes(
    prior: Float[Array, "*b f height width 3"],
    alpha: Float[Array, "*b f height width"],
    last_frame: Float[Array, "*b height width 3"],
) -> Float[Array, "*b f height width 3"]:
    """Composites a prior over the last frame already known."""
    alpha = alpha[..., None]
    return prior * alpha + last_frame[..., None, :, :, :] * (1.0 - alpha)


def pool_mask(
    alpha: Float[Array, "*b f height width"], height: int, width: int
) -> Float[Array, "*b h w 1"]:
    """Mean validity of each latent pixel over a chunk's frames and the pixel's area."""
    pattern = "... f (h rows) (w columns) -> ... h w 1"
    return reduce(alpha, pattern, "mean", h=height, w=width)
