"""Rotary position embedding over (frame, row, column).

The channels of a head form d/2 pairs (channel i with channel i + d/2). Pair j turns by the angle
p_j w_j, where p_j is the token's frame, row or column and w_j falls geometrically from 1 towards
1/10000 within each of the three groups of pairs. The product of a rotated query and a rotated key
then depends only on the difference of their positions, so keys can be stored unrotated and rotated
when read, at positions counted from the start of whatever window they are read in.

The split of the pairs is Wan 2.1's: of c pairs, floor(c / 3) each go to rows and to columns, the
rest to frames.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

BASE = 10000.0


def pair_counts(head_dim: int) -> tuple[int, int, int]:
    """Pairs of channels given to the frame, the row and the column."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def rotation_angles(
    frames: Num[jax.Array, " f"], height: int, width: int, head_dim: int
) -> Float[jax.Array, "f s pairs"]:
    """Angles by which each token's pairs turn, in radians.

    Args:
        frames: position of each latent frame; only differences matter.
        height: rows of tokens.
        width: columns of tokens.
        head_dim: channels of a head, even.

    Returns:
        float32 [frames, height * width, head_dim / 2].
    """
    in_time, in_row, in_column = (
        jnp.asarray(BASE ** -(np.arange(n) / max(n, 1)), jnp.float32) for n in pair_counts(head_dim)
    )
    shape = (frames.shape[0], height, width)
    time = frames.astype(jnp.float32)[:, None] * in_time
    row = jnp.arange(height, dtype=jnp.float32)[:, None] * in_row
    column = jnp.arange(width, dtype=jnp.float32)[:, None] * in_column
    angles = jnp.concatenate(
        [
            jnp.broadcast_to(time[:, None, None], (*shape, in_time.size)),
            jnp.broadcast_to(row[None, :, None], (*shape, in_row.size)),
            jnp.broadcast_to(column[None, None], (*shape, in_column.size)),
        ],
        axis=-1,
    )
    return angles.reshape(frames.shape[0], height * width, head_dim // 2)


def rotate(
    inputs: Float[jax.Array, "*b f s heads d"], angles: Float[jax.Array, "*c f s pairs"]
) -> Float[jax.Array, "*b f s heads d"]:
    """Turns the pairs of queries or keys by `rotation_angles`; computed in float32."""
    cosine, sine = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(inputs.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cosine - second * sine, first * sine + second * cosine], axis=-1
    )
    return turned.astype(inputs.dtype)
