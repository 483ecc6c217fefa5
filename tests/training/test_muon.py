"""Muon: kernels move by semi-orthogonal matrices, the work is split, everything else is Adam's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jwm_jax.distributed import MeshConfig, make_mesh
from jwm_jax.distributed.compiled import read_compiled
from jwm_jax.training.muon import dimension_numbers, is_matrix, scale_by_muon_and_adam
from jwm_jax.training.optimizer import OptimizerConfig, apply_gradients, init_optimizer, treatments

NAMES = {
    "conv": {"kernel": (None, None, "conv_in", "conv_out"), "bias": ("conv_out",)},
    "embed": {"kernel": ("embed", "mlp")},
    "layers": {
        "up": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
        "down": {"kernel": ("layers", "mlp", "embed")},
        "depthwise": {"kernel": ("layers", None, None, "embed")},
        "modulation": ("layers", None, "embed"),
    },
}
SHAPES = {
    "conv": {"kernel": (3, 3, 4, 8), "bias": (8,)},
    "embed": {"kernel": (4, 8)},
    "layers": {
        "up": {"kernel": (12, 8, 16), "bias": (12, 16)},
        "down": {"kernel": (12, 16, 8)},
        "depthwise": {"kernel": (12, 3, 3, 8)},
        "modulation": (12, 6, 8),
    },
}
MUON = ("conv.kernel", "layers.down.kernel", "layers.up.kernel")


def tree(make):
    return jax.tree.map(
        lambda shape, names: nn.LogicallyPartitioned(make(shape), names),
        SHAPES,
        NAMES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="."): np.asarray(x) for p, x in leaves}


@pytest.fixture(scope="module")
def problem():
    boxed = tree(jnp.ones)
    grads = nn.unbox(tree(lambda s: jax.random.normal(jax.random.key(len(s)), s)))
    how = treatments(boxed)
    kernels = {
        jax.tree_util.keystr(path, simple=True, separator="."): treatment.axes
        for path, treatment in jax.tree_util.tree_flatten_with_path(how)[0]
        if is_matrix(treatment.axes)
    }
    return boxed, grads, how, kernels


def test_matrices_are_kernels_of_convolutions_and_of_scanned_blocks(problem):
    assert tuple(sorted(problem[3])) == MUON
    names = ("layers", None, None, "conv_in", "conv_out")
    assert is_matrix(names) and dimension_numbers(names) == ((1, 2, 3), 4)


def test_kernels_move_by_the_librarys_muon_and_the_rest_by_adam(problem):
    boxed, grads, _, kernels = problem
    params = nn.unbox(boxed)
    numbers = {name: dimension_numbers(axes) for name, axes in kernels.items()}
    mine = scale_by_muon_and_adam(kernels, 0.9, 0.99, 1e-8)
    library = optax.contrib.muon(
        1.0,
        beta=0.9,
        adam_b1=0.9,
        adam_b2=0.99,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=jax.tree_util.tree_map_with_path(
            lambda p, _: numbers.get(jax.tree_util.keystr(p, simple=True, separator=".")), params
        ),
    )
    adam = optax.scale_by_adam(0.9, 0.99, 1e-8)
    state, reference, plain = mine.init(params), library.init(params), adam.init(params)
    for step in range(2):
        given = jax.tree.map(lambda g, step=step: g * (1 + step) + step, grads)
        updates, state = mine.update(given, state)
        expected, reference = library.update(given, reference, params)
        others, plain = adam.update(given, plain)
        others, expected = flat(others), flat(expected)
        for name, value in flat(updates).items():
            wanted = -expected[name] if name in kernels else others[name]
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
    for matrix in flat(updates)["layers.up.kernel"]:
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * 16**0.5)
        assert values.min() > 0.5 and values.max() < 1.3


def test_moments_have_the_boxes_of_their_parameters(problem):
    boxed, _, how, _ = problem
    state = init_optimizer(OptimizerConfig(muon=True), boxed, how)[1]
    assert set(state["muon"].mu) == set(MUON) and not set(state["adam"].nu) & set(MUON)
    assert state["muon"].mu["layers.up.kernel"].names == ("layers", "embed", "mlp")


def test_every_device_has_its_share_of_the_work_and_the_same_result(problem):
    boxed, grads, how, _ = problem
    params, config = nn.unbox(boxed), OptimizerConfig(muon=True, weight_decay=0.1)

    def step(grads, params):
        state = init_optimizer(config, params, how)
        return apply_gradients(config, grads, state, params, how, 0.1)[0]

    alone = jax.jit(step).lower(grads, params).compile()
    mesh = make_mesh(MeshConfig(data=8))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, in_shardings=whole, out_shardings=whole)
        split = jitted.lower(grads, params).compile()
        for a, b in zip(
            jax.tree.leaves(split(grads, params)),
            jax.tree.leaves(alone(grads, params)),
            strict=True,
        ):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)
    # 24 matrices of the blocks, three of them on a device, and one of the convolution on one device
    flops = [c.cost_analysis()["flops"] for c in (alone, split)]
    assert flops[1] < 0.3 * flops[0]
    # a gather of the updates for each shape is all that they exchange
    assert [c.kind for c in read_compiled(split, mesh).collectives] == 2 * ["all-gather"]


def test_a_zero_gradient_moves_nothing(problem):
    boxed, grads, _, kernels = problem
    muon = scale_by_muon_and_adam(kernels, 0.9, 0.99, 1e-8)
    updates, _ = muon.update(jax.tree.map(jnp.zeros_like, grads), muon.init(nn.unbox(boxed)))
    assert not any(x.any() for x in flat(updates).values())
