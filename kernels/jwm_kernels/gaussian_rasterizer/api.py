"""`rasterization`: 3D Gaussians to images, with gsplat's argument names and meanings.

Three stages: `project` (differentiable JAX), `bin_tiles` (integers, no gradient), `blend` (custom
gradient, one implementation per backend). Gradients reach means, quats, scales, opacities, colors,
viewmats, Ks, backgrounds and the coefficients of a lens.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.backends import BACKENDS, choose_backend
from jwm_kernels.gaussian_rasterizer.binning import (
    TileLists,
    bin_tiles,
    default_capacity,
    grid_shape,
)
from jwm_kernels.gaussian_rasterizer.camera_types import (
    Distortion,
    RollingShutterType,
    UnscentedTransformParameters,
)
from jwm_kernels.gaussian_rasterizer.capacity import default_tile_size
from jwm_kernels.gaussian_rasterizer.layout import pack_table, tiles_to_image
from jwm_kernels.gaussian_rasterizer.projection import Projection, project, usable_gaussians
from jwm_kernels.gaussian_rasterizer.spherical_harmonics import spherical_harmonics
from jwm_kernels.gaussian_rasterizer.vjp import BlendSpec, blend_tiles

Array = jax.Array | np.ndarray


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
    distortion: Distortion | None = None,
    rolling_shutter: RollingShutterType = RollingShutterType.GLOBAL,
    viewmats_rs: Float[Array, "..."] | None = None,
    with_ut: bool | None = None,
    ut_params: UnscentedTransformParameters | None = None,
    max_alpha: float = 0.99,
    absgrad: bool = False,
    means2d_probe: Float[Array, "..."] | None = None,
    capacity: int | None = None,
    host_sort: bool | None = None,
    backend: str = "auto",
) -> tuple[Float[Array, "*batch c h w x"], Float[Array, "*batch c h w 1"], dict]:
    """Renders Gaussians into every camera.

    Everything may carry the same leading batch axes. A Gaussian with a value that is not finite is
    not drawn, has zero gradient and is counted in `meta["dropped"]`; the others are not affected.

    Gradients in the image plane, for densification as in AbsGS, come out of a probe:

        def loss(means, probe):
            image, _, _ = rasterization(
                means, ..., width, height, absgrad=True, means2d_probe=probe
            )
            return jnp.mean((image - target) ** 2)

        gradient, absolute = jax.grad(loss, (0, 1))(means, jnp.zeros((cameras, gaussians, 2)))

    Args:
      means: [*batch, N, 3] centres in world metres.
      quats: [*batch, N, 4] rotations wxyz, normalised here; zero counts as the identity.
      scales: [*batch, N, 3] standard deviations in metres (not their logarithms); the sign does not
        matter.
      opacities: [*batch, N] in [0, 1]; under 1/255 nothing is drawn.
      colors: [*batch, N, D] or [*batch, C, N, D] values of any number of channels; with `sh_degree`
        SH coefficients [*batch, (C,) N, K, 3], shown as max(SH + 0.5, 0).
      viewmats: [*batch, C, 4, 4] camera from world, OpenCV axes; with a rolling shutter at the line
        read first.
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
      camera_model: "pinhole", "ortho", "fisheye" or "ftheta".
      distortion: of the lens, see `Distortion`; required by "ftheta".
      rolling_shutter: order in which the lines of the image are read.
      viewmats_rs: [*batch, C, 4, 4] camera from world at the line read last.
      with_ut: projects by the unscented transform; default: only where EWA cannot, that is, for
        distortion, f-theta and a rolling shutter.
      ut_params: parameters of that transform.
      max_alpha: limit of a splat's alpha at a pixel (0.99 as in gsplat 1.6; 0.999 before).
      absgrad: gives `means2d_probe` absolute gradients.
      means2d_probe: [*batch, C, N, 2] zeros, added to the means on the screen. Its gradient is that
        of the loss in these means, in 1/px; with `absgrad` the sum over pixels of the magnitudes.
      capacity: static number of (splat, tile) pairs for the whole call. When it does not suffice
        the farthest are dropped and counted in `meta["overflow"]`, which `check_overflow` makes an
        error. See `suggest_capacity`.
      host_sort: sorts with NumPy through a callback, see `bin_tiles`; False for `jax.export`.
      backend: "auto" or a key of `backends.BACKENDS`.

    Returns:
      render_colors [*batch, C, height, width, X], X channels of colour and then depth in metres;
      render_alphas [*batch, C, height, width, 1];
      meta: means2d, radii, depths, conics, opacities, tiles_per_gauss (all [*batch, C, N, ...]),
      isect_total [*batch, C] pairs wanted, overflow [] pairs dropped, dropped [*batch] Gaussians
      with values that are not finite, capacity, width, height, tile_size, tile_width, tile_height,
      n_cameras.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    tile_size = default_tile_size() if tile_size is None else tile_size
    validation.check_modes(render_mode, rasterize_mode)
    validation.check_sizes(width=width, height=height, tile_size=tile_size)
    validation.check_limits(near_plane, far_plane, radius_clip, eps2d, max_alpha, capacity)
    validation.check_floating(
        means=means, quats=quats, scales=scales, opacities=opacities, colors=colors,
        viewmats=viewmats, Ks=Ks, backgrounds=backgrounds, viewmats_rs=viewmats_rs,
    )  # fmt: skip
    batch, n, cameras = validation.check_splats(means, quats, scales, opacities, viewmats, Ks)
    validation.check_colors(colors, sh_degree, batch, n, cameras)
    validation.check_camera(
        camera_model, distortion, rolling_shutter, viewmats_rs, with_ut, (*batch, cameras)
    )
    validation.check_probe(absgrad, means2d_probe, (*batch, cameras, n, 2))
    with_color, depth_mode = "RGB" in render_mode, render_mode.removeprefix("RGB").lstrip("+")
    if backgrounds is not None:
        channels = (colors.shape[-1],) if with_color else (1,)
        validation.check_shape("backgrounds", backgrounds, (*batch, cameras, *channels))
    means, quats, scales, opacities, colors, viewmats, Ks = _in_one_dtype(
        means, quats, scales, opacities, colors, viewmats, Ks
    )
    if viewmats_rs is not None:
        viewmats_rs = jnp.asarray(viewmats_rs, means.dtype)
    if n == 0:
        means, quats, scales, opacities, colors, means2d_probe = _with_one_transparent(
            means, quats, scales, opacities, colors, means2d_probe, sh_degree
        )

    usable = usable_gaussians(means, quats, scales, opacities)
    if with_color:
        colors, colored = _finite_colors(colors, opacities.ndim, sh_degree)
        usable, opacities = usable & colored, jnp.where(colored, opacities, 0.0)
        if sh_degree is not None:
            centres = _camera_centres(viewmats, viewmats_rs)
            colors = _evaluate_sh(sh_degree, means, centres, colors)
    projection = project(
        means, quats, scales, opacities, viewmats, Ks, width, height,
        near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d,
        antialiased=rasterize_mode == "antialiased", camera_model=camera_model,
        distortion=distortion, rolling_shutter=rolling_shutter, viewmats_rs=viewmats_rs,
        with_ut=with_ut, ut_params=ut_params,
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
        tile_size=tile_size, max_alpha=max_alpha, absgrad=absgrad, means2d_probe=means2d_probe,
        backend=backend,
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
        "dropped": jnp.sum(~usable, -1, dtype=jnp.int32),
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
    absgrad: bool = False,
    means2d_probe: Float[Array, "*batch c n 2"] | None = None,
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
      absgrad: as in `rasterization`, and so `means2d_probe`.
      means2d_probe: zeros whose gradient is that in the means on the screen.
      backend: "auto" or a key of `backends.BACKENDS`.

    Returns:
      blended features, without background, and alpha.

    Raises:
      ValueError: no such backend, or a probe of another shape.
    """
    validation.check_probe(absgrad, means2d_probe, projection.means2d.shape)
    validation.check_choice("backend", backend, ("auto", *BACKENDS))
    chosen = choose_backend(backend, features.dtype)
    leading = projection.depths.shape[:-1]
    spec = BlendSpec(width, height, tile_size, max_alpha, absgrad)
    if absgrad:
        features = jnp.concatenate([features, means2d_probe], -1)
    elif means2d_probe is not None:
        projection = projection._replace(means2d=projection.means2d + means2d_probe)
    out, transmittance = blend_tiles(
        pack_table(projection, features), lists.rows, lists.starts, lists.counts, spec, chosen
    )
    image = tiles_to_image(jnp.concatenate([out, 1 - transmittance[:, None]], 1), spec, leading)
    return image[..., :-1], image[..., -1:]


def _in_one_dtype(*arrays):
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return [jnp.asarray(array, dtype) for array in arrays]


def _with_one_transparent(means, quats, scales, opacities, colors, means2d_probe, sh_degree):
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
        None if means2d_probe is None else padded(means2d_probe, -2),
    )


def _finite_colors(colors, axes, sh_degree):
    """Colours [*batch, C or 1, N, ...] that are finite, and which Gaussians had none that were not.

    `axes` is the number of axes of the opacities [*batch, N].
    """
    tail = 1 if sh_degree is None else 2
    finite = jnp.isfinite(colors)
    kept = jnp.where(finite, colors, 0.0)
    colored = jnp.all(finite, tuple(range(-tail, 0)))
    if colored.ndim > axes:
        return kept, jnp.all(colored, -2)
    return jnp.expand_dims(kept, axes - 1), colored


def _camera_centres(viewmats, viewmats_rs):
    """World positions [*batch, C, 3]; of a moving camera halfway between start and end."""
    rotation, translation = viewmats[..., :3, :3], viewmats[..., :3, 3]
    centre = -jnp.sum(rotation * translation[..., :, None], -2)
    return centre if viewmats_rs is None else (centre + _camera_centres(viewmats_rs, None)) / 2


def _evaluate_sh(degree, means, centres, coeffs):
    """Colours [*batch, C, N, 3] of SH coefficients [*batch, C or 1, N, K, 3]."""
    means = jnp.where(jnp.all(jnp.isfinite(means), -1, keepdims=True), means, 0.0)
    dirs = means[..., None, :, :] - centres[..., None, :]
    coeffs = jnp.broadcast_to(coeffs, (*dirs.shape[:-1], *coeffs.shape[-2:]))
    return jnp.maximum(spherical_harmonics(degree, dirs, coeffs) + 0.5, 0.0)
