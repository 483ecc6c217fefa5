"""`rasterization`: 3D Gaussians to images, with gsplat's argument names and meanings.

Three stages: `project` (differentiable JAX), `bin_tiles` (integers, no gradient), `blend` (custom
gradient, one implementation per backend). Gradients reach means, quats, scales, opacities, colors,
viewmats, Ks, backgrounds and the coefficients of a lens.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.binning.tile_lists import (
    TileLists,
    bin_tiles,
    count_tiles,
    default_host_sort,
    grid_shape,
)
from jwm_kernels.gaussian_rasterizer.blending.backends import (
    BACKENDS,
    check_backend,
    choose_backend,
)
from jwm_kernels.gaussian_rasterizer.blending.layout import pack_table, tiles_to_image
from jwm_kernels.gaussian_rasterizer.blending.vjp import BlendSpec, blend_tiles
from jwm_kernels.gaussian_rasterizer.capacity import (
    ROUNDING,
    counted_capacity,
    default_capacity,
    default_tile_size,
    is_traced,
    warn_of_overflow,
)
from jwm_kernels.gaussian_rasterizer.constants import COORDINATE_MAX
from jwm_kernels.gaussian_rasterizer.projection.camera_types import (
    Distortion,
    RollingShutterType,
    UnscentedTransformParameters,
)
from jwm_kernels.gaussian_rasterizer.projection.project import (
    Projection,
    check_projection,
    project,
    usable_cameras,
    usable_gaussians,
    without_broken_cameras,
)
from jwm_kernels.gaussian_rasterizer.projection.spherical_harmonics import sum_of_harmonics
from jwm_kernels.gaussian_rasterizer.sharding import (
    CameraSharding,
    lens_of_each_camera,
    run_sharded,
)

Array = jax.Array | np.ndarray


def rasterization(
    means: Float[Array, "..."],
    quats: Float[Array, "..."] | None,
    scales: Float[Array, "..."] | None,
    opacities: Float[Array, "..."],
    colors: Float[Array, "..."] | None,
    viewmats: Float[Array, "..."],
    Ks: Float[Array, "..."],
    width: int,
    height: int,
    *,
    covars: Float[Array, "..."] | None = None,
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
    sharding: CameraSharding | None = None,
) -> tuple[Float[Array, "*batch c h w x"], Float[Array, "*batch c h w 1"], dict]:
    """Renders Gaussians into every camera.

    Everything may carry the same leading batch axes. A Gaussian with a value that is not finite is
    not drawn, has zero gradient and is counted in `meta["dropped"]`; the others are not affected.
    Such a camera sees nothing and is counted in `meta["dropped_cameras"]`.

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
        SH coefficients [*batch, (C,) N, K, 3], shown as max(SH + 0.5, 0). May be None where only
        depth is rendered.
      viewmats: [*batch, C, 4, 4] camera from world, OpenCV axes; with a rolling shutter at the line
        read first.
      Ks: [*batch, C, 3, 3] intrinsics in pixels; the centre of the first pixel is (0.5, 0.5).
      width: image width in pixels.
      height: image height in pixels.
      covars: [*batch, N, 3, 3] covariances in square metres, in place of quats and scales, which
        may then be None; not for the unscented transform.
      near_plane: nearest visible depth in metres.
      far_plane: farthest visible depth in metres.
      radius_clip: drops splats with half-widths of at most this many pixels.
      eps2d: blur added to the screen covariance, px^2.
      sh_degree: degree of the SH colours, 0 to 4; None for plain colours.
      tile_size: side of a tile in pixels; default 8 on CPU, 16 elsewhere (see `backend`). The image
        does not depend on it.
      backgrounds: [*batch, C, D] colour behind everything; depth channels have background 0,
        whatever is given.
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
        error. By default the pairs are counted first and all are drawn (on several devices, whose
        shares can only be estimated, a warning tells of those that were not); under `jax.jit`,
        where nothing can be counted, it is for splats of 32 pixels. See `suggest_capacity`.
      host_sort: sorts with NumPy through a callback; by default on CPU with one device and many
        slots. A program with a callback cannot be exported: pass False.
      backend: "auto" or a key of `backends.BACKENDS`. A TPU or GPU backend that is named also sets
        the tile size of that platform and no sort on the host, so that nothing else need be said
        to export for it; any other means the platform of the mesh of `sharding`, without one that
        of `jax.default_device`.
      sharding: over which devices to spread the work, see `sharding.py`. All have an equal share of
        `capacity`.

    Returns:
      render_colors [*batch, C, height, width, X], X channels of colour and then depth in metres;
      render_alphas [*batch, C, height, width, 1];
      meta: means2d, radii, depths, conics, opacities, tiles_per_gauss (all [*batch, C, N, ...]),
      isect_total [*batch, C] pairs wanted, overflow [] pairs dropped, dropped [*batch] Gaussians
      and dropped_cameras [*batch] cameras with values that are not finite, capacity, width, height,
      tile_size, tile_width, tile_height, n_batches, n_cameras, n_devices.

    Raises:
      ValueError: names the argument, what was expected and what came.
    """
    check_backend(backend)
    validation.check_modes(render_mode, rasterize_mode)
    validation.check_sizes(width=width, height=height)
    validation.check_flag("host_sort", host_sort)
    validation.check_limits(near_plane, far_plane, radius_clip, eps2d, max_alpha, capacity=capacity)
    batch, n, cameras = validation.check_splats(
        means, quats, scales, opacities, viewmats, Ks, covars
    )
    validation.check_camera(
        camera_model, distortion, rolling_shutter, viewmats_rs, with_ut, ut_params, covars,
        (*batch, cameras),
    )  # fmt: skip
    validation.check_probe(absgrad, means2d_probe, (*batch, cameras, n, 2))
    with_color, depth_mode = "RGB" in render_mode, render_mode.removeprefix("RGB").lstrip("+")
    if with_color or colors is not None:
        validation.check_colors(colors, sh_degree, batch, n, cameras)
    if backgrounds is not None:
        channels = (colors if with_color else backgrounds).shape[-1:]
        validation.check_array("backgrounds", backgrounds, (*batch, cameras, *channels))
    devices, mesh = 1, None
    if sharding is not None:
        validation.check_type("sharding", sharding, CameraSharding)
        sharding.check(n, cameras)
        distortion = lens_of_each_camera(distortion, (*batch, cameras))
        devices, mesh = sharding.devices, sharding.mesh
    tile_size = default_tile_size(backend, mesh) if tile_size is None else tile_size
    validation.check_tile_size(tile_size)
    tiles_x, tiles_y = grid_shape(width, height, tile_size)
    if covars is not None:
        quats = scales = None
    if not with_color:
        colors = backgrounds = None
    splats = dict(means=means, quats=quats, scales=scales, covars=covars, opacities=opacities)
    views = dict(viewmats=viewmats, Ks=Ks, viewmats_rs=viewmats_rs, distortion=distortion)
    screen_options = _ScreenOptions(
        sh_degree=sh_degree, with_depth=bool(depth_mode), width=width, height=height,
        near_plane=float(near_plane), far_plane=float(far_plane), radius_clip=float(radius_clip),
        eps2d=float(eps2d), antialiased=rasterize_mode == "antialiased",
        camera_model=camera_model, rolling_shutter=rolling_shutter, with_ut=with_ut,
        ut_params=ut_params,
    )  # fmt: skip
    counted = capacity is None and not is_traced(splats, colors, views, backgrounds, means2d_probe)
    if capacity is None:
        images = int(np.prod((*batch, cameras))) // devices
        capacity = default_capacity(images, max(n, 1), tiles_x * tiles_y, tile_size)
        if counted and n:
            pairs = np.asarray(_count(splats, views, tile_size, screen_options=screen_options))
            share = (
                np.sum(pairs, dtype=np.int64) if devices == 1 else _largest_share(pairs, devices)
            )
            capacity = counted_capacity(capacity, int(share))
    else:
        capacity = -(-capacity // devices)
    if host_sort is None:
        host_sort = default_host_sort(capacity, backend, mesh)
    rendered, alphas, meta = _rasterize(
        splats,
        colors,
        views,
        dict(backgrounds=backgrounds, means2d_probe=means2d_probe),
        screen_options=screen_options,
        image_options=_ImageOptions(
            width=width, height=height, tile_size=tile_size, capacity=capacity,
            host_sort=host_sort, expected_depth=depth_mode == "ED", max_alpha=float(max_alpha),
            absgrad=absgrad,
            backend=choose_backend(backend, _common_dtype(splats, colors, views), mesh),
        ),
        sharding=sharding,
    )  # fmt: skip
    meta |= {
        "capacity": capacity * devices,
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "tile_width": tiles_x,
        "tile_height": tiles_y,
        "n_batches": int(np.prod(batch)),
        "n_cameras": cameras,
        "n_devices": devices,
    }
    if counted and devices > 1:
        warn_of_overflow(meta)
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
      ValueError: names the argument, what was expected and what came.
    """
    *leading, n = check_projection(projection)
    check_backend(backend)
    validation.check_sizes(width=width, height=height)
    validation.check_tile_size(tile_size)
    validation.check_limits(max_alpha=max_alpha)
    validation.check_probe(absgrad, means2d_probe, (*leading, n, 2))
    validation.check_floating(features=features)
    validation.check_shape("features", features, (*leading, n, *features.shape[-1:]))
    validation.check_type("lists", lists, TileLists)
    tiles = int(np.prod((*leading, *grid_shape(width, height, tile_size))))
    validation.check_shape("lists.starts", lists.starts, (tiles,))
    validation.check_shape("lists.counts", lists.counts, (tiles,))
    spec = BlendSpec(int(width), int(height), int(tile_size), float(max_alpha), absgrad)
    chosen = choose_backend(backend, jnp.result_type(projection.means2d, features))
    return _blend(projection, features, lists, means2d_probe, spec=spec, backend=chosen)


@functools.partial(jax.jit, static_argnames=("spec", "backend"))
def _blend(projection, features, lists, means2d_probe, *, spec, backend):
    leading = projection.depths.shape[:-1]
    if spec.absgrad:
        features = jnp.concatenate([features, means2d_probe], -1)
    elif means2d_probe is not None:
        projection = projection._replace(means2d=projection.means2d + means2d_probe)
    table = pack_table(projection, features)
    out, transmittance = blend_tiles(
        table, lists.rows, lists.starts, lists.counts, spec, BACKENDS[backend]
    )
    image = jnp.concatenate([out, 1 - transmittance[:, None]], 1)
    image = tiles_to_image(image, spec, leading)
    return image[..., :-1], image[..., -1:]


class _ScreenOptions(NamedTuple):
    """What is static in `_to_screen`."""

    sh_degree: int | None
    with_depth: bool
    width: int
    height: int
    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    antialiased: bool
    camera_model: str
    rolling_shutter: RollingShutterType
    with_ut: bool | None
    ut_params: UnscentedTransformParameters | None


class _ImageOptions(NamedTuple):
    """What is static in `_to_images`."""

    width: int
    height: int
    tile_size: int
    capacity: int
    host_sort: bool
    expected_depth: bool
    max_alpha: float
    absgrad: bool
    backend: str


@functools.partial(jax.jit, static_argnames=("screen_options", "image_options", "sharding"))
def _rasterize(splats, colors, views, extras, *, screen_options, image_options, sharding):
    """What `rasterization` does with its arrays: one program also outside `jax.jit`.

    Not inlined: a `jax.grad` outside `jax.jit` would then run it operation by operation.
    """
    splats, colors, views, extras = _in_one_dtype(splats, colors, views, extras)
    n = splats["opacities"].shape[-1]
    batch = splats["opacities"].ndim - 1
    sh_degree = screen_options.sh_degree
    if n == 0:
        splats, colors, extras = _with_one_transparent(batch, splats, colors, extras, sh_degree)
    usable = usable_gaussians(**splats)
    if colors is not None:
        colors, colored = _finite_colors(colors, batch + 1, sh_degree)
        usable = usable & colored
        splats["opacities"] = jnp.where(colored, splats["opacities"], 0.0)

    working = usable_cameras(**views)
    to_screen = functools.partial(_to_screen, **screen_options._asdict())
    to_images = functools.partial(_to_images, **image_options._asdict())
    if sharding is None:
        images, overflow = to_images(to_screen(splats, colors, views), extras)
    else:
        images, overflow = run_sharded(
            sharding, batch, to_screen, to_images, splats, colors, views, extras
        )
    rendered, alphas, projection, tiles_per_gauss, isect_total = images
    meta = {
        "means2d": projection.means2d[..., :n, :],
        "radii": projection.radii[..., :n, :],
        "depths": projection.depths[..., :n],
        "conics": projection.conics[..., :n, :],
        "opacities": projection.opacities[..., :n],
        "tiles_per_gauss": tiles_per_gauss[..., :n],
        "isect_total": isect_total,
        "overflow": overflow,
        "dropped": jnp.sum(~usable, -1, dtype=jnp.int32),
        "dropped_cameras": jnp.sum(~working, -1, dtype=jnp.int32),
    }
    return rendered, alphas, meta


@functools.partial(jax.jit, static_argnames=("tile_size", "screen_options"))
def _count(splats, views, tile_size, *, screen_options):
    """Float [*batch, C], the (splat, tile) pairs of each image; one program beside `_rasterize`."""
    splats, _, views, _ = _in_one_dtype(splats, None, views, None)
    options = screen_options._asdict()
    size = options["width"], options["height"]
    del options["sh_degree"], options["with_depth"]
    counts = count_tiles(project(**splats, **views, **options), *size, tile_size)
    return jnp.sum(counts.astype(jnp.float32), -1)


def _largest_share(pairs, devices):
    """Most pairs that one of the devices has to hold, for float32 sums [*batch, C] of each image.

    Cameras are split in order; where splats are split instead, devices have about equal shares.
    """
    cameras = np.moveaxis(pairs, -1, 0).reshape(pairs.shape[-1], -1).astype(np.float64).sum(-1)
    share = cameras.sum() if devices == 1 else 1.5 * cameras.sum() / devices
    if len(cameras) % devices == 0:
        share = max(share, cameras.reshape(devices, -1).sum(-1).max())
    return math.ceil(share * (1 + ROUNDING))


def _to_screen(splats, colors, views, *, sh_degree, with_depth, **options):
    """`Projection` and the features to be blended [*batch, C, N, D]."""
    projection = project(**splats, **views, **options)
    features = []
    if colors is not None:
        if sh_degree is not None:
            viewmats, _, viewmats_rs, _ = without_broken_cameras(usable_cameras(**views), **views)
            centres = _camera_centres(viewmats, viewmats_rs)
            colors = _evaluate_sh(sh_degree, splats["means"], centres, colors)
        features.append(colors)
    if with_depth:
        features.append(projection.depths[..., None])
    shape = projection.depths.shape
    features = [jnp.broadcast_to(f, (*shape, f.shape[-1])) for f in features]
    return projection, jnp.concatenate(features, -1)


def _to_images(
    screen, extras, *, width, height, tile_size, capacity, host_sort, expected_depth, **options
):
    """Image, alpha and what `meta` shows of every camera; and the overflow of all of them."""
    projection, features = screen
    lists = bin_tiles(
        projection, width, height, tile_size=tile_size, capacity=capacity, host_sort=host_sort
    )
    rendered, alphas = blend(
        projection, features, lists, width, height, tile_size=tile_size,
        means2d_probe=extras["means2d_probe"], **options,
    )  # fmt: skip
    if expected_depth:
        depth = rendered[..., -1:] / jnp.maximum(alphas, 1e-10)
        rendered = jnp.concatenate([rendered[..., :-1], depth], -1)
    backgrounds = extras["backgrounds"]
    if backgrounds is not None:
        behind = (1 - alphas) * backgrounds[..., None, None, :]
        rendered = rendered.at[..., : behind.shape[-1]].add(behind)
    return (
        rendered, alphas, projection, lists.tiles_per_gauss, lists.isect_total
    ), lists.overflow  # fmt: skip


def _common_dtype(splats, colors, views):
    """Widest dtype of splats, colours, viewmats and Ks, at least float32."""
    arrays = (splats, colors, views["viewmats"], views["Ks"])
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(arrays)), jnp.float32)


def _in_one_dtype(splats, colors, views, extras):
    """Everything but the lens in the common dtype; None stays None."""
    dtype = _common_dtype(splats, colors, views)
    distortion = {"distortion": views["distortion"]}
    splats, colors, views, extras = jax.tree.map(
        lambda array: jnp.asarray(array, dtype),
        (splats, colors, views | {"distortion": None}, extras),
    )
    return splats, colors, views | distortion, extras


def _with_one_transparent(axis, splats, colors, extras, sh_degree):
    """An empty scene as one transparent splat, so that no stage meets an axis of length 0.

    `axis` is that of the Gaussians in `splats`.
    """

    def padded(array, axis):
        return jnp.pad(array, [(0, int(k == axis)) for k in range(array.ndim)])

    splats = jax.tree.map(lambda array: padded(array, axis), splats)
    if colors is not None:
        colors = padded(colors, colors.ndim - (2 if sh_degree is None else 3))
    if extras["means2d_probe"] is not None:
        extras = extras | {"means2d_probe": padded(extras["means2d_probe"], axis + 1)}
    return splats, colors, extras


def _finite_colors(colors, axes, sh_degree):
    """Colours [*batch, C or 1, N, ...] that are finite, and which Gaussians had none that were not.

    `axes` is the number of axes of the opacities [*batch, N].
    """
    tail = 1 if sh_degree is None else 2
    finite = jnp.abs(colors) < COORDINATE_MAX
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
    return jnp.maximum(sum_of_harmonics(degree, dirs, coeffs) + 0.5, 0.0)
