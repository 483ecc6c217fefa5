"""The loop: same result on every mesh, bitwise resume, skipped steps, clean stops, refusals."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from training.toy import ToyExperiment, ToyTask

from jwm_jax.checkpoint.model_dir import load_params
from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.errors import DataError, JwmError, UsageError
from jwm_jax.training.config import override
from jwm_jax.training.loop import fit

ONE = MeshConfig(data=1)


def run(config, out, **kwargs):
    return fit(config, config.task(), out, quiet=True, **kwargs)


def host(tree):
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(tree))]


def net(result):
    return result.state.nets["model"]


def rows(out: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k != "steps_per_s"} for row in lines if row["kind"] == kind
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    return out, run(ToyExperiment(mesh=ONE), out)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=8),
        MeshConfig(data=1, fsdp=8),
        MeshConfig(data=2, fsdp=2, tensor=2),
    ],
    ids=str,
)
def test_every_mesh_trains_the_same_model(mesh, straight, tmp_path):
    out, expected = straight
    got = run(ToyExperiment(mesh=mesh), tmp_path / "run")
    for a, b in zip(host(net(got).params), host(net(expected).params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(rows(tmp_path / "run", "train"), rows(out, "train"), strict=True):
        np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-5)


def test_parameters_and_moments_are_split_where_the_rules_say(tmp_path):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    state = net(run(ToyExperiment(mesh=mesh, steps=1), tmp_path / "run"))
    for tree in (state.params, state.ema, state.opt[1].mu):
        assert tree["up"].addressable_shards[0].data.shape == (4, 8)
        assert tree["bias"].addressable_shards[0].data.shape == (8,)


@pytest.mark.parametrize("mesh", [ONE, MeshConfig(data=1, fsdp=2, tensor=2)], ids=str)
def test_resumed_run_is_bitwise_the_uninterrupted_one(mesh, tmp_path):
    whole = run(ToyExperiment(mesh=mesh), tmp_path / "whole")
    config = ToyExperiment(mesh=mesh)
    first = run(override(config, {"max_minutes": 0.0}), tmp_path / "parts")
    assert (first.status, first.step) == ("budget", 1)
    while (part := run(override(config, {"max_minutes": 0.0}), tmp_path / "parts")).step < 5:
        assert part.status == "budget"
    rest = run(config, tmp_path / "parts")
    assert (rest.status, rest.step) == ("finished", 8)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(host(_without_key(rest)), host(_without_key(whole)), strict=True)
    )
    assert rows(tmp_path / "parts", "train") == rows(tmp_path / "whole", "train")


def _without_key(result):
    return (result.state.step, result.state.nets)


def test_a_checkpoint_of_one_mesh_continues_on_another(straight, tmp_path):
    _, expected = straight
    stop = override(ToyExperiment(mesh=ONE), {"max_minutes": 0.0})
    run(stop, tmp_path / "run")
    got = run(ToyExperiment(mesh=MeshConfig(data=2, fsdp=2, tensor=2)), tmp_path / "run")
    for a, b in zip(host(net(got).params), host(net(expected).params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path):
    config = ToyExperiment(mesh=MeshConfig(data=2), noise=0.0, steps=3, log_every=1)
    whole = run(config, tmp_path / "whole")
    parts = run(override(config, {"accumulate": 4}), tmp_path / "parts")
    for a, b in zip(host(net(parts).params), host(net(whole).params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(tmp_path):
    before = run(override(ToyExperiment(mesh=ONE, bad_steps=(1,)), {"max_minutes": 0.0}), tmp_path)
    kept = host((net(before).params, net(before).opt, net(before).ema))
    after = run(override(ToyExperiment(mesh=ONE, bad_steps=(1,)), {"max_minutes": 0.0}), tmp_path)
    assert after.step == 2
    assert (int(net(after).updates), int(net(after).skipped)) == (1, 1)
    now = host((net(after).params, net(after).opt, net(after).ema))
    assert all(np.array_equal(a, b) for a, b in zip(now, kept, strict=True))
    done = run(ToyExperiment(mesh=ONE, bad_steps=(1,)), tmp_path)
    assert done.status == "finished"
    assert (int(net(done).updates), int(net(done).skipped)) == (7, 0)
    assert all(np.isfinite(x).all() for x in host(net(done).params))


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    config = ToyExperiment(mesh=ONE, bad_steps=(2, 3, 4, 5, 6, 7), max_skipped=3)
    with pytest.raises(JwmError, match="or a spike, for 3 updates in a row"):
        run(config, tmp_path / "run")
    (row,) = rows(tmp_path / "run", "abort")
    assert (row["skipped_in_a_row"], row["skipped_steps"]) == (3, [3, 4, 5])


def test_a_spike_is_skipped_once_norms_are_known_and_resuming_knows_them(tmp_path, monkeypatch):
    monkeypatch.setattr("jwm_jax.training.step.SPIKE_AFTER", 3)
    config = override(ToyExperiment(mesh=ONE, spikes=(1, 5)), {"optimizer.spike": 10.0})
    done = run(config, tmp_path / "straight")
    state = net(done)
    assert (int(state.updates), int(state.skipped)) == (7, 0), "of two spikes one is in time"
    for _ in range(20):
        parts = run(override(config, {"max_minutes": 0.0}), tmp_path / "parts")
        if parts.status == "finished":
            break
    assert all(np.array_equal(a, b) for a, b in zip(host(net(parts)), host(state), strict=True))
    never = run(override(config, {"optimizer.spike": 0.0}), tmp_path / "never")
    assert int(net(never).updates) == 8
    with pytest.raises(UsageError, match="0 or above 1"):
        override(config, {"optimizer.spike": 0.5})


def test_a_run_says_where_its_seconds_went_over_all_its_parts(tmp_path):
    config = ToyExperiment(mesh=ONE, checkpoint_every=2)
    run(override(config, {"max_minutes": 0.0}), tmp_path / "run")
    (first,) = rows(tmp_path / "run", "end")
    assert set(first["spent"]) >= {"start", "compile", "data", "save", "evaluate"}
    run(config, tmp_path / "run")
    last = rows(tmp_path / "run", "end")[-1]
    assert all(last["spent"][name] >= first["spent"][name] for name in ("start", "save", "data"))
    total = sum(last["spent"].values())
    assert last["goodput"] == pytest.approx(last["spent"]["step"] / total, abs=1e-3)
    assert last["spent"]["compile"] > 0 and last["spent"]["step"] > 0
    assert {"export", "other"} <= set(last["spent"]) and last["spent"]["other"] < 0.5 * total


def test_chosen_steps_are_traced(tmp_path):
    config = ToyExperiment(mesh=ONE)
    fit(config, config.task(), tmp_path / "run", quiet=True, profile=(2, 4))
    traces = list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and b"train" in traces[0].read_bytes()


def test_a_signal_saves_and_the_same_command_continues(straight, tmp_path):
    _, expected = straight

    class Interrupted(type(ToyExperiment().task())):
        def batches(self, start_step, rows):
            for step, batch in enumerate(super().batches(start_step, rows), start_step):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    config = ToyExperiment(mesh=ONE)
    before = signal.getsignal(signal.SIGTERM)
    stopped = fit(config, Interrupted(), tmp_path / "run", quiet=True)
    assert (stopped.status, stopped.exit_code) == ("preempted", 75)
    assert 0 < stopped.step < 8
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "run" / "lock.json").exists()
    done = run(config, tmp_path / "run")
    for a, b in zip(host(net(done).params), host(net(expected).params), strict=True):
        assert np.array_equal(a, b)


def test_a_corrupted_checkpoint_walks_back_to_the_one_before(straight, tmp_path):
    _, expected = straight
    config = ToyExperiment(mesh=ONE, checkpoint_every=4)
    out = tmp_path / "run"
    run(config, out)
    newest = out / "checkpoints" / "00000008"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    done = run(config, out)
    assert (out / "checkpoints" / "00000008.corrupt").is_dir()
    assert done.step == 8
    for a, b in zip(host(net(done).params), host(net(expected).params), strict=True):
        assert np.array_equal(a, b)


def test_no_whole_checkpoint_never_means_starting_over(tmp_path):
    out = tmp_path / "run"
    run(ToyExperiment(mesh=ONE, steps=2), out)
    next((out / "checkpoints" / "00000002").rglob("_METADATA")).unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"no checkpoint in .* is whole"):
            run(ToyExperiment(mesh=ONE, steps=2), out)


def test_a_folder_that_is_not_this_run_is_refused(straight, tmp_path):
    out, _ = straight
    with pytest.raises(UsageError, match=r"optimizer.learning_rate: 0.01 -> 0.5"):
        run(override(ToyExperiment(mesh=ONE), {"optimizer.learning_rate": 0.5}), out)
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds no training run"):
            run(ToyExperiment(mesh=ONE), tmp_path, overwrite=overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="holds no training run"):
        run(ToyExperiment(mesh=ONE), tmp_path / "new", resume=True)


def test_a_second_trainer_is_kept_out_and_a_dead_one_is_replaced(tmp_path):
    config = ToyExperiment(mesh=ONE, steps=1)
    run(config, tmp_path / "run")
    lock = tmp_path / "run" / "lock.json"
    lock.write_text(json.dumps({"pid": os.getppid(), "host": os.uname().nodename}))
    with pytest.raises(UsageError, match=f"trained by process {os.getppid()}"):
        run(config, tmp_path / "run")
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))
    assert run(config, tmp_path / "run").status == "finished"


def test_the_average_is_evaluated_and_exported(straight):
    out, result = straight
    params = load_params(out / "model", "codec")
    average = jax.device_get(net(result).ema)
    for name, value in params.items():
        assert np.array_equal(value, average[name])
    assert rows(out, "evaluation") == [
        {"step": 8, "kind": "evaluation", "total": result.evaluation["total"]}
    ]


def test_the_last_evaluation_counts_whenever_it_took_place(straight, tmp_path):
    out, expected = tmp_path / "run", straight[1]
    assert run(ToyExperiment(mesh=ONE, eval_every=4), out).evaluation == expected.evaluation
    assert [row["step"] for row in rows(out, "evaluation")] == [4, 8]


def scored(monkeypatch, scores):
    """Evaluations give these values of "score" in turn, and a picture."""
    left = list(scores)
    picture = np.zeros((4, 6, 3), np.float32)
    monkeypatch.setattr(
        ToyTask, "evaluate", lambda self, params: {"score": left.pop(0), "look": picture}
    )


def test_the_best_weights_are_kept_and_a_run_that_gets_worse_ends_early(monkeypatch, tmp_path):
    scored(monkeypatch, [3.0, 1.0, 2.0, 1.5, 9.0])
    config = ToyExperiment(mesh=ONE, steps=20, eval_every=2, best="score", patience=2)
    out = tmp_path / "run"
    result = run(config, out)
    assert (result.status, result.step, result.exit_code) == ("early", 8, 0)
    assert run(config, out).step == 8  # asked again, it does not go on
    scored(monkeypatch, [1.0])
    short = run(ToyExperiment(mesh=ONE, steps=20, max_minutes=1e-9), tmp_path / "short")
    assert short.status == "budget"
    best, last = (load_params(out / name, "codec") for name in ("best", "model"))
    assert any(not np.array_equal(best[name], last[name]) for name in best)
    assert sorted(p.name for p in (out / "pictures").iterdir()) == [
        f"0000000{step}_look.png" for step in (2, 4, 6, 8)
    ]


def test_what_was_best_outlasts_an_interruption(monkeypatch, tmp_path):
    config = ToyExperiment(mesh=ONE, steps=20, eval_every=2, best="score", patience=2)
    out, first = tmp_path / "run", replace(config, steps=4)
    scored(monkeypatch, [1.0, 2.0])
    assert run(first, out).status == "finished"
    scored(monkeypatch, [3.0])
    assert (run(config, out).status, rows(out, "end")[-1]["step"]) == ("early", 6)


def test_a_value_that_no_evaluation_has_and_patience_without_one_are_refused(tmp_path):
    with pytest.raises(UsageError, match="best = 'score' is no value of this evaluation"):
        run(ToyExperiment(mesh=ONE, best="score"), tmp_path / "run")
    with pytest.raises(UsageError, match="needs best and eval_every"):
        ToyExperiment(best="score", patience=1)


def test_micro_batches_that_would_leave_devices_idle_are_refused(tmp_path):
    config = ToyExperiment(mesh=MeshConfig(data=8), batch_size=16, accumulate=4)
    with pytest.raises(UsageError, match="micro-batches of 4, which do not divide over the 8"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UsageError, match="batch_size 6 does not divide over the 4 devices"):
        run(ToyExperiment(mesh=MeshConfig(data=4), batch_size=6), tmp_path / "run")
    assert not (tmp_path / "run").exists()
