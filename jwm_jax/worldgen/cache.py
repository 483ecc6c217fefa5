"""The memory of a session: unrotated keys and values of past latent frames in a ring of fixed size.

Slots 0..sink-1 keep the first frames for ever; frame f >= sink goes to slot
sink + (f - sink) mod window. Reading rotates the keys at positions counted within what is visible:
with n frames written, the frame about to be generated is at p = min(n, sink + window), a frame f of
the ring at p - (n - f), a frame of the sink at its own index. Positions therefore never exceed
those seen in training, however long the session.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jwm_jax.nn.rotary import rotate, rotation_angles
from jwm_jax.scene.pytree import pytree_dataclass
from jwm_jax.worldgen.config import WorldGenConfig

Memory = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@pytree_dataclass
class Cache:
    """Keys and values of past frames.

    Attributes:
        keys: unrotated, [layers, B V, slots, tokens, heads, k].
        values: as the keys.
        frames: latent frames written so far.
    """

    keys: Float[jax.Array, "layers n slots s heads k"]
    values: Float[jax.Array, "layers n slots s heads k"]
    frames: Int[jax.Array, ""]


def empty_cache(config: WorldGenConfig, sequences: int, tokens: int, dtype=jnp.float32) -> Cache:
    """A cache before the first frame.

    Args:
        config: number of layers, heads and slots.
        sequences: B V.
        tokens: tokens of a latent frame.
        dtype: type of keys and values.
    """
    shape = (
        config.num_layers,
        sequences,
        config.slots,
        tokens,
        config.num_heads,
        config.head_dim,
    )
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def read_cache(cache: Cache, config: WorldGenConfig, grid: tuple[int, int]) -> Memory:
    """Rotated keys, values, which slots are visible, and the position of the frame to come."""
    written = cache.frames
    slot = jnp.arange(config.slots)
    rounds = jnp.maximum(written - 1 - slot, 0) // config.window
    frame = jnp.where(slot < config.sink, slot, slot + rounds * config.window)
    visible = frame < written
    position = jnp.minimum(written, config.slots)
    where = jnp.where(slot < config.sink, slot, position - (written - frame))
    angles = rotation_angles(where, *grid, config.head_dim)
    return rotate(cache.keys, angles), cache.values, visible, position


def write_cache(
    cache: Cache,
    keys: Float[jax.Array, "layers n 1 s heads k"],
    values: Float[jax.Array, "layers n 1 s heads k"],
    config: WorldGenConfig,
) -> Cache:
    """Adds a frame; beyond the sink the oldest frame of the ring makes room."""
    frame = cache.frames
    ring = config.sink + (frame - config.sink) % config.window
    slot = jnp.where(frame < config.sink, frame, ring)
    written = (
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2)
        for old, new in ((cache.keys, keys), (cache.values, values))
    )
    return Cache(*written, frame + 1)
