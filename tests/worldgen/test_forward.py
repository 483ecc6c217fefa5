"""The one network in its several forms: teacher-forced, cached, bidirectional, many views."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.worldgen.cache import empty_cache
from jwm_jax.worldgen.conditions import LatentConditions, no_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.forward import (
    abstract_params,
    predict_clip,
    predict_from_memory,
    predict_next,
    predict_teacher_forced,
    remember,
)
from jwm_jax.worldgen.transformer import init_params

CONFIG = WorldGenConfig(
    dim=32,
    num_layers=2,
    num_heads=2,
    ffn_dim=32,
    freq_dim=16,
    latent_channels=4,
    head_channels=4,
    window=2,
    sink=1,
)
FRAMES, HEIGHT, WIDTH = 6, 4, 6


@pytest.fixture(scope="module")
def params():
    """Random parameters everywhere, also where training starts at zero."""
    tree = jax.jit(lambda key: nn.unbox(init_params(CONFIG, key)))(jax.random.key(0))
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def random_conditions(key: jax.Array, views: int = 1) -> LatentConditions:
    shape = (2, views, FRAMES, HEIGHT, WIDTH)
    keys = jax.random.split(key, 6)
    empty = no_conditions(CONFIG, shape)
    return dataclasses.replace(
        empty,
        layout=jax.random.normal(keys[0], empty.layout.shape),
        layout_valid=jnp.ones(empty.layout_valid.shape),
        prior=jax.random.normal(keys[1], empty.prior.shape),
        prior_mask=jax.random.uniform(keys[2], empty.prior_mask.shape),
        ego_motion=jax.random.normal(keys[3], empty.ego_motion.shape),
        ego_valid=jnp.ones(empty.ego_valid.shape),
        style=jnp.asarray([[1, 2], [0, 1]]),
        rays=jax.random.normal(keys[4], empty.rays.shape),
    )


def random_latents(key: jax.Array, views: int = 1) -> jax.Array:
    shape = (2, views, FRAMES, HEIGHT, WIDTH, CONFIG.latent_channels)
    return jax.random.normal(key, shape)


def sequential(config, params, clean, noisy, sigma, conditions, given=1):
    """Predictions of the noisy frames, chunk by chunk through the cache."""
    tokens = HEIGHT // config.patch * (WIDTH // config.patch)
    cache = empty_cache(config, clean.shape[0] * clean.shape[1], tokens)
    predict = jax.jit(lambda *args: predict_next(config, params, *args).x0)
    write = jax.jit(lambda *args: remember(config, params, *args))
    predictions, start = [], 0
    while start < noisy.shape[2] + given:
        stop = given if start < given else start + config.chunk
        previous = (
            clean[:, :, max(start - 1, 0)][:, :, None] if start or given else 0 * clean[:, :, :1]
        )
        given_now = conditions.frames(slice(start, stop))
        if start >= given:
            own = slice(start - given, stop - given)
            predictions.append(
                predict(noisy[:, :, own], sigma[start - given], previous, given_now, cache)
            )
        if stop <= clean.shape[2]:
            cache = write(clean[:, :, start:stop], previous, given_now, cache)
        start = stop
    return jnp.concatenate(predictions, axis=2)


@pytest.mark.parametrize("views", [1, 2])
def test_cached_generation_equals_teacher_forcing_beyond_the_window(params, views):
    keys = jax.random.split(jax.random.key(2), 3)
    latents = random_latents(keys[0], views)
    conditions = random_conditions(keys[1], views)
    clean, noisy = latents[:, :, :-1], random_latents(keys[2], views)[:, :, 1:]
    sigma = jnp.linspace(0.1, 1.0, FRAMES - 1)
    parallel = jax.jit(lambda *args: predict_teacher_forced(CONFIG, params, *args).x0)(
        clean, noisy, jnp.broadcast_to(sigma, (2, FRAMES - 1)), conditions
    )
    one_by_one = sequential(CONFIG, params, clean, noisy, sigma, conditions)
    np.testing.assert_allclose(parallel, one_by_one, atol=1e-5)


@pytest.mark.parametrize("given", [0, 1])
def test_chunks_of_three_through_the_cache_and_beside_the_memory(params, given):
    """One answer from two copies at once, from the clip's memory, and chunk by chunk."""
    config = dataclasses.replace(CONFIG, chunk=3, window=3, rebase=False)
    keys = jax.random.split(jax.random.key(3), 3)
    count = FRAMES - given if given == 0 else 3
    clean = random_latents(keys[0])[:, :, :count]
    noisy = random_latents(keys[2])[:, :, given : given + count]
    conditions = random_conditions(keys[1])
    sigma = jnp.repeat(jnp.linspace(0.2, 0.9, count // 3), 3)
    levels = jnp.broadcast_to(sigma, (2, count))
    run = jax.jit(lambda *args: predict_teacher_forced(config, params, *args, given=given).x0)
    parallel = run(clean, noisy, levels, conditions.frames(slice(0, given + count)))
    one_by_one = sequential(config, params, clean, noisy, sigma, conditions, given)
    np.testing.assert_allclose(parallel, one_by_one, atol=1e-5)

    def beside_memory(clean, noisy, levels, conditions):
        cache = empty_cache(config, 2, 6, slots=FRAMES)
        if given:
            start = conditions.frames(slice(0, 1))
            cache = remember(config, params, clean[:, :, :1], clean[:, :, :1], start, cache)
        else:
            first, nothing = conditions.frames(slice(0, 3)), 0 * clean[:, :, :1]
            cache = remember(config, params, clean[:, :, :3], nothing, first, cache)
        after = conditions.frames(slice(given, given + count))
        return predict_from_memory(
            config, params, clean, noisy, levels, after, cache, given=given
        ).x0

    remembered = jax.jit(beside_memory)(clean, noisy, levels, conditions)
    np.testing.assert_allclose(remembered, parallel, atol=1e-5)


def test_a_noisy_frame_sees_clean_frames_before_it_and_no_other_noisy_frame(params):
    keys = jax.random.split(jax.random.key(3), 3)
    latents, conditions = random_latents(keys[0]), random_conditions(keys[1])
    clean, noisy = latents[:, :, :-1], random_latents(keys[2])[:, :, 1:]
    sigma = jnp.full((2, FRAMES - 1), 0.5)
    run = jax.jit(
        lambda c, n, s: predict_teacher_forced(CONFIG, params, c, n, sigma, conditions, s).x0
    )
    told = jnp.zeros_like(sigma)
    before = run(clean, noisy, told)
    changed_noise = run(clean, noisy.at[:, :, 2].add(1.0), told)
    different = np.abs(np.asarray(changed_noise - before)).max((0, 1, 3, 4, 5))
    assert (different > 0).tolist() == [False, False, True, False, False]
    for changed in (
        run(clean.at[:, :, 3].add(1.0), noisy, told),
        run(clean, noisy, told.at[:, 3].set(0.1)),
    ):
        different = np.abs(np.asarray(changed - before)).max((0, 1, 3, 4, 5))
        assert (different > 0).tolist() == [False, False, False, True, True]


def test_conditions_start_at_zero_and_then_leave_a_model_that_ignores_them_unchanged(params):
    start = jax.jit(lambda key: nn.unbox(init_params(CONFIG, key)))(jax.random.key(0))
    for name in ("prior", "layout", "rays", "previous"):
        assert not start["embeddings"][f"embed_{name}"]["kernel"].any()
    assert not start["embeddings"]["motion_to_time"]["kernel"].any()
    assert not start["views"]["gate"].any()
    keys = jax.random.split(jax.random.key(4), 2)
    noisy, conditions = random_latents(keys[0]), random_conditions(keys[1])
    unprimed = dataclasses.replace(
        conditions,
        prior=jnp.zeros_like(conditions.prior),
        prior_mask=jnp.zeros_like(conditions.prior_mask),
    )
    sigma = jnp.full((2, FRAMES), 0.5)
    run = jax.jit(lambda p, given: predict_clip(CONFIG, p, noisy, sigma, given).x0)

    def correction(p, given):
        base = given.prior * given.prior_mask + noisy[:, :, :1] * (1 - given.prior_mask)
        return run(p, given) - base

    unread = start["embeddings"]["embed_prior"]
    unread = {**params, "embeddings": {**params["embeddings"], "embed_prior": unread}}
    difference = correction(unread, conditions) - correction(unread, unprimed)
    np.testing.assert_allclose(difference, 0.0, atol=1e-5)
    difference = correction(params, conditions) - correction(params, unprimed)
    assert jnp.abs(difference).max() > 1e-2


def test_views_meet_only_through_the_cross_view_gate(params):
    keys = jax.random.split(jax.random.key(5), 2)
    noisy, conditions = random_latents(keys[0], 2), random_conditions(keys[1], 2)
    sigma = jnp.full((2, FRAMES), 0.5)
    run = jax.jit(lambda p, x: predict_clip(CONFIG, p, x, sigma, conditions).x0)
    moved = noisy.at[:, 1].add(1.0)
    assert jnp.abs(run(params, moved) - run(params, noisy))[:, 0].max() > 1e-6
    closed = jax.tree.map(jnp.copy, params)
    closed["views"]["gate"] *= 0.0
    np.testing.assert_array_equal(run(closed, moved)[:, 0], run(closed, noisy)[:, 0])


def test_one_view_of_many_equals_a_single_view_when_the_gate_is_closed(params):
    keys = jax.random.split(jax.random.key(6), 2)
    noisy, conditions = random_latents(keys[0], 2), random_conditions(keys[1], 2)
    closed = jax.tree.map(jnp.copy, params)
    closed["views"]["gate"] *= 0.0
    sigma = jnp.full((2, FRAMES), 0.3)
    run = jax.jit(lambda *args: predict_clip(CONFIG, *args).x0)
    both = run(closed, noisy, sigma, conditions)
    single = dataclasses.replace(
        conditions,
        **{
            name: getattr(conditions, name)[:, :1]
            for name in ("layout", "layout_valid", "prior", "prior_mask", "rays")
        },
    )
    alone = run(closed, noisy[:, :1], sigma, single)
    np.testing.assert_allclose(both[:, :1], alone, atol=1e-5)


def test_all_parameters_have_axis_names_and_layers_do_not_know_of_views():
    boxed = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, nn.Partitioned)  # noqa: E731
    boxes = jax.tree.leaves(boxed, is_leaf=is_box)
    assert all(is_box(box) and len(box.names) == box.value.ndim for box in boxes)
    own = abstract_params(CONFIG)
    assert jax.tree.structure(own) == jax.tree.structure(nn.unbox(boxed))
    none = abstract_params(dataclasses.replace(CONFIG, cross_view_every=0))
    assert own.pop("views") and own == none


def test_a_grid_that_does_not_divide_into_patches_is_refused(params):
    latents = jnp.zeros((1, 1, 1, 3, 6, CONFIG.latent_channels))
    conditions = no_conditions(CONFIG, (1, 1, 1, 3, 6))
    with pytest.raises(ValueError, match="3 x 6"):
        predict_clip(CONFIG, params, latents, jnp.zeros((1, 1)), conditions)
