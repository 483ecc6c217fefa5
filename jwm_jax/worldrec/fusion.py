"""Weighted fusion of what every view at every time shows of a query.

A query at x in its owner's frame lies in view k, taken at t_k, at the pixel

    u_k = pi(camera_from_world_k  world_from_owner(t_k)  x),   z_k its depth there,

where the view's features f_k are read bilinearly at all scales. How far the query lies behind what
that view sees, delta_k = (z_k - D_k(u_k)) / z_k, says whether it is hidden. With cues a_k (delta,
colour difference, distance ratio, time difference, same picture) and the query's own embedding h,

    logit_k = MLP(h, f_k, a_k),   w = softmax of logit over valid views,   g = sum_k w_k (f_k, a_k).

A view is valid where the query projects into it, its owner is there at t_k, and, for static
queries, no box stands before it. Views are visited one after the other with a running maximum, sum
and weighted sum, so that nothing of size queries x views x channels ever exists.

Source: PointForward (arXiv 2605.11594), section 3.3; the online softmax is that of FlashAttention.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jwm_jax.nn.layers import Linear
from jwm_jax.scene.cameras import inside_image, project_local
from jwm_jax.scene.transforms import invert_transform
from jwm_jax.worldrec.config import WorldRecConfig
from jwm_jax.worldrec.pictures import Pictures
from jwm_jax.worldrec.queries import Queries, owner_frames
from jwm_jax.worldrec.split import gather, picture_numbers

NUM_CUES = 13
NEVER = -1e9


class View(NamedTuple):
    """One picture as the fusion sees it; stacked along a leading axis for the scan.

    Attributes:
        maps: Bilinearly read [h2, w2, channels]: pyramid levels at the finest one's size, colour.
        nearest: Read at the nearest cell [h2, w2, 3]: depth, sky probability, entry of a box.
        camera_from_owner: [O + 1, 4, 4].
        there: Whether each owner is there [O + 1].
        K: [3, 3] in pixels of the picture.
        time: Seconds.
        index: Of the picture.
        mask: False for padding.
    """

    maps: jax.Array
    nearest: jax.Array
    camera_from_owner: jax.Array
    there: jax.Array
    K: jax.Array
    time: jax.Array
    index: jax.Array
    mask: jax.Array


class Asking(NamedTuple):
    """The queries of all pictures as one flat list.

    Attributes:
        point: [N, 3] in the owner's frame.
        owner: [N].
        depth: [N] in the own picture, metres.
        color: [N, 3].
        time: [N] seconds.
        picture: [N] index of the own picture.
        pixel: [N, 2] where it stands in the own picture.
        hidden: [N, weight_hidden], the query's part of the weight perceptron's first layer.
    """

    point: jax.Array
    owner: jax.Array
    depth: jax.Array
    color: jax.Array
    time: jax.Array
    picture: jax.Array
    pixel: jax.Array
    hidden: jax.Array


def make_views(
    config: WorldRecConfig,
    pictures: Pictures,
    pyramid: tuple[jax.Array, ...],
    depth: Float[jax.Array, "p h w"],
    sky: Float[jax.Array, "p h w"],
    entry: Float[jax.Array, "p h3 w3"],
    axis: str | None = None,
) -> View:
    """Collect what queries read from each picture, of all devices' pictures.

    Args:
        config: Shape of the model.
        pictures: Without leading axes.
        pyramid: From the backbone, finest first, at stride 2 and up.
        depth: At the pictures' size, metres.
        sky: Probability of sky, at the pictures' size.
        entry: Depth at which rays first enter a box, as a map of any size.
        axis: Mesh axis that the scene's pictures are split over, see `split`.
    """
    p, height, width = pyramid[0].shape[:3]
    levels = [pyramid[0]]
    for level in pyramid[1 : config.levels]:
        shape = (p, height, width, level.shape[-1])
        levels.append(jax.image.resize(level, shape, "bilinear"))
    colors = pictures.images.reshape(p, height, 2, width, 2, 3).mean((2, 4))

    def half(x):
        return x[:, ::2, ::2]

    entry = jax.image.resize(jnp.where(jnp.isinf(entry), 1e6, entry), (p, height, width), "nearest")
    camera_from_owner = invert_transform(pictures.world_from_camera)[:, None] @ owner_frames(
        pictures
    )
    world = jnp.ones((p, 1), bool)
    mine = View(
        maps=jnp.concatenate([*levels, colors], -1),
        nearest=jax.lax.stop_gradient(jnp.stack([half(depth), half(sky), entry], -1)),
        camera_from_owner=camera_from_owner,
        there=jnp.concatenate([world, pictures.box_there], axis=1),
        K=pictures.K,
        time=pictures.times,
        index=picture_numbers(p, axis),
        mask=pictures.mask,
    )
    return gather(mine, axis)


def look(
    asking: Asking, view: View
) -> tuple[Float[jax.Array, "n d"], Float[jax.Array, "n cues"], Bool[jax.Array, "n"]]:
    """What one view shows of every query: features, cues, and whether it counts.

    The features' gradient flows into the maps, not into where they are read.
    """
    rows, columns = view.maps.shape[:2]
    frame = view.camera_from_owner[asking.owner]
    local = jnp.einsum("nij,nj->ni", frame[:, :3, :3], asking.point) + frame[:, :3, 3]
    uv, z = project_local(view.K, local)
    uv, z = jax.lax.stop_gradient((uv, z))
    # Rounding in the projection must not decide which cell of its own picture a query reads.
    own = view.index == asking.picture
    uv = jnp.where(own[:, None], asking.pixel, uv)
    valid = inside_image(uv, z, 2 * rows, 2 * columns) & view.mask & view.there[asking.owner]
    uv = uv / 2.0
    sampled = bilinear(view.maps, uv)
    row = jnp.clip(uv[:, 1].astype(jnp.int32), 0, rows - 1)
    column = jnp.clip(uv[:, 0].astype(jnp.int32), 0, columns - 1)
    seen, sky, entry = jnp.moveaxis(view.nearest[row, column], -1, 0)
    behind_box = (asking.owner == 0) & (z > entry) & ~own
    valid &= ~behind_box
    features, color = sampled[:, :-3], sampled[:, -3:]
    safe = jnp.maximum(z, 1e-3)
    delta = jnp.clip((z - seen) / safe, -1.0, 1.0)
    difference = color - asking.color
    age = view.time - asking.time
    cues = jnp.concatenate(
        [
            jnp.stack(
                [
                    delta,
                    jnp.abs(delta),
                    jnp.tanh(20.0 * delta),
                    sky,
                    jnp.clip(jnp.log(safe / asking.depth), -2.0, 2.0),
                    jnp.clip(age, -2.0, 2.0),
                    (jnp.abs(age) < 1e-3).astype(jnp.float32),
                ],
                -1,
            ),
            difference,
            jnp.linalg.norm(difference + 1e-6, axis=-1, keepdims=True),
            own.astype(jnp.float32)[:, None],
            (asking.owner > 0).astype(jnp.float32)[:, None],
        ],
        -1,
    )
    return features, jnp.where(valid[:, None], cues, 0.0), valid


def bilinear(
    image: Float[jax.Array, "h w c"], uv: Float[jax.Array, "n 2"]
) -> Float[jax.Array, "n c"]:
    """Read a map at cell coordinates (the first centre is (0.5, 0.5)), held at the border."""
    height, width, channels = image.shape
    x = jnp.clip(uv[:, 0] - 0.5, 0.0, width - 1.0)
    y = jnp.clip(uv[:, 1] - 0.5, 0.0, height - 1.0)
    left = jnp.minimum(x.astype(jnp.int32), width - 2)
    top = jnp.minimum(y.astype(jnp.int32), height - 2)
    a, b = (x - left)[:, None], (y - top)[:, None]
    flat = image.reshape(-1, channels)
    index = top * width + left

    def read(offset):
        return flat.at[index + offset].get(mode="promise_in_bounds")

    upper = read(0) * (1 - a) + read(1) * a
    lower = read(width) * (1 - a) + read(width + 1) * a
    return upper * (1 - b) + lower * b


class Step(nn.Module):
    """One view of the running softmax.

    Attributes:
        config: Shape of the model.
        dtype: Type of the perceptron.
    """

    config: WorldRecConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, carry, view: View, asking: Asking):
        """Fold one view into (running maximum, sum of weights, weighted sum)."""
        maximum, total, fused = carry
        features, cues, valid = look(asking, view)
        values = jnp.concatenate([features, cues], -1)
        x = Linear(self.config.weight_hidden, ("conv_in", "mlp"), dtype=self.dtype, name="up")(
            values
        )
        x = nn.gelu(x + asking.hidden)
        # Without a bias, on which a softmax does not depend.
        logit = Linear(1, ("mlp", "out"), use_bias=False, dtype=self.dtype, name="down")(x)
        logit = logit[:, 0]
        logit = jnp.where(valid, logit.astype(jnp.float32), NEVER)
        larger = jnp.maximum(maximum, logit)
        keep = jnp.exp(maximum - larger)
        weight = jnp.where(valid, jnp.exp(logit - larger), 0.0)
        total = total * keep + weight
        fused = fused * keep[:, None] + weight[:, None] * values
        return (larger, total, fused), None


class ViewFusion(nn.Module):
    """Fuse all views' evidence for all queries.

    Attributes:
        config: Shape of the model.
        dtype: Type of the perceptrons.
        axis: Mesh axis that the scene's pictures are split over, see `split`.
    """

    config: WorldRecConfig
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(
        self,
        embedding: Float[jax.Array, "p q d"],
        queries: Queries,
        times: Float[jax.Array, "p"],
        views: View,
    ) -> Float[jax.Array, "p q e"]:
        """Weigh and sum.

        Args:
            embedding: Of each query of this device's pictures.
            queries: From `place_queries`.
            times: Of the pictures, seconds.
            views: Of all pictures, from `make_views`.

        Returns:
            Weighted mean of features and cues, and the share of the largest weight; zeros where no
            view is valid.
        """
        p, q = embedding.shape[:2]

        def flat(x):
            return x.reshape(p * q, *x.shape[2:])

        hidden = Linear(
            self.config.weight_hidden, ("embed", "mlp"), dtype=self.dtype, name="query"
        )(embedding)
        picture = jnp.broadcast_to(picture_numbers(p, self.axis)[:, None], (p, q))
        asking = Asking(
            point=flat(jax.lax.stop_gradient(queries.point)),
            owner=flat(queries.query_owner),
            depth=flat(jax.lax.stop_gradient(queries.query_depth)),
            color=flat(queries.colors.mean(2)),
            time=flat(jnp.broadcast_to(times[:, None], (p, q))),
            picture=flat(picture),
            pixel=flat(queries.pixel),
            hidden=flat(hidden),
        )
        channels = views.maps.shape[-1] - 3 + NUM_CUES
        carry = (
            jnp.full((p * q,), NEVER),
            jnp.zeros((p * q,)),
            jnp.zeros((p * q, channels)),
        )
        scan = nn.scan(
            nn.remat(Step, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast),
        )
        (_, total, fused), _ = scan(self.config, self.dtype, name="step")(carry, views, asking)
        seen = total > 0
        safe = jnp.where(seen, total, 1.0)
        mean = fused / safe[:, None]
        certainty = jnp.where(seen, 1.0 / safe, 0.0)
        return jnp.concatenate([mean, certainty[:, None]], -1).reshape(p, q, -1)
