"""Which frames a memory holds, with a sink that stays and one that follows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.worldgen.cache import empty_cache, write_cache
from jwm_jax.worldgen.conditions import no_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.sampler import advance, begin

CONFIG = WorldGenConfig(
    dim=8, num_layers=2, num_heads=2, ffn_dim=8, freq_dim=8, latent_channels=2, window=3, sink=2
)


def held(config: WorldGenConfig, frames: int, at_once: int = 1) -> list[float]:
    """What each slot holds after frames whose keys are 0, 1, 2, ... everywhere."""
    cache = empty_cache(config, 1, 1)
    for start in range(0, frames, at_once):
        numbers = jnp.arange(start, start + at_once, dtype=jnp.float32)[None, None, :, None, None]
        keys = jnp.broadcast_to(numbers[..., None], (2, 1, at_once, 1, 2, 4))
        cache = write_cache(cache, keys, 10 * keys, config)
    np.testing.assert_allclose(cache.values, 10 * cache.keys, rtol=1e-6)
    assert int(cache.frames) == frames and np.ptp(cache.keys, axis=(0, 1, 3, 4, 5)).max() == 0
    return cache.keys[0, 0, :, 0, 0, 0].tolist()


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_sink_stays_and_the_window_is_a_ring(at_once):
    assert held(CONFIG, 4, at_once) == [0, 1, 2, 3, 0]
    assert held(CONFIG, 8, at_once) == [0, 1, 5, 6, 7]


def test_a_following_sink_takes_a_share_of_each_frame_that_leaves():
    config = replace(CONFIG, sink_ema=0.75)
    assert held(config, 5) == [0, 1, 2, 3, 4]  # nothing has left
    assert held(config, 6) == [0, 1.25, 5, 3, 4]  # 2 left
    assert held(config, 7) == [0, 0.75 * 1.25 + 0.25 * 3, 5, 6, 4]  # then 3
    assert held(replace(config, sink=0), 5) == [3, 4, 2]


def test_noise_on_what_is_remembered_changes_the_memory_and_not_the_chunk():
    first = jax.random.normal(jax.random.key(0), (1, 1, 1, 2, 2, 2))
    given = no_conditions(CONFIG, (1, 1, 1, 2, 2))
    quiet = begin(CONFIG, _params(), first, given)
    results = [
        advance(config, _params(), quiet, first, given, jax.random.key(1), steps=1)
        for config in (CONFIG, replace(CONFIG, context_noise=0.5))
    ]
    (a, before, _), (b, after, _) = results
    assert np.array_equal(a, b)
    slots = np.abs(before.cache.keys - after.cache.keys).max((0, 1, 3, 4, 5))
    assert slots[1] > 1e-3 and slots[0] == slots[2] == 0


@pytest.mark.parametrize("fields", [{"sink_ema": 0.0}, {"sink_ema": 1.5}, {"context_noise": -1.0}])
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match="sink_ema must be above 0 and at most 1"):
        replace(CONFIG, **fields)


def _params():
    import flax.linen as nn

    from jwm_jax.worldgen.transformer import init_params

    return nn.unbox(init_params(CONFIG, jax.random.key(2)))
