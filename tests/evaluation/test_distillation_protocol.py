"""`distillation-v1` and `drift-v1`: rows as specs, tables whose best values are known, going on."""

import json
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from jwm_jax.cli.main import main
from jwm_jax.errors import UsageError
from jwm_jax.evaluation import distillation, drift, video_distance
from jwm_jax.evaluation.images import border_ratio
from jwm_jax.evaluation.variants import Variant, check_variants, load_variant
from jwm_jax.scene import Clip, Intrinsics
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec

COUNT = 3


@pytest.fixture(scope="module")
def gen():
    return WorldGen.from_pretrained("tiny")


@cache
def _clip(index: int, frames: int = 25) -> Clip:
    """A window of 32 x 48 pixels that moves over noise, of an own kind for each number."""
    lens = Intrinsics(K=np.asarray([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]), width=48, height=32)
    noise = np.random.default_rng(index).integers(256, size=(32, 48 + frames, 3), dtype=np.uint8)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    return Clip(
        images=(np.stack([noise[:, t : t + 48] for t in range(frames)]),),
        times=0.1 * np.arange(frames, dtype=np.float64)[:, None],
        world_from_ego=poses,
        world_from_camera=poses[:, None],
        cameras=(lens,),
        view_names=("front",),
        name=str(index),
    )


@dataclass(frozen=True)
class Drawn(Variant):
    """A row whose future is the truth, changed from a frame on."""

    change: object = None
    since: int = 0

    def rollout(self, rec, start, future, scene, seed):
        frames = np.array(_clip(int(start.name), 1 + future.num_frames).view(0)[1:, None])
        if self.change is not None:
            frames[self.since :] = self.change(frames[self.since :])
        return SimpleNamespace(frames=frames)


def _blurred(frames):
    x = frames.astype(np.float32)
    for axis in (2, 3):
        x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    return x.astype(np.uint8)


@pytest.fixture
def cheap(monkeypatch):
    """Few small streets, judged without the frozen networks."""
    monkeypatch.setattr(distillation, "street", _clip)
    monkeypatch.setattr(distillation, "FEWEST_CLIPS", COUNT)
    monkeypatch.setattr(video_distance, "FEWEST_CLIPS", COUNT)
    monkeypatch.setattr(distillation, "load_lpips", lambda: None)
    monkeypatch.setattr(distillation, "lpips", lambda params, a, b: ((a - b) ** 2).mean((1, 2, 3)))
    monkeypatch.setattr(
        distillation,
        "clip_features",
        lambda clips, batch: np.stack([np.reshape(c[::6, ::16, ::24], -1) for c in clips]),
    )
    monkeypatch.setattr(
        distillation, "chunk_milliseconds", lambda variants, clip: {v.name: 1.0 for v in variants}
    )
    monkeypatch.setattr(drift, "WINDOW_SECONDS", 1)
    monkeypatch.setattr(drift, "street", lambda index, seconds: _clip(index, 1 + 10 * seconds))


@dataclass(frozen=True)
class Blank(WorldRec):
    """Has one scene for everything."""

    scene: object = None

    def __call__(self, clip, depth=None):
        return self.scene


@pytest.fixture(scope="module")
def rec():
    real = WorldRec.from_pretrained("tiny")
    return Blank(real.config, real.params, scene=real(_clip(0, 1)))


def test_the_truth_scores_best_and_blur_is_seen(gen, rec, cheap, tmp_path):
    rows = [Drawn("same", gen, 1), Drawn("blurred", gen, 2, change=_blurred)]
    table = distillation.evaluate_distillation(rec, rows, COUNT, tmp_path)
    same, blurred = table["same"], table["blurred"]
    assert same["FVD"] == pytest.approx(0, abs=1e-6) and same["LPIPS 2 s"] == 0
    assert same["energy 0.4 s"] == 1 and same["border"] == 1
    assert blurred["FVD"] > 1e-4 and blurred["energy 2 s"] < 0.5 and blurred["LPIPS 0.4 s"] > 0
    assert 0 < table[distillation.CODEC]["PSNR 2 s"] < 60
    assert [row for row, columns in table.items() if "ms" in columns] == ["same", "blurred"]


def test_what_was_scored_is_not_generated_again_and_other_noise_is(gen, rec, cheap, tmp_path):
    made = []

    @dataclass(frozen=True)
    class Counted(Drawn):
        def rollout(self, *args):
            made.append(self.name)
            return super().rollout(*args)

    rows = [Counted("a", gen, 1)]
    first = distillation.evaluate_distillation(rec, rows, COUNT, tmp_path)
    again = distillation.evaluate_distillation(rec, [*rows, Counted("b", gen, 2)], COUNT, tmp_path)
    assert made == ["a"] * COUNT + ["b"] * COUNT
    assert {k: v for k, v in first["a"].items() if k != "ms"} == {
        k: v for k, v in again["a"].items() if k != "ms"
    }
    distillation.evaluate_distillation(rec, rows, COUNT, tmp_path, seed=1)
    assert len(made) == 3 * COUNT


def test_too_few_streets_and_rows_that_do_not_go_together_are_refused(gen, rec, tmp_path):
    row = Variant("a", gen, 4)
    with pytest.raises(UsageError, match="at least 128 streets"):
        distillation.evaluate_distillation(rec, [row], 127, tmp_path)
    with pytest.raises(UsageError, match="each once"):
        check_variants([row, row])
    wide = replace(gen.codec, config=replace(gen.codec.config, latent_channels=8))
    other = Variant("b", replace(gen, codec=wide), 4)
    with pytest.raises(UsageError, match="share a codec"):
        check_variants([row, other])


@pytest.mark.parametrize(
    "spec, message",
    [
        ("tiny?stepz=4", "unknown option 'stepz'"),
        ("tiny?steps=0", "steps must be a whole number from 1"),
        ("tiny?sink=-1", "sink must be a whole number from 0"),
        ("tiny?context_noise=x", "context_noise must be a number from 0 on, got 'x'"),
        ("tiny?sink_ema=2", "sink_ema must be above 0 and at most 1"),
        ("nowhere?steps=4", "nowhere"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        load_variant(spec)


def test_a_spec_says_how_a_generator_is_sampled(gen):
    row = load_variant("tiny?steps=2&prior=0&window=3&sink=0")
    assert (row.steps, row.prior, row.gen.config.window, row.gen.config.sink) == (2, False, 3, 0)
    plain = load_variant("tiny")
    assert plain.steps == gen.config.sampling_steps and plain.prior
    assert len({v.identity() for v in (row, plain, load_variant("tiny?steps=2"))}) == 3
    assert plain.identity() == Variant("other name", gen, plain.steps).identity()


def test_the_time_of_a_frame_is_measured_for_each_row(gen):
    rows = [Variant("one", gen, 1), Variant("again", gen, 1)]
    spent = distillation.chunk_milliseconds(rows, _clip(0))
    assert list(spent) == ["one", "again"] and all(0 < ms < 10_000 for ms in spent.values())


def test_the_ratio_at_borders_of_chunks():
    frames = np.zeros((12, 2, 2, 3))
    for t in range(1, 12):
        frames[t] = frames[t - 1] + (0.4 if t % 4 == 0 else 0.1)
    assert border_ratio(frames) == pytest.approx(4)


def test_a_minute_that_stays_true_drifts_nowhere_and_a_late_blur_shows(gen, rec, cheap):
    rows = [Drawn("same", gen, 1), Drawn("fades", gen, 2, change=_blurred, since=10)]
    found = drift.evaluate_drift(rec, rows, 1, 2)
    same, fades = found.table["same"], found.table["fades"]
    assert all(same[f"{name}, ratio"] == 1 for name in drift.RATIOS)
    assert same["latent mean, last"] == 0
    assert fades["energy, first"] == 1 and fades["energy, ratio"] < 0.5
    assert len(found.curves["fades"]["motion"]) == 2
    assert found.strips["truth"].shape == found.strips["fades"].shape == (2, 32, 48, 3)
    with pytest.raises(UsageError, match="at least two"):
        drift.evaluate_drift(rec, rows, 1, 1)


def test_the_verbs_print_tables_and_drift_leaves_curves(gen, rec, cheap, monkeypatch, tmp_path):
    rows = {"same": Drawn("same", gen, 1), "fades": Drawn("fades", gen, 2, change=_blurred)}
    monkeypatch.setattr("jwm_jax.evaluation.variants.load_variant", rows.get)
    monkeypatch.setattr(WorldRec, "from_pretrained", lambda name: rec)
    given = ["--gens", "same", "fades", "--count", str(COUNT), "--json"]
    scores = ["--scores", str(tmp_path / "scores")]
    assert main(["evaluate", "distillation", *given, *scores]) == 0
    out = tmp_path / "drift"
    assert main(["evaluate", "drift", *given, "--seconds", "2", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"scores.json", "first_street.jpg", "drift.html"}
    page = (out / "drift.html").read_text()
    assert page.count('<svg class="chart"') == len(drift.MEASURES) and "fades" in page
    table = json.loads((out / "scores.json").read_text())["tables"]["3 streets, 2 s"]
    assert table["same"]["energy, ratio"] == 1 and table["fades"]["energy, first"] < 0.5


@pytest.mark.parametrize("what", ["distillation", "drift"])
def test_generators_have_to_be_named(what, capsys):
    assert main(["evaluate", what]) == 2
    assert f"evaluate {what} needs generators" in capsys.readouterr().err
    assert main(["evaluate", "codec", "--gens", "tiny"]) == 2
