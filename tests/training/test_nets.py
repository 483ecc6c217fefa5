"""Several networks in one step: phases, clocks, frozen weights, resuming, refusals."""

from dataclasses import dataclass, field
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.toy import ModelConfig, Network, ToyTask

from jwm_jax.checkpoint.model_dir import save_model
from jwm_jax.distributed import MeshConfig, make_mesh, put_batch
from jwm_jax.errors import DataError, UsageError
from jwm_jax.training.config import ExperimentConfig, override
from jwm_jax.training.loop import fit
from jwm_jax.training.nets import Net, Phase
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.training.sampling import stacked
from jwm_jax.training.start import fresh_state, frozen_params, layout
from jwm_jax.training.step import Alternate, Cycle

ONE = MeshConfig(data=1)
FAST = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, b1=0.0, ema_decay=0.9, ema_start=2)
SLOW = OptimizerConfig(learning_rate=3e-3, warmup_steps=1, b1=0.0, ema_decay=0.0)


def apply(params, x):
    return Network().apply({"params": params}, x)


@dataclass(frozen=True, kw_only=True)
class ToyDistillation(ExperimentConfig):
    name: str = "toy_distillation"
    steps: int = 4
    log_every: int = 2
    checkpoint_minutes: float = 0.0
    teacher: str | None = None
    critic_updates: int = 3
    bad: tuple[int, ...] = ()
    mesh: MeshConfig = field(default_factory=lambda: ONE)

    def task(self):
        return ToyDistillationTask(self)


class ToyDistillationTask(ToyTask):
    """A student follows a frozen teacher and flees a critic that follows the student."""

    product = "student"

    def __init__(self, config):
        super().__init__(bad_steps=config.bad)
        object.__setattr__(self, "config", config)

    def nets(self, config):
        source = {"source": config.teacher, "kind": "codec"}
        return {
            "student": Net(self.init, FAST),
            "critic": Net(self.init, SLOW),
            "teacher": Net(self.init, dtype=jnp.bfloat16, **source),
        }

    def phases(self):
        def student(params, others, batch, key):
            wanted = apply(others["teacher"], batch["x"]).astype(jnp.float32)
            error = apply(params, batch["x"]) - wanted
            flight = apply(params, batch["x"]) - apply(others["critic"], batch["x"])
            total = jnp.sum(error**2) - 0.1 * jnp.sum(flight**2)
            return (total, len(batch["x"])), {"error": jnp.mean(error**2)}

        def critic(params, others, batch, key):
            x = batch["x"] + 0.01 * jax.random.normal(key, batch["x"].shape)
            error = apply(params, x) - jax.lax.stop_gradient(apply(others["student"], x))
            return (jnp.sum(error**2), len(x)), {"error": jnp.mean(error**2)}

        return (Phase("student", student), Phase("critic", critic, self.config.critic_updates))


class Alternating(ToyDistillationTask):
    schedule = Alternate()


def no_loss(params, others, batch, key):
    return (0.0, 1.0), {}


def build(config, task, mesh):
    """The jitted step, the state, the frozen networks and the batches of a task on a mesh."""
    place = layout(config, task, mesh)
    step = jax.jit(
        partial(task.schedule, place.plan),
        out_shardings=(place.state_shardings(), place.replicated),
        donate_argnums=0,
    )
    count = task.schedule.batches(place.plan.phases)
    batches = stacked(task.batches(0, slice(0, config.batch_size)), count)
    return step, fresh_state(config, place), frozen_params(config, place), batches


def host(tree):
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(tree))]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(host(a), host(b), strict=True))


def test_a_cycle_moves_every_network_by_its_own_clock_in_one_executable():
    config = ToyDistillation(bad=(4,))  # the first batch of the second step is the student's
    mesh = make_mesh(ONE)
    with jax.set_mesh(mesh):
        step, state, frozen, batches = build(config, config.task(), mesh)
        teacher = host(frozen)
        assert {x.dtype for x in teacher} == {jnp.dtype(jnp.bfloat16)}
        kept = jax.device_get(state.nets)
        for _ in range(3):
            state, metrics = step(state, frozen, put_batch(next(batches), mesh, 8))
            clocks = {n: (int(s.updates), int(s.skipped)) for n, s in state.nets.items()}
            student = state.nets["student"]
            if int(state.step) == 1:
                assert clocks == {"student": (1, 0), "critic": (3, 0)}
                assert same(student.ema, student.params)  # the average starts after two updates
                assert not same(student.params, kept["student"].params)
                kept = jax.device_get(state.nets)
            if int(state.step) == 2:
                assert clocks == {"student": (1, 1), "critic": (6, 0)}
                assert same(student.params, kept["student"].params)
                assert same(student.opt, kept["student"].opt)
        assert clocks == {"student": (2, 0), "critic": (9, 0)}
        assert step._cache_size() == 1
        assert same(frozen, teacher)
    assert {"student/loss", "critic/error", "critic/grad_norm"} <= set(metrics)
    moments = [p for p, _ in jax.tree_util.tree_flatten_with_path(state.nets["critic"].opt)[0]]
    assert not any(".mu" in jax.tree_util.keystr(path) for path in moments)


def test_alternating_steps_do_what_a_cycle_does():
    config, mesh = ToyDistillation(), make_mesh(ONE)
    with jax.set_mesh(mesh):
        cycle, state, frozen, batches = build(config, config.task(), mesh)
        once, _ = cycle(state, frozen, put_batch(next(batches), mesh, 8))
        task = Alternating(config)
        step, state, frozen, batches = build(override(config, {"steps": 16}), task, mesh)
        for turn in range(4):
            state, metrics = step(state, frozen, put_batch(next(batches), mesh, 8))
            assert np.isnan(metrics["student/loss"]) == (turn > 0)
            assert np.isnan(metrics["critic/loss"]) == (turn == 0)
            if turn == 0:
                assert int(state.nets["critic"].updates) == 0
                student = host(state.nets["student"])
            assert all(map(np.array_equal, host(state.nets["student"]), student))
        assert step._cache_size() == 1
    for a, b in zip(host(state.nets["student"]), host(once.nets["student"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str
)
def test_several_networks_train_alike_on_every_mesh(mesh):
    config, results = ToyDistillation(), []
    for sizes in (ONE, mesh):
        placed = make_mesh(sizes)
        with jax.set_mesh(placed):
            step, state, frozen, batches = build(config, config.task(), placed)
            for _ in range(2):
                state, metrics = step(state, frozen, put_batch(next(batches), placed, 8))
            results.append((host(state.nets), {k: float(v) for k, v in metrics.items()}))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)


def test_a_run_of_several_networks_resumes_bitwise_beside_the_same_teacher_only(tmp_path):
    for seed, name in enumerate(("teacher", "other")):
        params = jax.device_get(nn.unbox(ToyTask().init(jax.random.key(seed))))
        save_model(tmp_path / name, "codec", "toy", ModelConfig(), params, "# Toy")
    config = ToyDistillation(teacher=str(tmp_path / "teacher"))
    whole = fit(config, config.task(), tmp_path / "whole", quiet=True)
    stop = override(config, {"max_minutes": 0.0})
    assert fit(stop, stop.task(), tmp_path / "run", quiet=True).step == 1
    (tmp_path / "teacher").rename(tmp_path / "kept")
    (tmp_path / "other").rename(tmp_path / "teacher")
    with pytest.raises(DataError, match="frozen network 'teacher' has other weights"):
        fit(config, config.task(), tmp_path / "run", quiet=True)
    (tmp_path / "teacher").rename(tmp_path / "other")
    (tmp_path / "kept").rename(tmp_path / "teacher")
    rest = fit(config, config.task(), tmp_path / "run", quiet=True)
    assert same(rest.state.nets, whole.state.nets)
    assert (tmp_path / "run" / "model" / "params.safetensors").is_file()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("codec", r"tensor bias .* is missing; tensor down .* is missing; tensor up should have"),
        ("worldgen", "holds a worldgen model, but a codec was asked for"),
    ],
)
def test_a_wrong_source_is_refused_before_anything_is_compiled(
    tmp_path, monkeypatch, kind, message
):
    def compiled(*arguments):
        raise AssertionError("the other networks were begun")

    params = {"up": np.zeros((2, 2), np.float32)}
    teacher = save_model(tmp_path / "teacher", kind, "toy", ModelConfig(), params, "# A teacher")
    monkeypatch.setattr("jwm_jax.training.loop.fresh_state", compiled)
    config = ToyDistillation(teacher=str(teacher))
    with pytest.raises(DataError, match=message):
        fit(config, config.task(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase("teacher", no_loss),), "'teacher', which is not a trained network"),
        ((Phase("student", no_loss, 0), Phase("critic", no_loss)), "0 updates"),
        ((Phase("student", no_loss),), "no phase updates critic"),
    ],
)
def test_phases_that_do_not_fit_are_refused(phases, message):
    config = ToyDistillation()
    task = config.task()
    object.__setattr__(task, "phases", lambda: phases)
    with pytest.raises(UsageError, match=message):
        layout(config, task, make_mesh(ONE))


def test_turns_count_what_each_schedule_does():
    phases = (Phase("g", no_loss), Phase("f", no_loss, 5))
    assert [Cycle().updates(phases, net, 7) for net in "gf"] == [7, 35]
    assert [Alternate().updates(phases, net, 7) for net in "gf"] == [2, 5]
    assert (Cycle().batches(phases), Alternate().batches(phases)) == (6, 1)
