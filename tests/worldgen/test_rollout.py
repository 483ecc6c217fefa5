"""A student's rollout, and its replay, which has the sequential values and gradients."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.worldgen.cache import empty_cache
from jwm_jax.worldgen.conditions import no_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.flow import sigma_schedule
from jwm_jax.worldgen.forward import predict_next, remember
from jwm_jax.worldgen.rollout import first_piece, piece, replay, roll
from jwm_jax.worldgen.transformer import init_params

CONFIG = WorldGenConfig(
    dim=16,
    num_layers=2,
    num_heads=2,
    ffn_dim=16,
    freq_dim=8,
    latent_channels=2,
    head_channels=2,
    window=1,
    sink=1,
)
FRAMES, HEIGHT, WIDTH = 5, 2, 4
SIGMAS = jnp.asarray(sigma_schedule(3, 2.5)[:-1])


@pytest.fixture(scope="module")
def given():
    """Random parameters, a first frame and conditions."""
    tree = nn.unbox(jax.jit(partial(init_params, CONFIG))(jax.random.key(0)))
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    empty = no_conditions(CONFIG, (2, 1, FRAMES, HEIGHT, WIDTH))
    conditions = dataclasses.replace(
        empty,
        ego_motion=jax.random.normal(jax.random.key(2), empty.ego_motion.shape),
        ego_valid=jnp.ones(empty.ego_valid.shape),
    )
    first = jax.random.normal(jax.random.key(3), (2, 1, 1, HEIGHT, WIDTH, 2))
    return jax.tree.unflatten(structure, leaves), first, conditions


@pytest.fixture(scope="module")
def rollouts(given):
    """One executable, a rollout for each exit."""
    run = jax.jit(partial(roll, CONFIG))
    found = [run(*given, jax.random.key(4), SIGMAS, jnp.int32(k)) for k in range(len(SIGMAS))]
    assert run._cache_size() == 1
    return found


def one_by_one(params, writer, rolled, conditions):
    """The exits chunk after chunk, over a memory that `writer` has written."""
    clean = rolled.latents
    empty = empty_cache(CONFIG, 2, HEIGHT * WIDTH // 4)
    first, now = clean[:, :, :1], conditions.frames(slice(0, 1))
    cache = remember(CONFIG, writer, first, first, now, empty)

    def step(cache, frame):
        now = conditions.frames(frame[None])
        previous, own = (jnp.take(clean, frame[None] - k, axis=2) for k in (1, 0))
        noisy = jnp.take(rolled.noisy, frame[None] - 1, axis=2)
        x0 = predict_next(CONFIG, params, noisy, rolled.sigma, previous, now, cache).x0
        return remember(CONFIG, writer, own, previous, now, cache), x0[:, :, 0]

    _, exits = jax.lax.scan(step, cache, jnp.arange(1, FRAMES))
    return jnp.moveaxis(exits, 0, 2)


@pytest.fixture(scope="module")
def gradients(given, rollouts):
    """Gradients and exits of the replay and of the sequential form, by what they go through."""
    params, _, conditions = given
    rolled = rollouts[1]
    weights = jax.random.normal(jax.random.key(5), rolled.noisy.shape)

    def both(params, through_memory):
        def parallel(params):
            exits = replay(CONFIG, params, rolled, conditions, through_memory)
            return jnp.sum(weights * exits), exits

        def sequential(params):
            writer = params if through_memory else jax.lax.stop_gradient(params)
            exits = one_by_one(params, writer, rolled, conditions)
            return jnp.sum(weights * exits), exits

        return tuple(jax.grad(f, has_aux=True)(params) for f in (parallel, sequential))

    return {m: jax.jit(partial(both, through_memory=m))(params) for m in (False, True)}


def test_the_exit_decides_how_far_each_chunk_is_denoised(rollouts):
    for k, rolled in enumerate(rollouts):
        assert float(rolled.sigma) == float(SIGMAS[k])
        assert rolled.latents.shape[2] == FRAMES and rolled.noisy.shape[2] == FRAMES - 1
    np.testing.assert_allclose(np.std(rollouts[0].noisy), 1.0, atol=0.2)
    assert np.abs(rollouts[1].noisy - rollouts[0].noisy)[:, :, 0].max() > 0.1


@pytest.mark.parametrize("through_memory", [False, True])
def test_replay_is_the_sequential_rollout_in_value_and_gradient(
    rollouts, gradients, through_memory
):
    """Through the exits alone the memory's writer is a constant; else it is the student."""
    ours, theirs = gradients[through_memory]
    np.testing.assert_allclose(ours[1], rollouts[1].latents[:, :, 1:], atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(theirs[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("start", [1, 2])
def test_a_piece_replays_what_the_long_rollout_gave(given, rollouts, start):
    """With the sink and the window before it, whatever came between them."""
    params, _, conditions = given
    assert first_piece(CONFIG) == 1

    @jax.jit
    def run(start):
        cut, index = piece(CONFIG, rollouts[1], start, 2)
        seen = conditions.frames(index)
        return replay(CONFIG, params, cut, seen, False, given=CONFIG.slots), index

    exits, index = run(jnp.int32(start))
    assert index.tolist() == [0, start, start + 1, start + 2]
    np.testing.assert_allclose(exits, rollouts[1].latents[:, :, start + 1 : start + 3], atol=1e-5)


def test_pieces_begin_after_whole_chunks():
    config = dataclasses.replace(CONFIG, chunk=3, window=4, sink=1)
    assert first_piece(config) == 6 and first_piece(dataclasses.replace(config, window=3)) == 3


def test_the_two_gradients_differ_where_the_memory_is_written(gradients):
    alone, through = (
        gradients[m][0][0]["layers"]["self_attention"]["k"]["kernel"] for m in (False, True)
    )
    assert np.abs(alone - through).max() > 1e-2 * np.abs(through).max()


def test_a_rollout_has_no_gradient(given):
    params, first, conditions = given
    short = conditions.frames(slice(0, 2))

    def loss(params):
        rolled = roll(CONFIG, params, first, short, jax.random.key(4), SIGMAS, jnp.int32(2))
        return jnp.sum(rolled.latents) + jnp.sum(rolled.cache.keys)

    assert all(not np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
