"""Model directories: round trip, half storage, and refusal of every wrong file."""

import json
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.checkpoint import (
    check_params,
    flatten,
    from_dict,
    load_config,
    load_params,
    load_sharded,
    model_dir,
    save_model,
    to_dict,
    unflatten,
)
from jwm_jax.checkpoint.model_dir import weights_digest
from jwm_jax.checkpoint.weights import INDEX
from jwm_jax.errors import DataError, UsageError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True)
class Other:
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Config:
    width: int = 4
    sizes: tuple[int, int] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    either: Inner | Other = field(default_factory=Other)
    limit: float | None = None

    def __post_init__(self):
        if self.width < 0:
            raise ValueError("width must be positive.")


PARAMS = {
    "block": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, "f4")},
    "count": np.int32(7),
}


def saved(tmp_path, **kwargs):
    return save_model(tmp_path / "m", "codec", "tiny", Config(), PARAMS, "# Card", **kwargs)


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path, half):
    folder = saved(tmp_path, half=half)
    assert load_config(folder, "codec", Config) == Config()
    params = load_params(folder, "codec")
    check_params(params, PARAMS, str(folder))
    assert params["block"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(params["block"]["kernel"], PARAMS["block"]["kernel"])
    assert params["count"] == 7
    assert (folder / "card.md").read_text() == "# Card\n"


def test_large_weights_are_several_files_with_an_index(tmp_path):
    single = saved(tmp_path)
    whole = flatten(load_params(single, "codec"))
    digest = weights_digest(single, "codec")
    folder = saved(tmp_path, shard_bytes=24)  # two tensors fit into no file together
    files = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(p.name for p in folder.glob("*.safetensors")) == files
    index = json.loads((folder / INDEX).read_text())
    assert index["weight_map"] == dict(zip(sorted(whole), files, strict=True))
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for n, x in whole.items()}
    for loaded in (load_params(folder, "codec"), load_sharded(folder, "codec", unflatten(wanted))):
        jax.tree.map(np.testing.assert_array_equal, flatten(loaded), whole)
    assert weights_digest(folder, "codec") != digest
    again = saved(tmp_path, shard_bytes=24)
    files = sorted(p.name for p in again.glob("*.safetensors"))
    assert files == [f"model2-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)], "never mixed"
    (folder / files[1]).unlink()
    with pytest.raises(DataError, match=rf"{files[1]} is missing"):
        load_params(folder, "codec")
    for names in ({"a": "../a.safetensors"}, {"a": "a.bin"}, {}):
        (folder / INDEX).write_text(json.dumps({"weight_map": names}))
        with pytest.raises(DataError, match=r"should name \.safetensors files beside it"):
            load_params(folder, "codec")
    assert weights_digest(saved(tmp_path), "codec") == digest
    assert sorted(p.name for p in folder.iterdir()) == [
        "card.md",
        "config.json",
        "params.safetensors",
    ]


def test_a_header_whose_length_begins_like_a_pickle_is_none(tmp_path):
    """0x80 0x02 are a pickle's first bytes, and those of the length 640."""
    path = saved(tmp_path) / "params.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].ljust(640)
    path.write_bytes((640).to_bytes(8, "little") + header + raw[8 + length :])
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert load_params(path.parent, "codec")["count"] == 7
    path.write_bytes(b"\x80\x02" + bytes(30))
    with pytest.raises(DataError, match="is a pickle"):
        load_params(path.parent, "codec")


def test_half_storage_never_writes_an_overflow(tmp_path):
    with pytest.raises(ValueError, match=r"tensor a.b is not finite as float16"):
        save_model(
            tmp_path / "m", "codec", "t", Config(), {"a": {"b": jnp.full(2, 1e6)}}, "", half=True
        )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            {**PARAMS, "block": {"kernel": np.zeros((2, 4)), "bias": np.zeros(3)}},
            r"block.kernel should have shape \(2, 4\) but has \(2, 3\); .* another size",
        ),
        ({**PARAMS, "extra": np.zeros(2)}, r"extra with shape \(2,\) is missing"),
        ({"block": PARAMS["block"]}, r"count with shape \(\) is not part of the model"),
    ],
)
def test_the_first_differing_tensor_is_named_with_its_shapes(expected, message):
    with pytest.raises(DataError, match=message):
        check_params(PARAMS, expected, "here")


def test_wrong_kind_version_and_broken_files_are_refused(tmp_path):
    folder = saved(tmp_path)
    with pytest.raises(DataError, match="holds a codec model, but a worldgen was asked for"):
        load_params(folder, "worldgen")
    header = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**header, "format_version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        load_params(folder, "codec")
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load_params(folder, "codec")
    for change, message in [
        ({"foo": 1}, "config.json: config has the unknown field 'foo'"),
        ({"width": "wide"}, "config.json: config.width must be int"),
        ({"width": -1}, "config.json: config: width must be positive"),
    ]:
        broken = {**header, "config": {**header["config"], **change}}
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=message):
            load_config(folder, "codec", Config)
    (folder / "config.json").write_text(json.dumps(header))
    weights = folder / "params.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"params.safetensors cannot be read"):
        load_params(folder, "codec")
    with pytest.raises(UsageError, match="neither a folder nor a shipped size"):
        load_params("no-such-size", "codec")


def test_a_name_finds_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.setattr(model_dir, "WEIGHTS", tmp_path)
    save_model(tmp_path / "codec-mini", "codec", "mini", Config(width=9), PARAMS, "")
    assert load_config("mini", "codec", Config).width == 9


def test_configs_survive_json_and_reject_what_they_do_not_know():
    config = Config(width=3, either=Inner(2.0), limit=1.5)
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    for data, message in [
        ({"wdith": 3}, "unknown field 'wdith'"),
        ({"inner": {"rate": "fast"}}, r"config.inner.rate must be float, got 'fast'"),
        ({"width": True}, r"config.width must be int, got True"),
        ({"sizes": [1]}, r"config.sizes must have 2 values"),
        ({"either": {"rate": 1.0}}, r"config.either.type must be one of Inner, Other"),
    ]:
        with pytest.raises(UsageError, match=message):
            from_dict(Config, data)
