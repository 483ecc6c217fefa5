"""Distillation: what the objectives do on a toy, and what one step of four networks promises."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jwm_jax.distributed import MeshConfig, make_mesh, put_batch
from jwm_jax.errors import DataError, UsageError
from jwm_jax.paradigms import ode
from jwm_jax.paradigms.consistency import ConsistencyExperiment
from jwm_jax.paradigms.distill import (
    DistillExperiment,
    MatchingConfig,
    WeightSchedule,
    matching_loss,
    score_difference,
)
from jwm_jax.paradigms.latents import LatentSet, LatentSource
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.training.sampling import stacked
from jwm_jax.training.start import fresh_state, frozen_params, layout
from jwm_jax.worldgen import CodecConfig, VideoCodec, WorldGen, WorldGenConfig
from jwm_jax.worldgen.codec_network import CodecNetwork
from jwm_jax.worldgen.conditions import no_conditions
from jwm_jax.worldgen.transformer import init_params

# A world of two latent numbers after a given one: (1, 2) or (-1, -2), equally likely.
MODES = jnp.asarray([[1.0, 2.0], [-1.0, -2.0]])


def together(noisy, sigma):
    """Clean numbers of a bidirectional teacher: it weighs the modes by both noisy numbers."""
    log = -jnp.sum(jnp.square(noisy[:, None] - (1 - sigma) * MODES), -1) / (2 * sigma**2)
    return jax.nn.softmax(log) @ MODES


def in_turn(noisy, sigma, clean):
    """Clean numbers of a causal teacher: the first by itself, the second from the true first."""
    log = -jnp.square(noisy[:, :1] - (1 - sigma) * MODES[:, 0]) / (2 * sigma**2)
    return jnp.stack([jax.nn.softmax(log) @ MODES[:, 0], 2.0 * clean[:, 1]], axis=-1)


def numbers(latents):
    return latents[:, 0, :, 0, 0, 0]


def as_latents(values):
    return values[:, None, :, None, None, None]


def student_of(params, noisy, clean, sigma):
    """A causal network: each number from its own noise and the clean number before it."""
    seen = jnp.stack([noisy, clean, sigma], axis=-1)
    hidden = jnp.tanh(jnp.einsum("bki,kio->bko", seen, params["up"]) + params["bias"])
    return jnp.einsum("bko,ko->bk", hidden, params["down"])


@pytest.mark.parametrize(("teacher", "decided"), [("causal", True), ("bidirectional", False)])
def test_regression_needs_a_causal_teacher(monkeypatch, teacher, decided):
    """`ode.teacher_path` and `ode.ode_loss` with known teachers in the network's place.

    The causal teacher's first number follows from its own noise, and the student finds the modes;
    the bidirectional one's follows mostly from the second noise, which a causal student does not
    see: regression gives the mean over it.
    """

    def say(config, params, clean, noisy, sigma, conditions, cfg_scale):
        values = numbers(noisy)
        known = together(values, sigma[0, 0])
        if teacher == "causal":
            known = in_turn(values, sigma[0, 0], numbers(clean))
        return as_latents(known)

    def student(config, params, clean, noisy, sigma, conditions, text):
        said = student_of(params, numbers(noisy), numbers(clean), sigma)
        return SimpleNamespace(x0=as_latents(said))

    monkeypatch.setattr(ode, "guided_teacher", say)
    monkeypatch.setattr(ode, "predict_teacher_forced", student)
    monkeypatch.setattr(ode, "empty_text", lambda *_: None)
    config = WorldGenConfig(sampling_shift=1.0)
    random = np.random.default_rng(0)
    truth = np.asarray(MODES)[random.integers(2, size=2048)]
    clip = as_latents(jnp.asarray(np.pad(truth, ((0, 0), (1, 0))), jnp.float32))
    nothing = no_conditions(config, clip.shape[:-1])
    path = partial(ode.teacher_path, config, grid=32, keep=1, cfg_scale=1.0)
    states, ends = jax.jit(path)(None, clip, nothing, jax.random.key(0))
    assert states.shape == (2048, 1, 1, 2, 1, 1, 1)
    np.testing.assert_allclose(np.abs(numbers(ends)), [[1.0, 2.0]] * 2048, atol=0.05)

    pair = ode.Pair(states[:, 0], jnp.ones(2048), ends)
    keys = jax.random.split(jax.random.key(1), 3)
    params = {
        "up": jax.random.normal(keys[0], (2, 3, 32)),
        "bias": jax.random.normal(keys[1], (2, 32)),
        "down": 0.1 * jax.random.normal(keys[2], (2, 32)),
    }
    optimizer = optax.adam(3e-2)

    def loss(params):
        return jnp.mean(ode.ode_loss(config, params, clip, nothing, pair))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=300)[0][0]

    said = student_of(
        train(params), numbers(pair.noisy), numbers(clip[:, :, :-1]), jnp.ones((2048, 2))
    )
    first = float(jnp.mean(jnp.abs(said[:, 0])))
    assert first > 0.85 if decided else first < 0.6
    np.testing.assert_allclose(
        jnp.mean(said[:, 0] * numbers(ends)[:, 0]), 0.9 if decided else 0.3, atol=0.2
    )


def test_the_gradient_of_matching_is_the_difference_of_scores():
    clip, difference = jax.random.normal(jax.random.key(0), (2, 2, 1, 3, 2, 2, 4))
    gradient = jax.grad(lambda x: jnp.sum(matching_loss(x, difference)))(clip)
    np.testing.assert_allclose(gradient, difference / clip[0].size, rtol=1e-5)


MODEL = WorldGenConfig(
    height=16,
    dim=16,
    num_layers=2,
    num_heads=2,
    ffn_dim=16,
    freq_dim=8,
    latent_channels=2,
    head_channels=2,
    window=2,
    sink=1,
    codec="codec",
)
FRAMES, HEIGHT, WIDTH = 4, 2, 4
FAST = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, b1=0.0, weight_decay=0.0, ema_decay=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of three stages, and a codec."""
    root = tmp_path_factory.mktemp("distillation")
    codec = CodecConfig(latent_channels=2, half_width=4, quarter_width=4, eighth_width=4)
    blank = jnp.zeros((1, 4, 16, 16, 3))
    weights = nn.unbox(CodecNetwork(codec).init(jax.random.key(0), blank))["params"]
    VideoCodec(codec, weights).save_pretrained(root / "codec", card="For a test.")
    config = replace(MODEL, codec=str(root / "codec"))
    for seed, stage in enumerate(("bidirectional", "causal", "few_step")):
        tree = nn.unbox(jax.jit(partial(init_params, config))(jax.random.key(seed)))
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(10 + seed), len(leaves))
        leaves = [
            x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
        ]
        model = WorldGen(config, jax.tree.unflatten(structure, leaves), VideoCodec(codec, weights))
        model.save_pretrained(root / stage, card="For a test.", stage=stage, with_codec=False)
    return root


def latent_set():
    """Eight random clips of one view."""
    random = np.random.default_rng(0)

    def noise(*shape):
        return random.normal(size=shape).astype(np.float16)

    size = (8, 1, FRAMES, HEIGHT, WIDTH)
    return LatentSet(
        latents=noise(*size, 2),
        stills=noise(8, 1, 1, HEIGHT, WIDTH, 2),
        layout=noise(*size, 2),
        layout_stills=noise(8, 1, 1, HEIGHT, WIDTH, 2),
        layout_valid=np.ones(8, np.float32),
        prior=np.zeros((*size, 2), np.float16),
        prior_mask=np.zeros((*size, 1), np.float16),
        ego_motion=random.normal(size=(8, FRAMES, 4, 4)).astype(np.float32),
        ego_valid=np.ones(8, np.float32),
        style=np.ones((8, 2), np.int32),
        rays=noise(8, 1, HEIGHT, WIDTH, 6).astype(np.float32),
        held_out=np.arange(8) >= 6,
        real=np.arange(8) % 4 == 3,
    )


def experiment(folder, kind=DistillExperiment, **changes):
    fields = {
        "name": "toy",
        "steps": 8,
        "batch_size": 2,
        "model": replace(MODEL, codec=str(folder / "codec")),
        "source": LatentSource(frames=13, window=FRAMES, height=16, width=32),
        "latents": str(folder / "latents"),
        "optimizer": FAST,
        "mesh": MeshConfig(data=1),
        "init_from": str(folder / "causal"),
        "teacher": str(folder / "causal"),
        "rollout_steps": 2,
        "grid": 8,
    }
    if kind is DistillExperiment:
        fields |= {"real": str(folder / "bidirectional"), "critic_optimizer": FAST}
        fields |= {"critic_updates": 2, "pairs": 3}
        fields["weights"] = WeightSchedule(
            cd=((0, 0.0), (1, 1.0)),
            ode=((1, 0.0), (2, 1.0)),
            dmd=((2, 0.0), (3, 1.0)),
            x0=((0, 0.0),),
        )
    return kind(**(fields | changes))


def prepare(config):
    """Task, layout, state and jitted step of an experiment on in-memory latents."""
    task = config.task()
    task.data = latent_set()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        place = layout(config, task, mesh)
        state, frozen = fresh_state(config, place), frozen_params(config, place)
        out = (place.state_shardings(), place.replicated)
        step = jax.jit(partial(task.schedule, place.plan), out_shardings=out, donate_argnums=0)
        batches = stacked(task.batches(0, slice(None)), task.schedule.batches(place.plan.phases))
    return task, mesh, state, frozen, step, batches


def host(tree):
    return jax.tree.map(np.array, tree)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_one_executable_runs_every_term_and_leaves_alone_what_is_not_trained(folder):
    """Step 0 has no weight (the critic warms up); cd, ode and dmd come in one by one."""
    config = experiment(folder)
    _, mesh, state, frozen, step, batches = prepare(config)
    before_frozen = host(frozen)
    with jax.set_mesh(mesh):
        for number in range(4):
            before = host(state.nets)
            state, metrics = step(state, frozen, put_batch(next(batches), mesh, 2))
            metrics = {name: float(value) for name, value in metrics.items()}
            assert same(state.nets["model"].params, before["model"].params) == (number == 0)
            assert not same(state.nets["critic"].params, before["critic"].params)
            on = {name for name in ("cd", "ode", "dmd", "x0") if metrics[f"model/{name}"] != 0}
            assert on == [set(), {"cd"}, {"cd", "ode"}, {"cd", "ode", "dmd"}][number]
    assert step._cache_size() == 1
    assert same(frozen, before_frozen) and set(frozen) == {"real", "teacher"}
    assert int(state.nets["critic"].updates) == 8 and int(state.nets["model"].updates) == 4
    assert metrics["model/g_rms"] > 0 and np.isfinite(list(metrics.values())).all()


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_eight_devices_do_what_one_does(folder, axis):
    """Losses and gradient norms of both networks, with every term and a critic of its own.

    Next to nothing moves in the step: Adam's first update is a sign, which rounding turns where a
    gradient is next to nothing, and the critic would be asked about another student.
    """
    found = []
    weights = WeightSchedule(cd=((0, 1.0),), ode=((0, 0.5),), dmd=((0, 1.0),), x0=((0, 0.1),))
    still = replace(FAST, learning_rate=1e-12)
    fields = {"optimizer": still, "critic_optimizer": still, "weights": weights, "batch_size": 8}
    for mesh in (MeshConfig(data=1), MeshConfig(**{"data": 1, axis: 8})):
        config = experiment(folder, mesh=mesh, **fields)
        _, mesh, state, frozen, step, batches = prepare(config)
        critic = state.nets["critic"]
        moved = jax.tree.map(lambda x: x + 0.02, critic.params)
        state = replace(state, nets={**state.nets, "critic": replace(critic, params=moved)})
        with jax.set_mesh(mesh):
            _, metrics = step(state, frozen, put_batch(next(batches), mesh, 8))
        found.append({name: float(value) for name, value in metrics.items()})
    names = [f"model/{n}" for n in ("loss", "grad_norm", "cd", "ode", "dmd", "x0", "g_rms")]
    for name in (*names, "critic/loss", "critic/grad_norm"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_pieces_of_longer_rollouts_are_judged(folder):
    weights = WeightSchedule(dmd=((0, 1.0),))
    config = experiment(folder, judged=1, pairs=0, teacher=None, weights=weights)
    _, mesh, state, frozen, step, batches = prepare(config)
    before = host(state.nets)
    with jax.set_mesh(mesh):
        for _ in range(2):  # in the first step the critic is the real score
            state, metrics = step(state, frozen, put_batch(next(batches), mesh, 2))
    assert not same(state.nets["model"].params, before["model"].params)
    assert np.isfinite([float(x) for x in metrics.values()]).all()
    assert step._cache_size() == 1


@pytest.mark.slow
def test_alternating_moves_one_network_a_step(folder):
    config = experiment(folder, alternate=True, pairs=0, teacher=None, weights=WeightSchedule())
    _, mesh, state, frozen, step, batches = prepare(config)
    with jax.set_mesh(mesh):
        for number in range(4):
            before = host(state.nets)
            state, _ = step(state, frozen, put_batch(next(batches), mesh, 2))
            moved = {n for n in before if not same(state.nets[n].params, before[n].params)}
            assert moved <= {["model", "critic", "critic", "model"][number]}
    assert moved == {"model"}  # in the first step the critic was the real score
    assert step._cache_size() == 1


def test_rollouts_are_judged_by_statistics_borders_and_pictures(folder):
    """The truth has no gap; what is too strong and jumps at borders has."""
    task = experiment(folder).task()
    truth = np.random.default_rng(0).normal(size=(3, 1, FRAMES, HEIGHT, WIDTH, 2))
    truth = truth.astype(np.float32)
    same = task.judge(truth, truth)
    assert same["statistics_gap"] == 0 and same["border"] == same["picture_energy"] == 1
    other = task.judge(2 * truth, truth)
    assert other["statistics_gap"] == pytest.approx((np.log(2) + 2 * np.log(4)) / 3, rel=1e-3)
    assert other["picture_energy"] > 1.2
    assert same["rollouts"].shape == (4 * 16, 3 * 32, 3)  # truth and student of two clips


def test_equal_scores_leave_the_student_alone(folder):
    """And a guided real score does not."""
    params = nn.unbox(init_params(MODEL, jax.random.key(0)))
    clip = jax.random.normal(jax.random.key(1), (2, 1, FRAMES, HEIGHT, WIDTH, 2))
    conditions = no_conditions(MODEL, clip.shape[:-1])
    difference = jax.jit(partial(score_difference, MODEL, MatchingConfig()))
    g, metrics = difference(params, params, clip, conditions, jax.random.key(2))
    np.testing.assert_allclose(g, 0.0, atol=1e-5)
    assert float(metrics["score_gap"]) < 1e-5
    other = jax.tree.map(lambda x: x + 0.1, params)
    g, _ = difference(other, params, clip, conditions, jax.random.key(2))
    assert np.abs(g[:, :, 1:]).mean() > 0.1 and not np.any(g[:, :, 0])


def test_consistency_updates_the_student_and_exports_a_few_step_model(folder, tmp_path):
    config = experiment(folder, ConsistencyExperiment)
    task, mesh, state, frozen, step, batches = prepare(config)
    with jax.set_mesh(mesh):
        losses = []
        for _ in range(8):
            state, metrics = step(state, frozen, put_batch(next(batches), mesh, 2))
            losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and step._cache_size() == 1
    task.save(host(state.nets["model"].params), tmp_path / "model")
    student = WorldGen.from_pretrained(tmp_path / "model")
    assert (student.config.sampling_steps, student.config.sampler) == (2, "renoise")


@pytest.mark.parametrize(
    "kind", [ConsistencyExperiment, pytest.param(DistillExperiment, marks=pytest.mark.slow)]
)
def test_conditions_are_hidden_at_their_rates(folder, kind):
    """Of what is always hidden nothing reaches a loss or its metrics; else something does."""
    only_matching = {"pairs": 0, "weights": WeightSchedule(cd=(), dmd=((0, 1.0),))}
    fields = only_matching if kind is DistillExperiment else {}
    names = ("layout", "prior", "ego_motion", "style", "rays")
    for rate in (0.0, 1.0):
        config = experiment(folder, kind, dropout=dict.fromkeys(names, rate), **fields)
        task, _, state, frozen, _, batches = prepare(config)
        batch = jax.tree.map(lambda x: x[0], next(batches))
        latents, conditions, *rest = batch
        others = {name: net.params for name, net in state.nets.items()} | frozen
        changed = jax.tree.map(lambda x: 2 * x, conditions)
        for phase in task.phases():
            loss = jax.jit(phase.loss)
            a, b = (
                loss(others[phase.net], others, (latents, c, *rest), jax.random.key(0))
                for c in (conditions, changed)
            )
            assert same(a, b) == (rate == 1.0), (phase.net, a, b)


def test_a_student_learns_to_be_told_the_strength_of_guidance(folder, tmp_path):
    """It starts from a model that is not told, and so do teacher and real score stay."""
    model = replace(MODEL, codec=str(folder / "codec"), guidance_input=True)
    fields = {"model": model, "cfg_range": (0.0, 3.0)}
    config = experiment(folder, ConsistencyExperiment, **fields)
    task, mesh, state, frozen, step, batches = prepare(config)
    told = state.nets["model"].params["embeddings"]["guidance_to_time"]["kernel"]
    assert not np.any(told)  # starts at zero: the teacher's own behaviour
    assert "guidance_to_time" not in frozen["teacher"]["embeddings"]
    with jax.set_mesh(mesh):
        state, _ = step(state, frozen, put_batch(next(batches), mesh, 2))
    told = state.nets["model"].params["embeddings"]["guidance_to_time"]["kernel"]
    assert np.abs(told).max() > 1e-3
    task.save(host(state.nets["model"].params), tmp_path / "model")
    student = WorldGen.from_pretrained(tmp_path / "model")
    session = student.start(np.zeros((16, 32, 3), np.uint8))
    (a, _), (b, _) = (student.step(session, cfg_scale=scale) for scale in (1.0, 3.0))
    assert np.abs(a - b).max() > 1e-5
    with pytest.raises(ValueError, match="needs no second memory"):
        student.start(np.zeros((16, 32, 3), np.uint8), guided=True)

    fields |= {"pairs": 0, "weights": WeightSchedule()}
    _, _, state, frozen, _, _ = prepare(experiment(folder, **fields))
    assert all("guidance_to_time" in state.nets[n].params["embeddings"] for n in state.nets)
    assert all("guidance_to_time" not in frozen[n]["embeddings"] for n in frozen)


def test_strengths_of_guidance_that_do_not_fit_are_refused(folder):
    model = replace(MODEL, codec=str(folder / "codec"), guidance_input=True)
    with pytest.raises(UsageError, match="set both or neither"):
        experiment(folder, ConsistencyExperiment, cfg_range=(1.0, 3.0))
    with pytest.raises(UsageError, match="set both or neither"):
        experiment(folder, model=model)
    with pytest.raises(UsageError, match="must rise from 0"):
        experiment(folder, ConsistencyExperiment, model=model, cfg_range=(3.0, 1.0))
    with pytest.raises(UsageError, match="one strength of guidance"):
        experiment(folder, model=model, cfg_range=(1.0, 3.0))


def test_what_makes_no_sense_is_refused(folder):
    with pytest.raises(UsageError, match="critic_updates 0 must be at least 1"):
        experiment(folder, critic_updates=0)
    with pytest.raises(UsageError, match="of windows of 4, at most 1"):
        experiment(folder, judged=2)
    with pytest.raises(UsageError, match="judged replays a piece"):
        experiment(folder, judged=1, matching=MatchingConfig(through_memory=True))
    with pytest.raises(UsageError, match="need a causal teacher"):
        experiment(folder, teacher=None)
    with pytest.raises(UsageError, match=r"weights\.ode needs paths"):
        experiment(folder, pairs=0)
    with pytest.raises(UsageError, match="multiple of the student's 3"):
        experiment(folder, rollout_steps=3)
    with pytest.raises(UsageError, match="rising steps"):
        WeightSchedule(dmd=((5, 1.0), (2, 0.0)))
    with pytest.raises(UsageError, match="0 < lowest < highest"):
        MatchingConfig(lowest=0.9, highest=0.1)
    wrong = experiment(folder, ConsistencyExperiment, teacher=str(folder / "bidirectional"))
    with pytest.raises(DataError, match="stage bidirectional, but causal is needed"):
        prepare(wrong)
    wrong = experiment(folder, real=str(folder / "causal"))
    with pytest.raises(DataError, match="stage causal, but bidirectional is needed"):
        prepare(wrong)
