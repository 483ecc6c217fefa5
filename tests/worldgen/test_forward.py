"""The one network in its several forms: teacher-forced, cached, bidirectional, many views."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.worldgen.cache import empty_cache, read_cache
from jwm_jax.worldgen.conditions import LatentConditions, no_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.forward import (
    abstract_params,
    init_params,
    predict_clip,
    predict_next,
    predict_teacher_forced,
    remember,
)

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


def sequential(params, clean, noisy, sigma, conditions):
    """Predictions of frames 1..K one at a time through the cache."""
    grid = (HEIGHT // CONFIG.patch, WIDTH // CONFIG.patch)
    cache = empty_cache(CONFIG, clean.shape[0] * clean.shape[1], grid[0] * grid[1])
    network = jax.jit(
        lambda x, s, previous, given, memory: predict_next(
            CONFIG, params, x, s, previous, given, memory
        )
    )
    write = jax.jit(lambda *args: remember(CONFIG, params, *args))
    predictions = []
    for i in range(FRAMES - 1):
        previous = clean[:, :, max(i - 1, 0) : max(i - 1, 0) + 1]
        latent = clean[:, :, i : i + 1]
        given = conditions.frames(slice(i, i + 1))
        cache = write(latent, previous, given, read_cache(cache, CONFIG, grid), cache)
        predictions.append(
            network(
                noisy[:, :, i : i + 1],
                sigma[i],
                latent,
                conditions.frames(slice(i + 1, i + 2)),
                read_cache(cache, CONFIG, grid),
            )
        )
    return jnp.concatenate(predictions, axis=2)


@pytest.mark.parametrize("views", [1, 2])
def test_cached_generation_equals_teacher_forcing_beyond_the_window(params, views):
    keys = jax.random.split(jax.random.key(2), 3)
    latents = random_latents(keys[0], views)
    conditions = random_conditions(keys[1], views)
    clean, noisy = latents[:, :, :-1], random_latents(keys[2], views)[:, :, 1:]
    sigma = jnp.linspace(0.1, 1.0, FRAMES - 1)
    parallel = jax.jit(lambda *args: predict_teacher_forced(CONFIG, params, *args))(
        clean, noisy, jnp.broadcast_to(sigma, (2, FRAMES - 1)), conditions
    )
    one_by_one = sequential(params, clean, noisy, sigma, conditions)
    np.testing.assert_allclose(parallel, one_by_one, atol=1e-5)


def test_a_noisy_frame_sees_clean_frames_before_it_and_no_other_noisy_frame(params):
    keys = jax.random.split(jax.random.key(3), 3)
    latents, conditions = random_latents(keys[0]), random_conditions(keys[1])
    clean, noisy = latents[:, :, :-1], random_latents(keys[2])[:, :, 1:]
    sigma = jnp.full((2, FRAMES - 1), 0.5)
    run = jax.jit(lambda c, n: predict_teacher_forced(CONFIG, params, c, n, sigma, conditions))
    before = run(clean, noisy)
    changed_noise = run(clean, noisy.at[:, :, 2].add(1.0))
    different = np.abs(np.asarray(changed_noise - before)).max((0, 1, 3, 4, 5))
    assert (different > 0).tolist() == [False, False, True, False, False]
    changed_past = run(clean.at[:, :, 3].add(1.0), noisy)
    different = np.abs(np.asarray(changed_past - before)).max((0, 1, 3, 4, 5))
    assert (different > 0).tolist() == [False, False, False, True, True]


def test_the_prior_s_columns_start_at_zero_and_then_leave_an_unprimed_model_unchanged(params):
    start = jax.jit(lambda key: nn.unbox(init_params(CONFIG, key)))(jax.random.key(0))
    assert not start["embed_prior"]["kernel"].any()
    assert not start["layers"]["block_1"]["view_gate"].any()
    keys = jax.random.split(jax.random.key(4), 2)
    noisy, conditions = random_latents(keys[0]), random_conditions(keys[1])
    unprimed = dataclasses.replace(
        conditions,
        prior=jnp.zeros_like(conditions.prior),
        prior_mask=jnp.zeros_like(conditions.prior_mask),
    )
    sigma = jnp.full((2, FRAMES), 0.5)
    run = jax.jit(lambda p, given: predict_clip(CONFIG, p, noisy, sigma, given))

    def correction(p, given):
        base = given.prior * given.prior_mask + noisy[:, :, :1] * (1 - given.prior_mask)
        return run(p, given) - base

    unread = {**params, "embed_prior": start["embed_prior"]}
    difference = correction(unread, conditions) - correction(unread, unprimed)
    np.testing.assert_allclose(difference, 0.0, atol=1e-5)
    difference = correction(params, conditions) - correction(params, unprimed)
    assert jnp.abs(difference).max() > 1e-2


def test_views_meet_only_through_the_cross_view_gate(params):
    keys = jax.random.split(jax.random.key(5), 2)
    noisy, conditions = random_latents(keys[0], 2), random_conditions(keys[1], 2)
    sigma = jnp.full((2, FRAMES), 0.5)
    run = jax.jit(lambda p, x: predict_clip(CONFIG, p, x, sigma, conditions))
    moved = noisy.at[:, 1].add(1.0)
    assert jnp.abs(run(params, moved) - run(params, noisy))[:, 0].max() > 1e-6
    closed = jax.tree.map(jnp.copy, params)
    closed["layers"]["block_1"]["view_gate"] *= 0.0
    np.testing.assert_array_equal(run(closed, moved)[:, 0], run(closed, noisy)[:, 0])


def test_one_view_of_many_equals_a_single_view_when_the_gate_is_closed(params):
    keys = jax.random.split(jax.random.key(6), 2)
    noisy, conditions = random_latents(keys[0], 2), random_conditions(keys[1], 2)
    closed = jax.tree.map(jnp.copy, params)
    closed["layers"]["block_1"]["view_gate"] *= 0.0
    sigma = jnp.full((2, FRAMES), 0.3)
    both = predict_clip(CONFIG, closed, noisy, sigma, conditions)
    single = dataclasses.replace(
        conditions,
        **{
            name: getattr(conditions, name)[:, :1]
            for name in ("layout", "layout_valid", "prior", "prior_mask", "rays")
        },
    )
    alone = predict_clip(CONFIG, closed, noisy[:, :1], sigma, single)
    np.testing.assert_allclose(both[:, :1], alone, atol=1e-5)


def test_parameters_do_not_depend_on_the_pattern_and_all_have_axis_names():
    boxed = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, nn.Partitioned)  # noqa: E731
    boxes = jax.tree.leaves(boxed, is_leaf=is_box)
    assert all(is_box(box) and len(box.names) == box.value.ndim for box in boxes)
    assert jax.tree.structure(abstract_params(CONFIG)) == jax.tree.structure(nn.unbox(boxed))


def test_a_grid_that_does_not_divide_into_patches_is_refused(params):
    latents = jnp.zeros((1, 1, 1, 3, 6, CONFIG.latent_channels))
    conditions = no_conditions(CONFIG, (1, 1, 1, 3, 6))
    with pytest.raises(ValueError, match="3 x 6"):
        predict_clip(CONFIG, params, latents, jnp.zeros((1, 1)), conditions)
