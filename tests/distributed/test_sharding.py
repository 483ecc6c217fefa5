"""The rules table, mesh sizes, sharded init and batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from training.toy import Network, ToyTask

from jwm_jax.distributed import (
    RULES,
    MeshConfig,
    constrain,
    init_sharded,
    local_rows,
    make_mesh,
    put_batch,
    spec_for,
    tree_shardings,
    unnamed_leaves,
)
from jwm_jax.errors import UsageError

SIZES = {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("names", "shape", "spec"),
    [
        (("embed", "mlp"), (8, 6), P("fsdp", "tensor")),
        (("embed", "mlp"), (7, 6), P(None, "tensor")),
        (("embed", "embed"), (8, 8), P("fsdp", None)),
        (("batch", "tokens", "act_embed"), (4, 6, 8), P(("data", "fsdp"), None, None)),
        (("batch",), (2,), P("data")),
        (("batch",), (3,), P(None)),
        ((None, "heads", "head_dim"), (3, 4, 5), P(None, "tensor", None)),
    ],
)
def test_a_dimension_is_split_only_where_it_divides_and_each_axis_once(names, shape, spec):
    assert spec_for(names, shape, SIZES) == spec


def test_a_parameter_that_the_mesh_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))

    def boxed(*shape):
        names = ("embed", "heads")
        return {"q": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)}

    assert tree_shardings(boxed(8, 6), mesh, {"heads": 2})["q"].spec == P("fsdp", "tensor")
    with pytest.raises(UsageError, match=r"q \(6, 6\): axis embed \(6 wide\) over fsdp 4"):
        tree_shardings(boxed(6, 6), mesh)
    with pytest.raises(UsageError, match=r"axis heads \(3 pieces\) over tensor 2"):
        tree_shardings(boxed(8, 6), mesh, {"heads": 3})


def test_an_unknown_name_and_a_wrong_number_of_names_are_errors():
    with pytest.raises(ValueError, match="'width' has no rule"):
        spec_for(("width",), (8,), SIZES)
    with pytest.raises(ValueError, match="name 1 dimensions"):
        spec_for(("embed",), (8, 8), SIZES)


def test_every_rule_uses_mesh_axes():
    assert {axis for axes in RULES.values() for axis in axes} <= set(SIZES)


def test_mesh_sizes_fill_the_devices_or_say_why_not():
    assert MeshConfig(fsdp=2).sizes(8) == (4, 2, 1, 1)
    assert MeshConfig(data=1, fsdp=-1, tensor=2).sizes(8) == (1, 4, 1, 2)
    assert make_mesh(MeshConfig(data=3)).size == 3
    for config, message in [
        (MeshConfig(fsdp=3), "multiple of 3 devices"),
        (MeshConfig(data=16), "needs 16 devices"),
        (MeshConfig(fsdp=-1), "at most one may be -1"),
        (MeshConfig(data=0), "must be positive"),
    ]:
        with pytest.raises(UsageError, match=message):
            config.sizes(8)


def test_sharded_init_gives_the_values_of_a_plain_init():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    task = ToyTask()
    assert unnamed_leaves(jax.eval_shape(task.init, jax.random.key(3))) == []
    params, shardings = init_sharded(task.init, jax.random.key(3), mesh)
    plain = nn.unbox(task.init(jax.random.key(3)))
    assert shardings["up"].spec == P("fsdp", "tensor")
    for name, value in plain.items():
        np.testing.assert_allclose(np.asarray(params[name]), np.asarray(value), rtol=1e-6)


def test_a_parameter_without_names_is_found():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="dense")(x)

    boxed = Plain().init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
    assert unnamed_leaves(boxed) == ["dense.bias", "dense.kernel"]


def test_a_batch_is_split_over_data_and_fsdp_and_keeps_its_rows():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    local = {"x": np.arange(48.0, dtype=np.float32).reshape(2, 8, 3), "scale": np.ones(2)}
    np.testing.assert_array_equal(local_rows(mesh, 8), np.arange(8))
    batch = put_batch(local, mesh, 8)
    assert batch["x"].addressable_shards[0].data.shape == (2, 2, 3)
    assert batch["scale"].sharding.is_fully_replicated
    np.testing.assert_array_equal(np.asarray(batch["x"]), local["x"])
    with pytest.raises(ValueError, match=r"\['x'\] has 7 rows"):
        put_batch({"x": local["x"][:, :7]}, mesh, 8)


def test_constrain_does_nothing_without_a_mesh_and_lays_out_within_one():
    x = jnp.ones((4, 8))
    assert constrain(x, ("batch", "act_embed")) is x
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    with jax.set_mesh(mesh):
        split = jax.jit(lambda x: constrain(x * 1, ("batch", "act_heads")))(x)
        assert split.sharding.spec == P("data", "tensor")

        def manual(x):
            return constrain(x, ("batch", "act_embed")) * 2

        inside = jax.jit(jax.shard_map(manual, in_specs=P("data"), out_specs=P("data")))(x)
    np.testing.assert_array_equal(np.asarray(inside), 2 * np.ones((4, 8)))


def test_the_network_gives_the_same_on_a_mesh_and_without():
    params = nn.unbox(ToyTask().init(jax.random.key(0)))
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)

    def apply(params, x):
        return Network().apply({"params": params}, x)

    plain = apply(params, x)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed, _ = init_sharded(ToyTask().init, jax.random.key(0), mesh)
        split = jax.jit(apply)(placed, put_batch(x[None], mesh, 8)[0])
    np.testing.assert_allclose(np.asarray(split), np.asarray(plain), rtol=1e-5, atol=1e-6)
