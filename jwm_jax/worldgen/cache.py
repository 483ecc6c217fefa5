"""The memory of a session: unrotated keys and values of past latent frames in a ring of fixed size.

Slots 0..sink-1 keep the first frames for ever; frame f >= sink goes to slot
sink + (f - sink) mod (slots - sink). A session's ring has sink + window slots; with a slot for
every frame the ring is the whole clip, as `masks.FromMemory` wants it in training. Keys are rotated
where they are read, layer by layer (`masks.Cached`). With ``sink_ema`` below 1 the last slot of the
sink follows: of each frame that leaves the ring it takes a share (Reward Forcing).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jwm_jax.scene.pytree import pytree_dataclass
from jwm_jax.worldgen.config import WorldGenConfig


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


def empty_cache(
    config: WorldGenConfig, sequences: int, tokens: int, slots: int | None = None
) -> Cache:
    """A cache before the first frame, in the configuration's compute type.

    Args:
        config: number of layers and heads.
        sequences: B V.
        tokens: tokens of a latent frame.
        slots: latent frames it can hold; the configuration's sink and window if not given.

    Raises:
        ValueError: fewer slots than the sink and one more.
    """
    slots = config.slots if slots is None else slots
    if slots <= config.sink:
        raise ValueError(f"a cache needs more slots than its sink of {config.sink}, got {slots}.")
    shape = (config.num_layers, sequences, slots, tokens, config.num_heads, config.head_dim)
    blank = jnp.zeros(shape, config.compute_dtype())
    return Cache(blank, blank, jnp.zeros((), jnp.int32))


def write_cache(
    cache: Cache,
    keys: Float[jax.Array, "layers n f s heads k"],
    values: Float[jax.Array, "layers n f s heads k"],
    config: WorldGenConfig,
) -> Cache:
    """Adds frames; beyond the sink the oldest frames of the ring make room."""
    slots, sink = cache.keys.shape[2], config.sink
    stored = [cache.keys, cache.values]
    for i in range(keys.shape[2]):
        frame = cache.frames + i
        turn = sink + (frame - sink) % (slots - sink)
        slot = jnp.where(frame < sink, frame, turn)
        for place, new in enumerate((keys, values)):
            if sink and config.sink_ema < 1.0:
                stored[place] = _followed(stored[place], slot, frame >= slots, config)
            stored[place] = jax.lax.dynamic_update_slice_in_dim(
                stored[place], new[:, :, i : i + 1].astype(stored[place].dtype), slot, axis=2
            )
    return Cache(*stored, cache.frames + keys.shape[2])


def _followed(stored: jax.Array, slot: jax.Array, leaves: jax.Array, config: WorldGenConfig):
    """With the last frame of the sink moved towards the one in ``slot``, if that one leaves."""
    leaving = jax.lax.dynamic_slice_in_dim(stored, slot, 1, axis=2)
    share = jnp.where(leaves, 1.0 - config.sink_ema, 0.0).astype(stored.dtype)
    last = slice(config.sink - 1, config.sink)
    return stored.at[:, :, last].add(share * (leaving - stored[:, :, last]))
