"""Optimiser, data order, prefetch, metrics file and progress."""

import itertools
import json
import math
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.toy import ToyTask

from jwm_jax.errors import UsageError
from jwm_jax.training.metrics import MetricsWriter, RunningMean
from jwm_jax.training.optimizer import (
    OptimizerConfig,
    apply_gradients,
    init_optimizer,
    learning_rate,
    trained_gradients,
    treatments,
    update_ema,
)
from jwm_jax.training.progress import Progress, duration
from jwm_jax.training.sampling import Prefetch, example_indices, step_rng

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=4, final_fraction=0.1)


def test_learning_rate_warms_up_and_falls_to_its_final_share():
    values = [float(learning_rate(CONFIG, step, 20)) for step in range(25)]
    np.testing.assert_allclose(values[:4], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(values[3:]))
    np.testing.assert_allclose(values[20:], 0.01, rtol=1e-5)
    constant = replace(CONFIG, final_fraction=1.0)
    np.testing.assert_allclose(float(learning_rate(constant, 19, 20)), 0.1, rtol=1e-6)


def test_the_update_is_optax_adamw_at_a_constant_rate():
    params = nn.unbox(ToyTask().init(jax.random.key(0)))
    how = treatments(jax.eval_shape(ToyTask().init, jax.random.key(0)))
    assert {name: t.decayed for name, t in how.items()} == {"up": True, "down": True, "bias": False}
    mask = {"up": True, "down": True, "bias": False}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.1, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, mask=mask),
    )
    mine, theirs = params, params
    state, reference = init_optimizer(CONFIG, params, how), tx.init(params)
    for seed in range(3):
        grads = jax.tree.map(lambda p, s=seed: jnp.sin(p * (7 + s)), params)
        mine, state = apply_gradients(CONFIG, grads, state, mine, how, 0.1)
        updates, reference = tx.update(grads, reference, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for name in params:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_without_a_first_moment_the_update_is_that_of_adam_with_b1_0():
    params = nn.unbox(ToyTask().init(jax.random.key(0)))
    config = replace(CONFIG, b1=0.0, clip=0.0, weight_decay=0.0)
    how = treatments(jax.eval_shape(ToyTask().init, jax.random.key(0)))
    adam = optax.adam(0.1, b1=0.0, b2=0.99, eps=1e-8)
    mine, state, theirs, reference = params, init_optimizer(config, params, how), params, None
    reference = adam.init(params)
    for seed in range(3):
        grads = jax.tree.map(lambda p, s=seed: jnp.sin(p * (7 + s)), params)
        mine, state = apply_gradients(config, grads, state, mine, how, 0.1)
        updates, reference = adam.update(grads, reference)
        theirs = optax.apply_updates(theirs, updates)
    for name in params:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)
    assert sum(x.size for x in jax.tree.leaves(state)) < 1.1 * sum(
        x.size for x in jax.tree.leaves(params)
    )


def test_stacked_layers_do_not_turn_biases_into_matrices():
    box = nn.LogicallyPartitioned
    boxed = {
        "bias": box(jnp.zeros((3, 4)), ("layers", "embed")),
        "kernel": box(jnp.zeros((3, 4, 4)), ("layers", "embed", "mlp")),
        "modulation": box(jnp.zeros((3, 6, 4)), ("layers", None, "embed")),
        "table": box(jnp.zeros((9, 4)), (None, "embed")),
    }
    how = treatments(boxed)
    assert {name for name, treatment in how.items() if treatment.decayed} == {"kernel"}


def test_a_frozen_parameter_stays_and_does_not_count_for_clipping():
    params = {"a": jnp.ones((2, 2)), "b": {"c": jnp.ones((2, 2))}}
    how = treatments(params, lambda name: name != "b.c")
    grads = {"a": jnp.full((2, 2), 0.1), "b": {"c": jnp.full((2, 2), 1e6)}}
    state = init_optimizer(CONFIG, params, how)
    grads = trained_gradients(grads, how)
    np.testing.assert_allclose(optax.tree.norm(grads), 0.2, rtol=1e-6)
    new, state = apply_gradients(CONFIG, grads, state, params, how, 0.1)
    assert np.array_equal(new["b"]["c"], params["b"]["c"])
    np.testing.assert_allclose(state[1].mu["a"], 0.01, rtol=1e-5)


def test_the_average_follows_and_can_be_off():
    ema = {"w": jnp.zeros(2)}
    ema = update_ema(CONFIG, ema, {"w": jnp.ones(2)}, 0)
    np.testing.assert_allclose(ema["w"], 0.9, rtol=1e-6)
    late = update_ema(CONFIG, {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, 10**6)
    np.testing.assert_allclose(late["w"], 0.001, rtol=1e-3)
    assert update_ema(CONFIG, None, {"w": jnp.ones(2)}, 0) is None


def test_impossible_settings_are_refused():
    for kwargs in ({"learning_rate": 0.0}, {"ema_decay": 1.0}, {"clip": -1.0}):
        with pytest.raises(UsageError):
            OptimizerConfig(**kwargs)


def test_every_example_comes_once_per_epoch_wherever_the_run_starts():
    batches = [example_indices(3, step, 10, 4) for step in range(5)]
    flat = np.concatenate(batches)
    assert sorted(flat[:10]) == list(range(10)) == sorted(flat[10:20])
    assert list(flat[:10]) != list(flat[10:20])
    np.testing.assert_array_equal(example_indices(3, 2, 10, 4), batches[2])
    assert step_rng(0, 1, 2).random() != step_rng(0, 2, 1).random()


def test_prefetch_keeps_order_and_passes_errors_on():
    def numbers():
        yield from range(5)
        raise KeyError("broken record")

    ahead = Prefetch(numbers())
    assert [next(ahead) for _ in range(5)] == list(range(5))
    for _ in range(2):
        with pytest.raises(KeyError, match="broken record"):
            next(ahead)
    ahead.close()
    assert list(Prefetch(iter(range(3)))) == [0, 1, 2]


def test_metrics_are_cut_back_to_the_step_of_the_resumed_state(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, 0)
    for step in (2, 4, 6):
        writer.write(step, "train", {"loss": math.nan if step == 2 else 1.0})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 8, "ki')
    again = MetricsWriter(path, 4)
    again.write(5, "train", {"loss": 2.0})
    again.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(2, None), (4, 1.0), (5, 2.0)]


def test_running_means_leave_out_what_is_not_finite_and_survive_a_checkpoint():
    means = RunningMean()
    means.add({"loss": 1.0, "x": math.inf})
    means = RunningMean(json.loads(json.dumps(means.state)))
    means.add({"loss": 3.0, "x": 5.0})
    assert means.take() == {"loss": 2.0, "x": 5.0}
    assert means.take() == {}


def test_progress_prints_lines_where_there_is_no_terminal(capsys):
    progress = Progress(0, 4, None)
    for _ in range(3):
        progress.step()
    progress.report({"loss": 0.5})
    line = capsys.readouterr().out
    assert line.startswith("step 3/4") and "steps/s" in line and line.endswith("loss 0.5\n")
    assert [duration(s) for s in (7.0, 75.0, 3700.0)] == ["7s", "1m15s", "1h01m"]
