"""Experiment configs: round trip, overrides, drift, and finding them."""

import json
from pathlib import Path

import jax
import pytest
from training.toy import ToyExperiment

from jwm_jax.checkpoint.dataclass_json import from_dict
from jwm_jax.errors import UsageError
from jwm_jax.training.config import (
    config_hash,
    drift,
    find_config,
    list_configs,
    override,
    to_json,
)


def test_json_round_trip_and_unknown_key():
    config = ToyExperiment(steps=5, bad_steps=(1, 2))
    data = json.loads(to_json(config))
    assert data.pop("experiment") == "ToyExperiment"
    assert from_dict(ToyExperiment, data) == config
    with pytest.raises(UsageError, match="unknown field 'lr'"):
        from_dict(ToyExperiment, {**data, "lr": 1.0})


def test_overrides_are_typed_and_named():
    config = override(ToyExperiment(), {"optimizer.learning_rate": 1, "mesh.fsdp": 4})
    assert config.optimizer.learning_rate == 1.0 and config.mesh.fsdp == 4
    for changes, message in [
        ({"optimizer.lr": 1.0}, "'optimizer.lr' is not a field .* learning_rate"),
        ({"steps": "many"}, r"config.steps must be int, got 'many'"),
        ({"steps.x": 1}, "'steps.x' is not a field"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"accumulate": 3}, "accumulate 3 must divide batch_size 8"),
    ]:
        with pytest.raises(UsageError, match=message):
            override(ToyExperiment(), changes)


def test_only_what_changes_the_result_is_drift_and_changes_the_hash():
    config = ToyExperiment()
    saved = json.loads(to_json(config))
    longer = override(config, {"steps": 99, "max_minutes": 1.0, "log_every": 1, "mesh.data": 2})
    assert drift(saved, longer) == []
    assert config_hash(longer) == config_hash(config)
    other = override(config, {"optimizer.clip": 2.0, "noise": 0.5})
    assert drift(saved, other) == ["noise: 0.1 -> 0.5", "optimizer.clip: 1.0 -> 2.0"]
    assert config_hash(other) != config_hash(config)


def test_a_field_younger_than_the_run_counts_as_its_default():
    config = ToyExperiment()
    saved = json.loads(to_json(config))
    del saved["noise"], saved["optimizer"]["clip"]
    assert drift(saved, config) == []
    assert drift(saved, override(config, {"noise": 0.5})) == ["noise: 0.1 -> 0.5"]
    assert drift({**saved, "gone": 1}, config) == [
        "gone: 1 -> 'absent'",
        "noise: 'absent' -> 0.1",
        "optimizer.clip: 'absent' -> 1.0",
    ]


def test_configs_are_found_by_name_and_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    tests = str(Path(__file__).resolve().parents[1])
    file.write_text(
        '"""My record."""\nfrom __future__ import annotations\n\nimport sys\n'
        "from dataclasses import dataclass\n\n"
        f"sys.path.insert(0, {tests!r})\n"
        "from training.toy import ToyExperiment\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(ToyExperiment):\n    extra: int = 1\n\n\n"
        "def config():\n    return Mine(seed=7)\n"
    )
    config, record = find_config(str(file))
    assert config.seed == 7 and record == "My record."
    assert override(config, {"extra": 2}).extra == 2
    with pytest.raises(UsageError, match=r"nowhere.py does not exist"):
        find_config("nowhere.py")
    with pytest.raises(UsageError, match="no config 'no_such_config'; there are"):
        find_config("no_such_config")
    file.write_text("")
    with pytest.raises(UsageError, match="must define config"):
        find_config(str(file))


@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_config_builds_and_has_a_record(name):
    config, record = find_config(name)
    data = json.loads(to_json(config))
    data.pop("experiment")
    assert from_dict(type(config), data) == config
    assert "jwm train" in record


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("worldgen_tiny", 4_572_512),
        ("worldgen_pretrain_small", 60_006_048),
        ("worldgen_pretrain_base", 1_622_481_472),
        ("worldgen_large", 17_279_109_184),
        ("worldrec_small", 1_323_369),
        ("worldrec_base", 6_844_316),
    ],
)
def test_sizes_have_the_parameters_that_they_say(name, parameters):
    config = find_config(name)[0]
    shapes = jax.eval_shape(config.task().init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == parameters
