"""A scene: Gaussians, the tracks that move some of them, and the sky.

A Gaussian seen at t_i has at time t the opacity

    o(t) = o exp(-((t - t_i) / (lifespan + tau))^2 / 2)            (PointForward, eq. 7, in seconds)

and, if a thing owns it, moves with that thing's box.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jwm_kernels
from jwm_jax.errors import DataError
from jwm_jax.files import write_beside
from jwm_jax.reading import read_arrays, require_shapes
from jwm_jax.scene.cameras import Camera, Intrinsics
from jwm_jax.scene.gaussians import Gaussians
from jwm_jax.scene.ply import write_ply
from jwm_jax.scene.pytree import Array, pytree_dataclass, static_field
from jwm_jax.scene.sky import Sky
from jwm_jax.scene.tracks import Tracks
from jwm_jax.scene.transforms import (
    invert_transform,
    matrix_to_quat,
    quat_multiply,
)

FORMAT_VERSION = 1

_GAUSSIANS = {
    **dict.fromkeys(("means", "scales", "colors"), "n 3"),
    **dict.fromkeys(("opacities", "time", "lifespan", "confidence"), "n"),
    "quats": "n 4",
    "mask": "truth n",
    "owner": "whole n",
    "feature": "n d",
}
_TRACKS = {
    "times": "s",
    "centers": "n s 3",
    "quats": "n s 4",
    "sizes": "n 3",
    "valid": "truth n s",
    "category": "whole n",
}
"""Shapes of the arrays of a scene file."""


class Rendering(NamedTuple):
    """A rendered picture.

    Attributes:
        rgb: In [0, 1] (up to rounding), [..., h, w, 3].
        alpha: Share of light that Gaussians stopped, [..., h, w].
        depth: Expected distance along z in metres, [..., h, w]; 0 where alpha is 0.
        overflow: Pairs of Gaussian and tile left out for lack of room, farthest first, [...].
    """

    rgb: jax.Array
    alpha: jax.Array
    depth: jax.Array
    overflow: jax.Array


@pytree_dataclass
class Scene:
    """What WorldRec makes of a clip, in metres and seconds since the clip's start.

    Attributes:
        gaussians: Static ones in the world frame, others in the frame of their owner's box.
        tracks: Boxes on the scene's clock (float32), or None for a scene without actors.
        sky: What is seen where no Gaussian is, or None for black.
        start: The clip's absolute start, seconds; scene time 0.
        tau: Shortest life of a Gaussian around its time, seconds.
    """

    gaussians: Gaussians
    tracks: Tracks | None = None
    sky: Sky | None = None
    start: float = static_field(default=0.0)
    tau: float = static_field(default=1.0)

    def compose(self, time: Float[Array, ""] | float | np.floating) -> Gaussians:
        """The Gaussians in the world at one time (seconds since the start), opacities faded.

        Gaussians of a thing that is not there at that time get opacity 0.
        """
        g = self.gaussians
        age = (jnp.asarray(time, jnp.float32) - g.time) / (g.lifespan + self.tau)
        opacities = g.opacities * jnp.exp(-0.5 * age * age) * g.mask
        means, quats = jnp.asarray(g.means), jnp.asarray(g.quats)
        if self.tracks is not None and self.tracks.num_tracks:
            poses, there = self.tracks.at(jnp.asarray(time, jnp.float32))
            poses = jnp.concatenate([jnp.eye(4, dtype=poses.dtype)[None], poses])
            there = jnp.concatenate([jnp.ones(1, bool), there])
            rotation = matrix_to_quat(poses[:, :3, :3])
            pose = poses[g.owner]
            means = jnp.einsum("nij,nj->ni", pose[:, :3, :3], means) + pose[:, :3, 3]
            quats = quat_multiply(rotation[g.owner], quats)
            opacities = opacities * there[g.owner]
        return Gaussians(
            means=means,
            quats=quats,
            scales=jnp.asarray(g.scales),
            opacities=opacities,
            colors=jnp.asarray(g.colors),
            mask=jnp.asarray(g.mask),
            time=jnp.asarray(g.time),
            lifespan=jnp.asarray(g.lifespan),
            owner=jnp.zeros_like(g.owner),
            confidence=jnp.asarray(g.confidence),
            feature=g.feature,
        )

    def render(
        self,
        camera: Camera,
        time: Float[Array, "*b"] | float | np.floating,
        sky: bool = True,
        capacity: int | None = None,
        backend: str = "auto",
    ) -> Rendering:
        """Draw the scene.

        Args:
            camera: World frame; leading axes [*b] draw several pictures.
            time: Seconds since the start, [*b] or one for all.
            sky: Whether the sky fills what Gaussians leave open; black otherwise.
            capacity: Pairs of Gaussian and tile that a picture has room for. If None they are
                counted first, so that all are drawn; under `jax.jit`, where they cannot be,
                `default_capacity`.
            backend: Of the rasterizer; "xla" is plain XLA on every platform, for `jax.export`.

        Returns:
            rgb [*b, h, w, 3], alpha [*b, h, w], depth [*b, h, w], overflow [*b].
        """
        size = (camera.height, camera.width)
        scene = replace(self, start=0.0)  # static, and of no effect here: one program for all
        pose, K = camera.world_from_camera, camera.K
        if capacity is None:
            capacity = default_capacity(self.gaussians.capacity, *size)
            if not jwm_kernels.is_traced(scene, pose, K, time):
                pairs = 1.00001 * float(
                    _count(scene, pose, K, time, size=size)
                )  # summed in float32
                if pairs > capacity:
                    capacity = jwm_kernels.rounded_capacity(pairs)
        options = {"size": size, "sky": sky, "slots": capacity, "backend": backend}
        return _render(scene, pose, K, time, **options)

    def save_ply(self, path: str | Path, time: float | None = None) -> Path:
        """Write a 3D Gaussian splatting PLY: static Gaussians, or all as they stand at `time`.

        Returns:
            The path written.
        """
        if time is None:
            chosen, keep = self.gaussians, np.asarray(self.gaussians.mask)
            keep = keep & (np.asarray(self.gaussians.owner) == 0)
        else:
            chosen = self.compose(time)
            keep = np.asarray(chosen.mask)
        return write_ply(path, chosen, keep)

    def save(self, path: str | Path) -> Path:
        """Write everything to one .npz file that `Scene.load` reads."""
        path = Path(path)
        arrays = {"format_version": np.int64(FORMAT_VERSION)}
        arrays |= {"start": np.float64(self.start), "tau": np.float64(self.tau)}
        for prefix, part in (("gaussians", self.gaussians), ("tracks", self.tracks)):
            if part is not None:
                for field in part.__dataclass_fields__:
                    value = getattr(part, field)
                    if value is not None:
                        arrays[f"{prefix}.{field}"] = np.asarray(value)
        if self.sky is not None:
            arrays["sky.texture"] = np.asarray(self.sky.texture)
        path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
        with write_beside(path) as file:
            np.savez_compressed(file, **arrays)
        return path

    @staticmethod
    def load(path: str | Path) -> "Scene":
        """Read a scene written by `save`.

        Raises:
            DataError: The file is missing, not a scene, or of another format version.
        """
        path = Path(path)
        arrays = read_arrays(path, {"format_version": "", "start": "", "tau": ""})
        version = int(arrays["format_version"])
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: expected a scene of format version {FORMAT_VERSION}, got {version}."
            )

        def part(prefix: str, shapes: dict[str, str], optional: str = "") -> dict | None:
            offset = len(prefix) + 1
            found = {k[offset:]: v for k, v in arrays.items() if k.startswith(prefix + ".")}
            if not found and prefix != "gaussians":
                return None
            wanted = {k: v for k, v in shapes.items() if k in found or k != optional}
            require_shapes(found, wanted, f"{path}: {prefix}")
            return {k: found[k] for k in (*wanted, "ids") if k in found}

        gaussians = part("gaussians", _GAUSSIANS, optional="feature")
        tracks = part("tracks", _TRACKS)
        sky = part("sky", {"texture": "h w 3"})
        things = 0 if tracks is None else len(tracks["sizes"])
        owner = gaussians["owner"]
        if (owner < 0).any() or (owner > things).any():
            raise DataError(f"{path}: owners must be 0 to {things}, the number of tracks.")
        if tracks is not None:
            tracks["ids"] = tuple(str(i) for i in tracks.get("ids", ()))
        return Scene(
            gaussians=Gaussians(**gaussians),
            tracks=None if tracks is None else Tracks(**tracks),
            sky=None if sky is None else Sky(**sky),
            start=float(arrays["start"]),
            tau=float(arrays["tau"]),
        )


ROUNDING = 1e-5
"""Relative error of a count that is summed in float32."""


def default_capacity(gaussians: int, height: int, width: int) -> int:
    """Room for four 8-pixel tiles a Gaussian, and 64 Gaussians a tile on top.

    Gaussians of about a pixel's footprint, as WorldRec makes them, cover two to three tiles.
    """
    return 4 * gaussians + 64 * (-(-height // 8)) * (-(-width // 8))


@partial(jax.jit, static_argnames=("size",))
def _count(scene: Scene, pose, K, time, *, size: tuple[int, int]) -> Float[Array, ""]:
    """Pairs of Gaussian and tile of the picture that has the most."""
    (height, width), tile = size, jwm_kernels.default_tile_size()

    def one(each):
        pose, K, time = each
        g = scene.compose(time)
        shape = (g.means, g.quats, g.scales, g.opacities)
        seen = jwm_kernels.project(*shape, invert_transform(pose)[None], K[None], width, height)
        return jnp.sum(jwm_kernels.count_tiles(seen, width, height, tile).astype(jnp.float32))

    return jnp.max(jax.lax.map(one, _flat_views(pose, K, time)[0]))


def _flat_views(pose, K, time) -> tuple[tuple, tuple[int, ...]]:
    """Poses, intrinsics and times of all pictures in a row, and the axes they had."""
    pose = jnp.asarray(pose, jnp.float32)
    leading = pose.shape[:-2]
    K = jnp.broadcast_to(jnp.asarray(K, jnp.float32), (*leading, 3, 3))
    time = jnp.broadcast_to(jnp.asarray(time, jnp.float32), leading)
    return (pose.reshape(-1, 4, 4), K.reshape(-1, 3, 3), time.reshape(-1)), leading


@partial(jax.jit, static_argnames=("size", "sky", "slots", "backend"))
def _render(scene: Scene, pose, K, time, **options) -> Rendering:
    """Pictures along the leading axes of `pose`, one after another."""
    flat, leading = _flat_views(pose, K, time)
    if not leading:
        return _render_one(scene, *(x[0] for x in flat), **options)
    pictures = jax.lax.map(lambda one: _render_one(scene, *one, **options), flat)
    return jax.tree.map(lambda p: p.reshape(*leading, *p.shape[1:]), pictures)


def _render_one(
    scene: Scene, pose, K, time, *, size: tuple[int, int], sky: bool, slots: int, backend: str
) -> Rendering:
    height, width = size
    g = scene.compose(time)
    colors, alphas, meta = jwm_kernels.rasterization(
        g.means,
        g.quats,
        g.scales,
        g.opacities,
        g.colors,
        invert_transform(pose)[None],
        K[None],
        width,
        height,
        render_mode="RGB+ED",
        capacity=slots,
        backend=backend,
        host_sort=False if backend == "xla" else None,
    )
    rgb, depth, alpha = colors[0, ..., :3], colors[0, ..., 3], alphas[0, ..., 0]
    if sky and scene.sky is not None:
        _, directions = Camera(Intrinsics(K=K, width=width, height=height), pose).rays()
        rgb = rgb + (1.0 - alpha)[..., None] * scene.sky.sample(directions)
    return Rendering(rgb, alpha, depth, meta["overflow"])
