"""`rasterization`: 3D Gaussians to images, with gsplat's argument names and meanings.

Three stages: `project` (differentiable JAX), `bin_tiles` (integers, no gradient), `blend` (custom
gradient, one implementation per backend). Gradients reach means, quats, scales, opacities, colors,
viewmats, Ks and backgrounds.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_kernels.gaussian_rasterizer import blend_xla, validation
from jwm_kernels.gaussian_rasterizer.binning import (
    TileLists,
    bin_tiles,
    count_tiles,
    default_capacity,
    grid_shape,
)
from jwm_kernels.gaussian_rasterizer.projection import Projection, project
from jwm_kernels.gaussian_rasterizer.spherical_harmonics import spherical_harmonics
from jwm_kernels.gaussian_rasterizer.vjp import Backend, BlendSpec, blend_tiles

Array = jax.Array | np.ndarray

BACKENDS: dict[str, Backend] = {"xla": Backend(blend_xla.forward, blend_xla.backward)}
"""Name -> implementation of the blend. A new one is a file with two functions and a line here."""


def rasterization(
    means: Float[Array, "..."],
    quats: Float[Array, "..."],
    scales: Float[Array, "..."],
    opacities: Float[Array, "..."],
    colors: Float[Array, "..."],
    viewmats: Float[Array, "..."],
    Ks: Float[Array, "..."],
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    tile_size: int | None = None,
    backgrounds: Float[Array, "..."] | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
    max_alpha: float = 0.99,
    capacity: int | None = None,
    host_sort: bool | None = None,
    backend: str = "auto",
) -> tuple[Float[Array, "*batch c h w x"], Float[Array, "*batch c h w 1"], dict]:
    """Renders Gaussians into every camera.

    Everything may carry the same leading batch axes. A Gaussian with a value that is not finite is
    not drawn and has zero gradient; the others are not affected.

    Args:
      means: [*batch, N, 3] centres in world metres.
      quats: [*batch, N, 4] rotations wxyz, normalised here; zero counts as the identity.
      scales: [*batch, N, 3] standard deviations in metres (not their logarithms).
      opacities: [*batch, N] in [0, 1].
      colors: [*batch, N, D] or [*batch, C, N, D] values of any number of channels; with `sh_degree`
        SH coefficients [*batch, (C,) N, K, 3], shown as max(SH + 0.5, 0).
      viewmats: [*batch, C, 4, 4] camera from world, OpenCV axes.
      Ks: [*batch, C, 3, 3] intrinsics in pixels; the centre of the first pixel is (0.5, 0.5).
      width: image width in pixels.
      height: image height in pixels.
      near_plane: nearest visible depth in metres.
      far_plane: farthest visible depth in metres.
      radius_clip: drops splats with half-widths of at most this many pixels.
      eps2d: blur added to the screen covariance, px^2.
      sh_degree: degree of the SH colours, 0 to 4; None for plain colours.
      tile_size: side of a tile in pixels; default 8 on CPU, 16 elsewhere. The image does not depend
        on it.
      backgrounds: [*batch, C, D] colour behind everything; depth channels have background 0.
      render_mode: "RGB", "D" (sum of weights times depth), "ED" (that over alpha), "RGB+D",
        "RGB+ED".
      rasterize_mode: "classic" or "antialiased" (opacities compensated for `eps2d`).
      camera_model: "pinhole" or "ortho".
      max_alpha: limit of a splat's alpha at a pixel (0.99 as in gsplat 1.6; 0.999 before).
      capacity: static number of (splat, tile) pairs for the whole call. When it does not suffice
        the farthest are dropped and counted in `meta["overflow"]`. See `suggest_capacity`.
      host_sort: sorts with NumPy through a callback, see `bin_tiles`; False for `jax.export`.
      backend: "auto" or a key of `BACKENDS`.

    Returns:
      render_colors [*batch, C, height, width, X], X channels of colour and then depth in metres;
      render_alphas [*batch, C, height, width, 1];
      meta: means2d, radii, depths, conics, opacities, tiles_per_gauss (all [*batch, C, N, ...]),
      isect_total [*batch, C] pairs wanted, overflow [] pairs dropped, capacity, width, height,
      tile_size, tile_width, tile_height, n_cameras.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    tile_size = default_tile_size() if tile_size is None else tile_size
    validation.check_modes(render_mode, rasterize_mode, camera_model)
    validation.check_scalars(
        width, height, near_plane, far_plane, radius_clip, eps2d, tile_size, max_alpha, capacity
    )
    validation.check_floating(
        means=means, quats=quats, scales=scales, opacities=opacities, colors=colors,
        viewmats=viewmats, Ks=Ks, backgrounds=backgrounds,
    )  # fmt: skip
    batch, n, cameras = validation.check_splats(means, quats, scales, opacities, viewmats, Ks)
    validation.check_colors(colors, sh_degree, batch, n, cameras)
    with_color, depth_mode = "RGB" in render_mode, render_mode.removeprefix("RGB").lstrip("+")
    if backgrounds is not None:
        channels = (colors.shape[-1],) if with_color else (1,)
        validation.check_shape("backgrounds", backgrounds, (*batch, cameras, *channels))
    means, quats, scales, opacities, colors, viewmats, Ks = _in_one_dtype(
        means, quats, scales, opacities, colors, viewmats, Ks
    )
    if n == 0:
        means, quats, scales, opacities, colors = _with_one_transparent(
            means, quats, scales, opacities, colors, len(batch), cameras, sh_degree
        )

    if with_color:
        colors, opacities = _finite_colors(colors, opacities, cameras, sh_degree)
        if sh_degree is not None:
            colors = _evaluate_sh(sh_degree, means, viewmats, colors)
    projection = project(
        means, quats, scales, opacities, viewmats, Ks, width, height,
        near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d,
        antialiased=rasterize_mode == "antialiased", camera_model=camera_model,
    )  # fmt: skip
    features = [colors] if with_color else []
    if depth_mode:
        features.append(projection.depths[..., None])
    features = jnp.concatenate(
        [jnp.broadcast_to(f, (*projection.depths.shape, f.shape[-1])) for f in features], -1
    )
    tiles_x, tiles_y = grid_shape(width, height, tile_size)
    if capacity is None:
        images = int(np.prod((*batch, cameras)))
        capacity = default_capacity(images, max(n, 1), tiles_x * tiles_y, tile_size)
    lists = bin_tiles(
        projection, width, height, tile_size=tile_size, capacity=capacity, host_sort=host_sort
    )
    rendered, alphas = blend(
        projection, features, lists, width, height,
        tile_size=tile_size, max_alpha=max_alpha, backend=backend,
    )  # fmt: skip
    if depth_mode == "ED":
        depth = rendered[..., -1:] / jnp.maximum(alphas, 1e-10)
        rendered = jnp.concatenate([rendered[..., :-1], depth], -1)
    if backgrounds is not None and with_color:
        behind = (1 - alphas) * jnp.asarray(backgrounds, rendered.dtype)[..., None, None, :]
        rendered = rendered.at[..., : behind.shape[-1]].add(behind)
    meta = {
        "means2d": projection.means2d[..., :n, :],
        "radii": projection.radii[..., :n, :],
        "depths": projection.depths[..., :n],
        "conics": projection.conics[..., :n, :],
        "opacities": projection.opacities[..., :n],
        "tiles_per_gauss": lists.tiles_per_gauss[..., :n],
        "isect_total": lists.isect_total,
        "overflow": lists.overflow,
        "capacity": capacity,
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "tile_width": tiles_x,
        "tile_height": tiles_y,
        "n_cameras": cameras,
    }
    return rendered, alphas, meta


def blend(
    projection: Projection,
    features: Float[Array, "*batch c n d"],
    lists: TileLists,
    width: int,
    height: int,
    *,
    tile_size: int,
    max_alpha: float = 0.99,
    backend: str = "auto",
) -> tuple[Float[Array, "*batch c h w d"], Float[Array, "*batch c h w 1"]]:
    """Blends projected splats front to back.

    Args:
      projection: from `project`.
      features: what is blended, for example colours.
      lists: from `bin_tiles` with the same width, height and tile size.
      width: image width in pixels.
      height: image height in pixels.
      tile_size: side of a tile in pixels.
      max_alpha: limit of a splat's alpha at a pixel.
      backend: "auto" or a key of `BACKENDS`.

    Returns:
      blended features, without background, and alpha.

    Raises:
      ValueError: no such backend.
    """
    validation.check_choice("backend", backend, ("auto", *BACKENDS))
    chosen = BACKENDS["xla" if backend == "auto" else backend]
    leading = projection.depths.shape[:-1]
    spec = BlendSpec(width, height, tile_size, max_alpha)
    out, transmittance = blend_tiles(
        _pack_table(projection, features), lists.rows, lists.starts, lists.counts, spec, chosen
    )
    image = _to_image(jnp.concatenate([out, 1 - transmittance[:, None]], 1), spec, leading)
    return image[..., :-1], image[..., -1:]


def suggest_capacity(
    means: Float[Array, "..."],
    quats: Float[Array, "..."],
    scales: Float[Array, "..."],
    opacities: Float[Array, "..."],
    viewmats: Float[Array, "..."],
    Ks: Float[Array, "..."],
    width: int,
    height: int,
    *,
    tile_size: int | None = None,
    margin: float = 1.25,
    **options,
) -> int:
    """Counts the (splat, tile) pairs of a scene and returns a `capacity` that holds them.

    Call it outside `jax.jit`. Results are rounded up to powers of 2^(1/4), so that slightly
    different scenes share one compiled program.

    Args:
      means: as in `rasterization`, and so `quats`, `scales`, `opacities`, `viewmats`, `Ks`,
        `width`, `height`, `tile_size`.
      quats: rotations.
      scales: standard deviations.
      opacities: opacities.
      viewmats: camera from world.
      Ks: intrinsics.
      width: image width in pixels.
      height: image height in pixels.
      tile_size: side of a tile in pixels.
      margin: room for growth, as a factor.
      **options: of `project`.

    Returns:
      number of slots.
    """
    tile_size = default_tile_size() if tile_size is None else tile_size
    validation.check_splats(means, quats, scales, opacities, viewmats, Ks)
    projection = project(means, quats, scales, opacities, viewmats, Ks, width, height, **options)
    total = int(
        np.sum(np.asarray(count_tiles(projection, width, height, tile_size)), dtype=np.int64)
    )
    wanted = max(256.0, total * margin)
    return int(np.ceil(2 ** (np.ceil(4 * np.log2(wanted)) / 4)))


def default_tile_size() -> int:
    """8 on CPU, where less wasted arithmetic wins; 16 on accelerators, where shorter lists do."""
    return 8 if jax.default_backend() == "cpu" else 16


def _pack_table(projection, features):
    """[R, 6 + D]: mean x, mean y, A = -1/(2 xx), s = -xy/xx, C = -xx/(2 det), ln o, features."""
    xx, xy = projection.covars2d[..., 0], projection.covars2d[..., 1]
    columns = [
        projection.means2d[..., 0],
        projection.means2d[..., 1],
        -0.5 / xx,
        -xy / xx,
        -0.5 * xx / projection.dets,
        jnp.log(jnp.maximum(projection.opacities, 1e-12)),
    ]
    table = jnp.concatenate([jnp.stack(columns, -1), features], -1)
    return table.reshape(-1, table.shape[-1])


def _to_image(tiles, spec, leading):
    """[T, D, P] tiles to [*leading, height, width, D]."""
    size, channels = spec.tile_size, tiles.shape[1]
    grid = tiles.reshape(-1, spec.tiles_y, spec.tiles_x, channels, size, size)
    image = grid.transpose(0, 1, 4, 2, 5, 3)
    image = image.reshape(*leading, spec.tiles_y * size, spec.tiles_x * size, channels)
    return image[..., : spec.height, : spec.width, :]


def _in_one_dtype(*arrays):
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return [jnp.asarray(array, dtype) for array in arrays]


def _with_one_transparent(means, quats, scales, opacities, colors, batch_axes, cameras, sh_degree):
    """An empty scene as one transparent splat, so that no stage meets an axis of length 0."""

    def padded(array, axis):
        shape = list(array.shape)
        shape[axis] = 1
        return jnp.concatenate([array, jnp.zeros(shape, array.dtype)], axis)

    color_axis = -2 if sh_degree is None else -3
    return (
        padded(means, -2),
        padded(quats, -2),
        padded(scales, -2),
        padded(opacities, -1),
        padded(colors, color_axis),
    )


def _finite_colors(colors, opacities, cameras, sh_degree):
    """Makes Gaussians with a colour that is not finite in any camera transparent."""
    tail = 1 if sh_degree is None else 2
    finite = jnp.isfinite(colors)
    kept = jnp.where(finite, colors, 0.0)
    usable = jnp.all(finite, tuple(range(-tail, 0)))
    if usable.ndim > opacities.ndim:
        usable = jnp.all(usable, -2)
    else:
        kept = jnp.expand_dims(kept, opacities.ndim - 1)
    return kept, jnp.where(usable, opacities, 0.0)


def _evaluate_sh(degree, means, viewmats, coeffs):
    """Colours [*batch, C, N, 3] of SH coefficients [*batch, C or 1, N, K, 3]."""
    rotation, translation = viewmats[..., :3, :3], viewmats[..., :3, 3]
    centre = -jnp.sum(rotation * translation[..., :, None], -2)
    means = jnp.where(jnp.all(jnp.isfinite(means), -1, keepdims=True), means, 0.0)
    dirs = means[..., None, :, :] - centre[..., None, :]
    coeffs = jnp.broadcast_to(coeffs, (*dirs.shape[:-1], *coeffs.shape[-2:]))
    return jnp.maximum(spherical_harmonics(degree, dirs, coeffs) + 0.5, 0.0)
