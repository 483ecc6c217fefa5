"""Tokens of every frame split over devices: the same numbers, an eighth of the work each."""

import re
from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jwm_jax.distributed import MeshConfig, make_mesh, spec_for
from jwm_jax.distributed.context import LAYOUT, cross_attention, framed_attention
from jwm_jax.nn.masks import FrameLengths, Full, KeyLengths, Padded, TeacherForcing

WIDTH = 8
FORCED = TeacherForcing(clean=3, noisy=(1, 4), window=2, sink=1)
ULYSSES, RING = {"all-to-all"}, {"collective-permute"}
SHARED = {"all-gather", "reduce-scatter"}


@dataclass(frozen=True)
class Case:
    """A mesh, the shape of what attends on it, and the collectives that may run."""

    mesh: MeshConfig
    mask: object
    frames: tuple[int, int]
    tokens: int
    heads: int
    collectives: set[str]


CASES = {
    "ulysses over 8, full": Case(MeshConfig(1, 1, 8), Full(), (4, 4), 16, 8, ULYSSES),
    "ulysses over 8, forced": Case(MeshConfig(1, 1, 8), FORCED, (6, 6), 16, 8, ULYSSES),
    "ulysses with all axes": Case(
        MeshConfig(1, 2, 2, 2), Padded(FORCED, 16, 13), (6, 6), 16, 4, ULYSSES
    ),
    "ulysses from a cache": Case(
        MeshConfig(2, 1, 4), FrameLengths(5, np.array([2, 4], np.int32)), (1, 5), 8, 4, ULYSSES
    ),
    "shared over 8, full": Case(MeshConfig(1, 1, 8), Full(), (4, 4), 16, 4, SHARED),
    "shared over 8, forced": Case(
        MeshConfig(1, 1, 8), Padded(FORCED, 16, 11), (6, 6), 16, 4, SHARED
    ),
    "shared with all axes": Case(MeshConfig(1, 2, 2, 2), FORCED, (6, 6), 16, 2, SHARED),
    "shared from a cache": Case(
        MeshConfig(2, 1, 4),
        Padded(FrameLengths(5, np.array([2, 4], np.int32)), 8, 7),
        (1, 5),
        8,
        2,
        SHARED,
    ),
    "ring over 8, full": Case(MeshConfig(1, 1, 8), Full(), (4, 4), 16, 3, RING),
    "ring over 8, forced": Case(MeshConfig(1, 1, 8), Padded(FORCED, 16, 11), (6, 6), 16, 3, RING),
    "ring with all axes": Case(MeshConfig(1, 2, 2, 2), FORCED, (6, 6), 16, 6, RING),
    "ring from a cache": Case(
        MeshConfig(2, 1, 4),
        Padded(FrameLengths(5, np.array([2, 4], np.int32)), 8, 7),
        (1, 5),
        8,
        3,
        RING,
    ),
}


def arrays(case: Case, dtype) -> list[jax.Array]:
    """Queries, keys, values and a cotangent."""
    rng = np.random.default_rng(0)
    frames = (case.frames[0], case.frames[1], case.frames[1], case.frames[0])
    shapes = [(2, n, case.tokens, case.heads, WIDTH) for n in frames]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def step(case: Case):
    """Output and gradients of all inputs along a cotangent."""

    def run(queries, keys, values, cotangent):
        def attend(*x):
            return framed_attention(*x, case.mask, implementation="blockwise")

        out, back = jax.vjp(attend, queries, keys, values)
        return out, *back(cotangent)

    return run


def on_mesh(case: Case, inputs: list):
    """The compiled step on the case's mesh, and its inputs' shardings."""
    mesh = make_mesh(case.mesh)
    shardings = [NamedSharding(mesh, spec_for(LAYOUT, x.shape, mesh.shape)) for x in inputs]
    with jax.set_mesh(mesh):
        return jax.jit(step(case), in_shardings=shardings).lower(*inputs).compile(), shardings


def largest_error(got, expected) -> float:
    """Over all tensors, the largest difference relative to a tensor's largest entry."""
    pairs = zip(got, expected, strict=True)
    return max(float(np.abs(a - np.asarray(b)).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
def test_devices_agree_with_one_and_exchange_only_attention(name):
    """float64: values and gradients to rounding; no gather and no reduction anywhere."""
    case = CASES[name]
    with jax.enable_x64(True):
        inputs = arrays(case, jnp.float64)
        expected = jax.jit(step(case))(*inputs)
        compiled, shardings = on_mesh(case, inputs)
        assert largest_error(compiled(*jax.device_put(inputs, shardings)), expected) < 1e-13
    pattern = r"\b(all-[a-z-]+?|reduce-scatter|collective-[a-z]+)(?:-start)?\("
    collectives = Counter(re.findall(pattern, compiled.as_text()))
    assert set(collectives) == case.collectives
    shape = inputs[0].shape
    assert compiled.output_shardings[0].shard_shape(shape) == shardings[0].shard_shape(shape)


@pytest.mark.parametrize(
    "name", ["ulysses over 8, full", "shared over 8, full", "ring over 8, full"]
)
def test_each_device_does_an_eighth_of_the_work(name):
    """Seven products of all queries, all keys and a head's width; XLA counts one turn of a ring."""
    case, tokens, width = CASES[name], 128, 64
    inputs = [
        jax.ShapeDtypeStruct((2, n, tokens, case.heads, width), jnp.float32) for n in (4, 4, 4, 4)
    ]
    products = 7 * 2 * 2 * case.heads * (4 * tokens) ** 2 * width
    turns = 8 if case.collectives == RING else 1
    flops = on_mesh(case, inputs)[0].cost_analysis()["flops"] * turns
    assert flops / products < 1.05 / 8


def test_outside_a_mesh_it_is_plain_attention():
    case = CASES["ring over 8, full"]
    queries, keys, values, _ = arrays(case, jnp.float32)
    plain = framed_attention(queries, keys, values)
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1, 1))):
        jaxpr = str(jax.make_jaxpr(framed_attention)(queries, keys, values))
        np.testing.assert_array_equal(framed_attention(queries, keys, values), plain)
    assert "shard_map" not in jaxpr


def test_cross_attention_exchanges_nothing_forward():
    """Every device holds the few keys; only their gradient is summed."""
    case = CASES["ulysses with all axes"]
    queries = arrays(case, jnp.float32)[0]
    keys, values = (
        jnp.asarray(np.random.default_rng(i).normal(size=(2, 5, case.heads, WIDTH)), jnp.float32)
        for i in range(2)
    )
    mask = KeyLengths(np.array([3, 5], np.int32))

    def attend(*x):
        return cross_attention(*x, mask)

    expected = attend(queries, keys, values)
    mesh = make_mesh(case.mesh)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, spec_for(LAYOUT, queries.shape, mesh.shape))
        narrow = NamedSharding(mesh, jax.P(("fsdp",), None, "tensor"))
        placed = [jax.device_put(queries, sharding)]
        placed += [jax.device_put(x, narrow) for x in (keys, values)]
        compiled = jax.jit(attend).lower(*placed).compile()
        gradient = jax.jit(jax.grad(lambda *x: jnp.square(attend(*x)).sum(), (0, 1, 2)))(*placed)
    assert largest_error([compiled(*placed)], [expected]) < 1e-6
    assert not re.search(r"\b(all-|reduce-scatter|collective-)", compiled.as_text())
    plain = jax.grad(lambda *x: jnp.square(cross_attention(*x, mask)).sum(), (0, 1, 2))
    assert largest_error(gradient, plain(queries, keys, values)) < 1e-6


def test_what_cannot_be_split_is_said():
    x = jax.ShapeDtypeStruct((1, 2, 12, 4, WIDTH), jnp.float32)
    mesh, message = make_mesh(MeshConfig(1, 1, 8)), "12 tokens of a frame do not divide"
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
        jax.eval_shape(framed_attention, x, x, x)
    with pytest.raises(ValueError, match="use FrameLengths"):
        jax.eval_shape(lambda *a: framed_attention(*a, KeyLengths(3)), x, x, x)
