"""Costs read from compiled programs against counts made by hand."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jwm_jax.distributed import MeshConfig, make_mesh
from jwm_jax.distributed.compiled import read_compiled, read_text, what_moves
from jwm_jax.distributed.device_groups import axes_of, device_groups
from jwm_jax.distributed.hlo import ArrayType, parse
from jwm_jax.distributed.operation_costs import CustomCall

LAYERS, BATCH, WIDTH = 5, 16, 24


def compile_for(function, *shapes, mesh=None, specs=None):
    specs = specs or [P()] * len(shapes)
    shapes = [
        jax.ShapeDtypeStruct(
            s, jnp.float32, sharding=None if mesh is None else NamedSharding(mesh, spec)
        )
        for s, spec in zip(shapes, specs, strict=True)
    ]
    with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
        return jax.jit(function).lower(*shapes).compile()


def scanned(weights, x):
    """A perceptron of LAYERS layers as a scan; the sum of squares of its output."""
    y, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights)
    return (y**2).sum()


@pytest.fixture(scope="module")
def gradient():
    return compile_for(jax.grad(scanned), (LAYERS, WIDTH, WIDTH), (BATCH, WIDTH))


def test_a_scanned_perceptron_counts_every_layer_forward_and_backward(gradient):
    # Forward, gradient of the weights, and gradient of the inputs, in every layer.
    product = 2 * BATCH * WIDTH * WIDTH
    program = read_compiled(gradient)
    assert program.flops == 3 * LAYERS * product
    assert program.unknown_loops == () and program.collectives == ()
    assert program.elementwise >= LAYERS * BATCH * WIDTH
    weights = 4 * LAYERS * WIDTH * WIDTH
    assert program.memory.output >= weights
    assert program.memory.argument == weights + 4 * BATCH * WIDTH
    assert f"{program.flops / 1e3:.4g} kFLOP" in program.table()


def test_trips_follow_from_the_loop_itself_where_xla_does_not_state_them(gradient):
    text = gradient.as_text()
    bare = re.sub(r',"known_trip_count":\{"n":"\d+"\}', "", text)
    assert bare != text
    assert read_text(bare).flops == read_text(text).flops


def test_a_loop_that_depends_on_data_counts_once_and_is_listed():
    def run(x, w):
        return lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x @ w + 1.0, x)

    program = read_compiled(compile_for(run, (BATCH, WIDTH), (WIDTH, WIDTH)))
    assert program.flops == 2 * BATCH * WIDTH * WIDTH
    assert len(program.unknown_loops) == 1
    assert "counted once" in program.table()


def test_of_a_conditional_the_dearest_branch_counts():
    def run(x, w):
        return lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    program = read_compiled(compile_for(run, (BATCH, WIDTH), (WIDTH, WIDTH)))
    assert program.flops == 2 * (2 * BATCH * WIDTH * WIDTH)


def test_a_convolution_counts_what_meets_an_input():
    size, into, out = 9, 3, 5

    def run(image, kernel):
        return lax.conv_general_dilated(
            image, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # Five outputs a side; the first and the last of them meet padding with one tap of three.
    pairs = 5 * 3 - 2
    program = read_compiled(compile_for(run, (2, size, size, into), (3, 3, into, out)))
    assert program.flops == 2 * 2 * pairs**2 * into * out

    # Both gradients multiply the same pairs once more: the mirrored convolutions are dilated.
    def both(image, kernel):
        return jax.grad(lambda i, k: (run(i, k) ** 2).sum(), argnums=(0, 1))(image, kernel)

    program = read_compiled(compile_for(both, (2, size, size, into), (3, 3, into, out)))
    assert program.flops == 3 * (2 * 2 * pairs**2 * into * out)


def test_a_psum_in_a_scan_counts_with_every_trip_and_names_its_axis():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))

    def run(x):
        def on_device(x):
            return lax.scan(lambda c, _: (lax.psum(c, "context") / 2, None), x, None, length=7)[0]

        return jax.shard_map(on_device, in_specs=P("data"), out_specs=P("data"), check_vma=False)(x)

    program = read_compiled(compile_for(run, (8, WIDTH), mesh=mesh, specs=[P("data")]), mesh)
    (psum,) = program.collectives
    assert (psum.kind, psum.axes, psum.group, psum.count) == ("all-reduce", ("context",), 2, 7)
    assert psum.bytes == 7 * 4 * 4 * WIDTH
    assert psum.moves == "activations" and "psum" in psum.op_name


def batch_split(weights, x):
    y, _ = lax.scan(
        lambda c, w: (lax.with_sharding_constraint(jnp.tanh(c @ w), P(("data", "fsdp"))), None),
        x,
        weights,
    )
    return (y**2).sum()


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_a_split_batch_divides_the_work_and_moves_weights_and_gradients_only(axis):
    mesh = make_mesh(MeshConfig(**{"data": 1, "fsdp": 1, axis: 8}))
    compiled = compile_for(
        jax.value_and_grad(batch_split),
        (LAYERS, WIDTH, WIDTH),
        (BATCH, WIDTH),
        mesh=mesh,
        specs=[P(None, "fsdp"), P(("data", "fsdp"))],
    )
    weights = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    program = read_compiled(compiled, mesh, weights)
    assert program.flops == 3 * LAYERS * 2 * BATCH * WIDTH * WIDTH / 8
    assert {c.axes for c in program.collectives} == {(axis,)}
    assert {c.moves for c in program.collectives} == {"parameters", "scalars"}
    size = 4 * LAYERS * WIDTH * WIDTH
    reduced = program.select("all-reduce", moves="parameters")
    reduced += program.select("reduce-scatter", moves="parameters")
    assert sum(c.bytes for c in reduced) == size
    gathered = sum(c.bytes for c in program.select("all-gather"))
    assert gathered in ({"data": (0,), "fsdp": (size, 2 * size)}[axis])
    assert {c.kind for c in program.collectives} <= {"all-reduce", "reduce-scatter", "all-gather"}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [(0, 2), (1, 3)]),
        ("source_target_pairs={{0,0},{1,3},{3,1}}", [(1, 3), (3, 1)]),
    ],
)
def test_every_spelling_of_groups_is_understood(text, groups):
    found = device_groups(f", channel_id=1, {text}, use_global_device_ids=true", None)
    assert sorted(found) == groups


def test_axes_are_those_along_which_a_groups_members_differ():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    assert axes_of([(0, 1), (2, 3)], mesh) == ("context",)
    assert axes_of([(0, 2, 4, 6)], mesh) == ("data", "fsdp")
    assert axes_of([(0,)], mesh) == ()


def test_what_moves_is_told_by_size():
    sizes = frozenset({96, 12})
    assert what_moves([1, 8], sizes) == "scalars"
    assert what_moves([96, 1], sizes) == "parameters"
    assert what_moves([96, 50], sizes) == "activations"
    assert what_moves([50], sizes, "jit(step)/optimizer/vmap()/add") == "parameters"
    assert what_moves([50], sizes, "jit(step)/my_optimizer_net/add") == "activations"


TEXT = """HloModule m

%body (p: (f32[4,6])) -> (f32[4,6]) {
  %p = (f32[4,6]{1,0}) parameter(0)
  %g = f32[4,6]{1,0:T(8,128)} get-tuple-element(%p), index=0
  ROOT %t = (f32[4,6]{1,0}) tuple(%g)
}

ENTRY %main (a: bf16[3,4,5], b: bf16[5,6]) -> bf16[3,4,6] {
  %a = bf16[3,4,5]{2,1,0} parameter(0)
  %b = bf16[5,6]{1,0} parameter(1)
  %m = bf16[3,4,6]{2,1,0} custom-call(%a, %b), custom_call_target="__onednn$matmul"
  %k = (bf16[3,4,6]{2,1,0}, /*index=1*/u8[16]{0}) custom-call(%m), custom_call_target="pallas", \
metadata={op_name="jit(f)/splash"}
  ROOT %r = bf16[3,4,6]{2,1,0} get-tuple-element(%k), index=0
}
"""


def test_custom_calls_count_by_formula_or_are_listed():
    program = read_text(TEXT)
    assert program.flops == pytest.approx(2 * 3 * 4 * 5 * 6)
    assert [c.op_name for c in program.unknown_calls] == ["jit(f)/splash"]
    assert "not counted    custom call pallas x 1 (jit(f)/splash)" in program.table()

    def formula(call: CustomCall) -> float:
        return 7.0 * call.inputs[0].size

    known = read_text(TEXT, flops_of={"splash": formula})
    assert known.flops == pytest.approx(program.flops + 7 * 3 * 4 * 6)
    assert known.unknown_calls == ()


SPLASH = """HloModule m

%body (p: (s32[], f32[3,8,4])) -> (s32[], f32[3,8,4]) {
  %p = (s32[], f32[3,8,4]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %q = f32[3,8,4]{2,1,0} get-tuple-element(%p), index=1
  %k = bf16[3,16,4]{2,1,0} constant({...})
  %blocks = s8[1,1,2]{2,1,0} constant({...})
  %splash = f32[3,8,4]{2,1,0} custom-call(%blocks, %q, %k, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 8}"
}}, metadata={op_name="jit(f)/splash_mha_fwd_residuals/pallas_call"}
  ROOT %t = (s32[], f32[3,8,4]{2,1,0}) tuple(%next, %splash)
}

%condition (p: (s32[], f32[3,8,4])) -> pred[] {
  %p = (s32[], f32[3,8,4]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %five = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %five), direction=LT
}

ENTRY %main (a: f32[3,8,4]) -> f32[3,8,4] {
  %a = f32[3,8,4]{2,1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], f32[3,8,4]{2,1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[3,8,4]{2,1,0}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[3,8,4]{2,1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_kernel_with_attributes_over_several_lines_counts_with_its_loop():
    program = read_text(SPLASH)
    assert program.unknown_loops == () and program.unknown_calls == ()
    assert program.flops == 5 * 2 * (2 * 3 * 8 * 16 * 4)


FUSED = """HloModule m

%start (a: f32[4]) -> f32[8] {
  %a = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%a), channel_id=3, replica_groups=[1,2]<=[2], dimensions={0}
}

%done (b: f32[4]) -> f32[8] {
  %b = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%b), channel_id=3, replica_groups=[1,2]<=[2], dimensions={0}
}

%all-reduce-scatter.1 (c: f32[8]) -> f32[4] {
  %c = f32[8]{0} parameter(0)
  %r = f32[8]{0} all-reduce(%c), channel_id=4, replica_groups=[1,2]<=[2], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %s = f32[4]{0} dynamic-slice(%r, %zero), dynamic_slice_sizes={4}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %begun = f32[8]{0} fusion(%x), kind=kCustom, calls=%start
  %ended = f32[8]{0} fusion(%x), kind=kCustom, calls=%done
  ROOT %kept = f32[4]{0} fusion(%ended), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_collectives_that_a_tpu_fuses_count_once_and_by_what_they_do():
    kinds = {c.kind: (c.count, c.bytes) for c in read_text(FUSED).collectives}
    assert kinds == {"all-gather": (1, 32), "reduce-scatter": (1, 32)}


@pytest.mark.aot
def test_an_executable_for_a_tpu_is_read_like_one_for_this_machine(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # libtpu has flags of its own
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = topologies.make_mesh(topology, (1, 8), ("data", "fsdp"))
    layers, rows, width = 6, 1024, 1024
    weights = jax.ShapeDtypeStruct(
        (layers, width, width), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(batch_split), out_shardings=weights.sharding)
        program = read_compiled(step.lower(weights, x).compile(), mesh, weights)
    assert program.flops == 3 * layers * 2 * rows * width * width / 8
    assert {c.kind for c in program.collectives} == {"all-gather", "reduce-scatter"}
    assert {c.moves for c in program.collectives} == {"parameters"}
    scattered = sum(c.bytes for c in program.select("reduce-scatter"))
    assert scattered == 2 * layers * width * width
    assert program.unknown_loops == () and program.unknown_calls == ()


def test_types_are_read_without_layouts_and_comments():
    module = parse(TEXT)
    assert module["main"]["k"].types == (ArrayType("bf16", (3, 4, 6)), ArrayType("u8", (16,)))
    assert module["main"]["k"].types[0].bytes == 2 * math.prod((3, 4, 6))
    assert ArrayType("pred", (3,)).bytes == 3 and ArrayType("s4", (3,)).bytes == 2
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("")
