"""Sparse 3D queries: where they stand, who owns them, what they know of themselves.

A picture is cut into cells of a few pixels; each cell is one query, and each of its sub-cells one
child, the seed of a Gaussian. A child's ray o + z d (z is depth along the optical axis) meets the
enlarged box k between z_in and z_out (slabs). Box k claims the child if the estimated depth z lies
within z_in - s z .. z_out + s z; the child then stands at the depth nearest to z inside the box, so
a rough estimate still lands on the thing. Everything of a claimed child is written in the box's
frame, which is what lets all times' views of one thing fall onto each other.

A query stands on the nearest of its children and is described by 12 numbers (PointForward): its
point, its colour, and the Pluecker coordinates (direction d / |d|, moment o x d / |d|) of its ray;
in the static world points and moments are taken about the mean camera position.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jwm_jax.scene.pytree import pytree_dataclass
from jwm_jax.scene.transforms import invert_transform
from jwm_jax.worldrec.config import WorldRecConfig
from jwm_jax.worldrec.pictures import Pictures
from jwm_jax.worldrec.split import total

TIE = 1e-6
"""Part of the depth within which children of a query count as equally near; the first is taken.

Neighbours often have the same depth up to rounding, which must not decide between them.
"""

POSITION_UNIT = 20.0
"""Metres that count as 1 in a descriptor."""


@pytree_dataclass
class Queries:
    """Q queries of P pictures with C children each.

    Attributes:
        points: Of each child, in its owner's frame.
        depth: Of each child along the optical axis of its picture, metres.
        owner: Of each child; 0 for the static world, k for box k - 1.
        sky: Probability that a child is sky.
        colors: Mean colour of each child's pixels.
        rotation: Axes of the picture's camera in each child's owner's frame.
        footprint: Half the size of a child's pixels at its depth, metres: across, down.
        point: Of each query, in its owner's frame.
        query_depth: Depth of each query.
        query_owner: Owner of each query.
        descriptor: The 12 numbers, and what the children differ in.
        pixel: Pixel of each query's nearest child in its own picture.
        uv: Pixel of each query's cell centre.
    """

    points: Float[jax.Array, "p q c 3"]
    depth: Float[jax.Array, "p q c"]
    owner: Int[jax.Array, "p q c"]
    sky: Float[jax.Array, "p q c"]
    colors: Float[jax.Array, "p q c 3"]
    rotation: Float[jax.Array, "p q c 3 3"]
    footprint: Float[jax.Array, "p q c 2"]
    point: Float[jax.Array, "p q 3"]
    query_depth: Float[jax.Array, "p q"]
    query_owner: Int[jax.Array, "p q"]
    descriptor: Float[jax.Array, "p q d"]
    pixel: Float[jax.Array, "p q 2"]
    uv: Float[np.ndarray, "q 2"]


def cell_layout(
    config: WorldRecConfig, height: int, width: int
) -> tuple[Float[np.ndarray, "q 2"], Float[np.ndarray, "q c 2"]]:
    """Pixel coordinates of the centres of cells and of their children.

    Raises:
        ValueError: The picture is not a whole number of cells.
    """
    (rows, columns), (down, across) = config.cell, config.children
    if height % rows or width % columns or rows % down or columns % across:
        raise ValueError(
            f"cells of {config.cell} pixels with {config.children} children do not tile a picture "
            f"of {height} x {width}; change the picture size or the config."
        )
    v, u = np.meshgrid(np.arange(0, height, rows), np.arange(0, width, columns), indexing="ij")
    corner = np.stack([u.ravel(), v.ravel()], -1).astype(np.float32)
    centres = corner + np.float32([columns / 2, rows / 2])
    dv, du = np.meshgrid(np.arange(down), np.arange(across), indexing="ij")
    offset = (np.stack([du.ravel(), dv.ravel()], -1) + 0.5) * [columns / across, rows / down]
    return centres, (corner[:, None] + offset[None]).astype(np.float32)


def child_colors(
    config: WorldRecConfig, images: Float[jax.Array, "p h w 3"]
) -> Float[jax.Array, "p q c 3"]:
    """Mean colour of the pixels of every child."""
    p, height, width, channels = images.shape
    (rows, columns), (down, across) = config.cell, config.children
    x = images.reshape(
        p, height // rows, down, rows // down, width // columns, across, columns // across, channels
    ).mean((3, 6))
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(p, -1, down * across, channels)


def box_intervals(
    pictures: Pictures, directions: Float[jax.Array, "p n 3"], margin: float
) -> tuple[Float[jax.Array, "p n o"], Float[jax.Array, "p n o"], Bool[jax.Array, "p n o"]]:
    """Where rays of the pictures' cameras pass through the boxes of their time.

    Args:
        pictures: Give cameras and boxes.
        directions: Camera frame, z = 1.
        margin: Part by which boxes are enlarged.

    Returns:
        Depths at which each ray enters and leaves each box, and whether it hits it at all.
    """
    box_from_camera = (
        invert_transform(pictures.world_from_box) @ pictures.world_from_camera[:, None]
    )
    half = 0.5 * (1.0 + margin) * pictures.box_sizes
    enter, leave = 0.0, jnp.inf
    for axis in range(3):
        row = box_from_camera[:, :, axis]
        along = jnp.einsum("pnj,poj->pno", directions, row[..., :3])
        along = jnp.where(jnp.abs(along) < 1e-6, 1e-6, along)
        low = (-half[:, axis] - row[..., 3])[:, None] / along
        high = (half[:, axis] - row[..., 3])[:, None] / along
        enter = jnp.maximum(enter, jnp.minimum(low, high))
        leave = jnp.minimum(leave, jnp.maximum(low, high))
    hit = (leave > enter) & pictures.box_there[:, None] & pictures.mask[:, None, None]
    return enter, leave, hit


def claim(
    config: WorldRecConfig,
    pictures: Pictures,
    directions: Float[jax.Array, "p n 3"],
    depth: Float[jax.Array, "p n"],
) -> tuple[Int[jax.Array, "p n"], Float[jax.Array, "p n"], Float[jax.Array, "p n"]]:
    """Which box, if any, owns the surface seen along each ray.

    Of several boxes the one that needs the least correction of the depth wins, then the smallest.
    What lies within `config.ground` above a box's bottom stays static: it is road.

    Returns:
        Owner (0 static, k box k - 1), depth moved into the owner's box, and the depth at which each
        ray first enters any box (infinite if none).
    """
    enter, leave, hit = box_intervals(pictures, directions, config.box_margin)
    z = depth[..., None]
    inside = jnp.clip(z, enter, leave)
    volume = jnp.prod(pictures.box_sizes, -1)
    cost = jnp.abs(inside - z) + 1e-4 * volume
    claimed = hit & (jnp.abs(inside - z) <= config.box_slack * z)
    cost = jnp.where(claimed, cost, jnp.inf)
    best = jnp.argmin(cost, -1)

    def pick(x):
        return jnp.take_along_axis(x, best[..., None], -1)[..., 0]

    moved = pick(inside)
    up = jnp.take_along_axis(
        invert_transform(pictures.world_from_box)[:, :, 2], best[..., None], axis=1
    )
    camera = jnp.einsum("pij,pnj->pni", pictures.world_from_camera[:, :3, :3], directions)
    world = pictures.world_from_camera[:, None, :3, 3] + camera * moved[..., None]
    height = jnp.sum(up[..., :3] * world, -1) + up[..., 3] + 0.5 * pictures.box_sizes[best, 2]
    mine = pick(claimed) & (height > config.ground)
    owner = jnp.where(mine, best + 1, 0).astype(jnp.int32)
    entry = jnp.min(jnp.where(hit, enter, jnp.inf), -1)
    return owner, jnp.where(mine, moved, depth), entry


def owner_frames(pictures: Pictures) -> Float[jax.Array, "p o1 4 4"]:
    """world_from_owner of every owner at every picture's time; owner 0 is the world itself."""
    identity = jnp.broadcast_to(jnp.eye(4), (pictures.times.shape[0], 1, 4, 4))
    return jnp.concatenate([identity, pictures.world_from_box], axis=1)


def place_queries(
    config: WorldRecConfig,
    pictures: Pictures,
    depth: Float[jax.Array, "p h w"],
    sky: Float[jax.Array, "p h w"],
    axis: str | None = None,
) -> tuple[Queries, Float[jax.Array, "p h2 w2"]]:
    """Lift cells and their children into space and hand them to their owners.

    Args:
        config: Shape of the model.
        pictures: Without leading axes; those of this device.
        depth: Along z, metres, at the pictures' size; gradients flow into it.
        sky: Probability of sky.
        axis: Mesh axis that the scene's pictures are split over, see `split`.

    Returns:
        The queries, and for every child cell of each picture the depth at which its ray first
        enters a box (infinite if none), as a map.
    """
    p, height, width = depth.shape
    centres, children = cell_layout(config, height, width)
    count, c = children.shape[:2]
    row, column = np.floor(children[..., 1]).astype(int), np.floor(children[..., 0]).astype(int)
    child_depth, child_sky = depth[:, row, column], sky[:, row, column]
    ones = jnp.ones((*children.shape[:2], 1), jnp.float32)
    homogeneous = jnp.concatenate([jnp.asarray(children), ones], -1).reshape(-1, 3)
    directions = jnp.einsum("pij,nj->pni", jnp.linalg.inv(pictures.K), homogeneous)
    flat_depth = child_depth.reshape(p, -1)
    owner, moved, entry = claim(
        config, pictures, jax.lax.stop_gradient(directions), jax.lax.stop_gradient(flat_depth)
    )
    z = flat_depth + (moved - jax.lax.stop_gradient(flat_depth))
    owner_from_camera = (
        invert_transform(owner_frames(pictures)) @ pictures.world_from_camera[:, None]
    )
    frame = jax.vmap(lambda table, index: table[index])(owner_from_camera, owner)
    local = directions * z[..., None]
    points = jnp.einsum("pnij,pnj->pni", frame[..., :3, :3], local) + frame[..., :3, 3]
    focal = jnp.stack([pictures.K[:, 0, 0], pictures.K[:, 1, 1]], -1)
    size = np.float32([config.cell[1] / config.children[1], config.cell[0] / config.children[0]])
    footprint = 0.5 * size * z[..., None] / focal[:, None]

    z_of = z.reshape(p, count, c)
    nearest = jnp.argmax(z_of <= (1 + TIE) * z_of.min(-1, keepdims=True), axis=-1)

    def by_child(x):
        return x.reshape(p, count, c, *x.shape[2:])

    def of_nearest(x):
        x = by_child(x)
        index = nearest.reshape(p, count, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=2)[:, :, 0]

    colors = child_colors(config, pictures.images)
    point, query_depth, query_owner = of_nearest(points), of_nearest(z), of_nearest(owner)
    query_frame = of_nearest(frame)
    ray = jnp.einsum("pqij,pqj->pqi", query_frame[..., :3, :3], of_nearest(directions))
    ray = ray / jnp.linalg.norm(ray, axis=-1, keepdims=True)
    static = (query_owner == 0)[..., None]
    centre = jnp.where(static, scene_centre(pictures, axis), 0.0)
    moment = jnp.cross(query_frame[..., :3, 3] - centre, ray)
    color = colors.mean(2)
    log_depth = jnp.log(by_child(z))
    descriptor = jnp.concatenate(
        [
            (point - centre) / POSITION_UNIT,
            color - 0.5,
            moment / POSITION_UNIT,
            ray,
            (colors - color[:, :, None]).reshape(p, count, -1),
            log_depth - log_depth.mean(-1, keepdims=True),
            child_sky,
            jnp.log(query_depth)[..., None] - 2.5,
            (query_owner > 0).astype(jnp.float32)[..., None],
        ],
        axis=-1,
    )
    queries = Queries(
        points=by_child(points),
        depth=by_child(z),
        owner=by_child(owner),
        sky=child_sky,
        colors=colors,
        rotation=by_child(frame[..., :3, :3]),
        footprint=by_child(footprint),
        point=point,
        query_depth=query_depth,
        query_owner=query_owner,
        descriptor=jax.lax.stop_gradient(descriptor),
        pixel=jnp.asarray(children)[np.arange(count), nearest],
        uv=centres,
    )
    return queries, _as_map(config, entry.reshape(p, count, c), height, width)


def scene_centre(pictures: Pictures, axis: str | None = None) -> Float[jax.Array, "3"]:
    """Mean position of the cameras: static descriptors count from it, wherever the world begins."""
    weight = pictures.mask.astype(jnp.float32)[:, None]
    positions = (pictures.world_from_camera[:, :3, 3] * weight).sum(0)
    positions, count = total((positions, weight.sum()), axis)
    return positions / jnp.maximum(count, 1.0)


def _as_map(config, values, height: int, width: int):
    """[P, Q, C] values of children as [P, rows of children, columns of children] maps."""
    (rows, columns), (down, across) = config.cell, config.children
    x = values.reshape(-1, height // rows, width // columns, down, across)
    x = x.transpose(0, 1, 3, 2, 4)
    return x.reshape(-1, height // rows * down, width // columns * across)
