"""Weights straight onto a mesh: the right slices, the wanted type, refusal before reading."""

import json
import pickle
import zipfile
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jwm_jax.checkpoint import load_params, load_sharded, read_header, save_model
from jwm_jax.checkpoint import sharded as module
from jwm_jax.errors import DataError


@dataclass(frozen=True)
class Config:
    width: int = 4


ROWS, COLUMNS = 16, 6
PARAMS = {
    "block": {
        "kernel": np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS),
        "bias": np.arange(ROWS, dtype=np.float32),
    },
    "half": np.arange(8, dtype=np.float16),
    "brain": np.asarray(jnp.arange(8, dtype=jnp.bfloat16)),
    "count": np.int32(7),
    "empty": np.zeros((0, 3), np.float32),
}
SPECS = {
    "block": {"kernel": PartitionSpec("x", "y"), "bias": PartitionSpec(("x", "y"))},
    "half": PartitionSpec(),
    "brain": PartitionSpec("y"),
    "count": PartitionSpec(),
    "empty": PartitionSpec(),
}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("x", "y"))


def wanted(mesh, dtype=None, params=PARAMS, specs=SPECS):
    def one(value, spec):
        keep = dtype is None or value.dtype == np.int32
        return jax.ShapeDtypeStruct(
            value.shape, value.dtype if keep else dtype, sharding=NamedSharding(mesh, spec)
        )

    return jax.tree.map(one, params, specs)


def saved(folder, kind="worldgen", **more):
    return save_model(folder / "m", kind, "toy", Config(), PARAMS, "# Toy", **more)


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16], ids=str)
def test_every_device_has_its_slice_in_the_wanted_type(tmp_path, mesh, dtype):
    folder = saved(tmp_path)
    want = wanted(mesh, dtype)
    got = load_sharded(folder, "worldgen", want)
    for value, expected, like in zip(*map(jax.tree.leaves, (got, PARAMS, want)), strict=True):
        assert value.sharding == like.sharding and value.dtype == like.dtype
        np.testing.assert_array_equal(np.asarray(value), np.asarray(expected).astype(like.dtype))
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(
                np.asarray(shard.data), np.asarray(expected)[shard.index].astype(like.dtype)
            )


def test_no_more_is_read_at_once_than_one_device_holds_and_nothing_twice(
    tmp_path, mesh, monkeypatch
):
    import safetensors

    real, read = safetensors.safe_open, []

    class Slice:
        def __init__(self, name, view):
            self.name, self.view = name, view
            self.get_shape, self.get_dtype = view.get_shape, view.get_dtype

        def __getitem__(self, index):
            value = self.view[index]
            read.append((self.name, value.shape))
            return value

    class Opened:
        def __init__(self, path, framework):
            self.file = real(path, framework=framework)

        def __enter__(self):
            self.inner = self.file.__enter__()
            self.keys = self.inner.keys
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_slice(self, name):
            return Slice(name, self.inner.get_slice(name))

    monkeypatch.setattr(safetensors, "safe_open", Opened)
    load_sharded(saved(tmp_path), "worldgen", wanted(mesh))
    assert [shape for name, shape in read if name == "block.kernel"] == [(4, 3)] * 8
    assert [shape for name, shape in read if name == "block.bias"] == [(2,)] * 8
    assert [shape for name, shape in read if name == "brain"] == [(4,)] * 2
    assert [shape for name, shape in read if name == "half"] == [(8,)]


def test_every_wrong_tensor_is_named_before_any_is_read(tmp_path, mesh, monkeypatch):
    def fail(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(module, "_placed", fail)
    folder = saved(tmp_path)
    other = wanted(mesh)
    other["new"] = {"a": other["half"], "b": other["half"]}
    del other["brain"], other["count"]
    kernel = other["block"]["kernel"]
    other["block"]["kernel"] = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=kernel.sharding)
    with pytest.raises(DataError) as refused:
        load_sharded(folder, "worldgen", other)
    for text in (
        "params.safetensors: ",
        "new.a with shape (8,) is missing",
        "new.b with shape (8,) is missing",
        "brain with shape (8,) is not part",
        "count with shape () is not part",
        "block.kernel should have shape (8, 6) but has (16, 6)",
    ):
        assert text in str(refused.value)
    swapped = wanted(mesh)
    swapped["count"] = jax.ShapeDtypeStruct((), jnp.float32, sharding=swapped["count"].sharding)
    with pytest.raises(DataError, match="tensor count is I32 but should be float32"):
        load_sharded(folder, "worldgen", swapped)


def test_broken_files_and_other_kinds_are_refused(tmp_path, mesh):
    folder = saved(tmp_path)
    with pytest.raises(DataError, match="holds a worldgen model, but a codec was asked for"):
        load_sharded(folder, "codec", wanted(mesh))
    path = folder / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"params.safetensors cannot be read"):
        load_sharded(folder, "worldgen", wanted(mesh))
    path.unlink()
    with pytest.raises(DataError, match=r"params.safetensors is missing"):
        load_sharded(folder, "worldgen", wanted(mesh))


def test_a_model_says_its_stage_and_serves_no_other(tmp_path, mesh):
    folder = saved(tmp_path, stage="bidirectional")
    assert read_header(folder, "worldgen")["stage"] == "bidirectional"
    load_sharded(folder, "worldgen", wanted(mesh), stages=("bidirectional", "causal"))
    for load in (load_params, lambda *a: load_sharded(*a[:2], wanted(mesh), a[2])):
        with pytest.raises(DataError, match="of the stage bidirectional, but causal or few_step"):
            load(folder, "worldgen", ("causal", "few_step"))
    old = saved(tmp_path / "old")
    load_params(old, "worldgen")
    with pytest.raises(DataError, match=r'names no "stage" .*add "stage": "causal"'):
        load_params(old, "worldgen", ("causal",))
    header = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**header, "stage": "causal"}))
    load_params(old, "worldgen", ("causal",))
    (old / "config.json").write_text(json.dumps({**header, "stage": "casual"}))
    with pytest.raises(DataError, match="has stage 'casual'; expected one of bidirectional"):
        load_params(old, "worldgen")
    for kind, stage in (("codec", "causal"), ("worldgen", "casual")):
        with pytest.raises(ValueError, match="has no stage"):
            saved(tmp_path / "wrong", kind, stage=stage)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("name", ["x.pt", "x.PTH", "x.ckpt", "x.pkl", "pytorch_model.bin"])
def test_pickles_are_never_opened(tmp_path, name, monkeypatch):
    path = tmp_path / "m" / name
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match=f"{name} is a pickle file"):
        load_params(path, "codec")
    (path.parent / "config.json").write_text(
        json.dumps({"format_version": 1, "kind": "codec", "size": "toy", "config": {}})
    )
    with pytest.raises(DataError, match=f"{name} is a pickle file"):
        load_params(path.parent, "codec")


def test_a_pickle_by_another_name_is_known_by_its_first_bytes(tmp_path):
    folder = saved(tmp_path)
    weights = folder / "params.safetensors"
    weights.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match=r"params.safetensors is a pickle file"):
        load_params(folder, "worldgen")
    with zipfile.ZipFile(weights, "w") as file:
        file.writestr("archive/data.pkl", b"")
    with pytest.raises(DataError, match=r"params.safetensors is a pickle file"):
        load_params(folder, "worldgen")
