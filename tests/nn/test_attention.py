"""Every implementation computes softmax attention under the mask's dense definition."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.nn.attention import BLOCKWISE_FROM, attention
from jwm_jax.nn.attention_blockwise import blockwise_attention, make_plan, visited_pairs
from jwm_jax.nn.masks import (
    ChunkCausal,
    FrameBlocks,
    FrameLengths,
    FromMemory,
    Full,
    KeyLengths,
    Padded,
    TeacherForcing,
    dense,
)

TOKENS, HEADS, WIDTH = 5, 2, 8
CASES = {
    "full": (Full(), 3, 4),
    "blocks": (FrameBlocks(((True, False, True), (False, True, True))), 2, 3),
    "causal": (ChunkCausal(5, chunk=2, window=2, sink=1), 5, 5),
    "teacher forcing": (TeacherForcing(4, (2, 6), chunk=2, window=2, sink=1), 8, 8),
    "from memory": (FromMemory(4, (1, 7), chunk=3, window=3, first_chunk=1), 6, 10),
    "a length a row": (KeyLengths(np.array([3, 14], np.int32)), 2, 3),
    "frame lengths": (FrameLengths(4, np.array(2, np.int32)), 2, 4),
    "padded frames": (Padded(TeacherForcing(2, (0, 3)), TOKENS, 3), 5, 5),
    "padded lengths": (Padded(FrameLengths(3, np.array([1, 3], np.int32)), TOKENS, 4), 2, 3),
}
"""Name -> mask, frames of queries, frames of keys."""


def reference(queries, keys, values, mask):
    """The textbook: all logits, hidden ones left out of the softmax; nothing seen gives zero."""
    visible = dense(mask, queries.shape[1], keys.shape[1])[:, None]
    logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) / np.sqrt(queries.shape[-1])
    weights = jnp.where(visible, jnp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values)


def arrays(queries: int, keys: int, dtype) -> list[jax.Array]:
    """Queries, keys, values and a cotangent."""
    rng = np.random.default_rng(0)
    shapes = [(2, n * TOKENS, HEADS, WIDTH) for n in (queries, keys, keys, queries)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def gradients(attend):
    """Output and gradients of all three inputs along a cotangent, as one program for all cases."""

    def run(queries, keys, values, cotangent, mask):
        out, back = jax.vjp(lambda *x: attend(*x, mask), queries, keys, values)
        return out, *back(cotangent)

    return lambda inputs: [run(*inputs[name], CASES[name][0]) for name in CASES]


@pytest.fixture(scope="module")
def expected():
    """Results of the reference in float64."""
    with jax.enable_x64(True):
        inputs = {name: arrays(q, k, jnp.float64) for name, (_, q, k) in CASES.items()}
        return jax.tree.map(np.asarray, jax.jit(gradients(reference))(inputs))


def largest_error(got, expected) -> float:
    """Over all tensors, the largest difference relative to a tensor's largest entry."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()) for a, b in pairs
    )


@pytest.mark.parametrize("block", [3, 11, 512])
def test_blocks_are_exact_in_float64(block, expected):
    """Blocks of part of a frame, of some frames, and of everything: values and gradients."""

    def attend(queries, keys, values, mask):
        if isinstance(mask, Padded):  # stripped before any implementation sees it
            return attention(queries, keys, values, mask, implementation="blockwise")
        return blockwise_attention(queries, keys, values, mask, block=block)

    with jax.enable_x64(True):
        inputs = {name: arrays(q, k, jnp.float64) for name, (_, q, k) in CASES.items()}
        assert largest_error(jax.jit(gradients(attend))(inputs), expected) < 1e-13


@pytest.mark.parametrize("implementation", ["auto", "blockwise"])
def test_float32_agrees(implementation, expected):
    def attend(queries, keys, values, mask):
        return attention(queries, keys, values, mask, implementation=implementation)

    inputs = {name: arrays(q, k, jnp.float32) for name, (_, q, k) in CASES.items()}
    assert largest_error(jax.jit(gradients(attend))(inputs), expected) < 2e-6


def test_hidden_blocks_are_never_visited():
    """Blocks of one frame: as many visits as the mask has visible pairs of frames."""
    for name in ("causal", "teacher forcing", "from memory"):
        mask, queries, keys = CASES[name]
        plan = make_plan(mask.matrix, queries * TOKENS, keys * TOKENS, TOKENS)
        pairs = visited_pairs(plan)
        assert pairs.partial is None
        visited = set(zip(pairs.query.tolist(), pairs.key.tolist(), strict=True))
        assert len(pairs.query) == mask.matrix.sum()
        assert visited == set(zip(*np.nonzero(mask.matrix), strict=True))


def test_no_array_of_logits():
    """Forward and gradient over 4096 tokens need less than one head's logits in memory."""
    tokens = 4096
    assert tokens**2 >= BLOCKWISE_FROM
    shape = jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)

    def loss(*qkv):
        return jnp.square(attention(*qkv, TeacherForcing(4, (0, 4)))).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
    logits = 4 * tokens**2
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 4
    assert not re.search(rf"\[[\d,]*{tokens},{tokens}\]", compiled.as_text())


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_kernels_are_chosen_for_the_platform_lowered_for(platform):
    """Within a rematerialised scan over layers, forward and backward, and from a cache."""
    kernel = {"cpu": None, "tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmax"}[platform]
    x = jax.ShapeDtypeStruct((2, 6 * 512, 4, 64), jnp.bfloat16)

    def layers(queries, keys, values):
        def layer(x, _):
            return x + attention(x, keys, values, TeacherForcing(3, (0, 3))), None

        return jax.lax.scan(jax.checkpoint(layer), queries, length=2)[0].astype(jnp.float32).sum()

    def step(queries, keys, values, frames):
        return attention(queries, keys, values, FrameLengths(6, frames))

    frames = jax.ShapeDtypeStruct((), jnp.int32)
    for function, shapes, least in ((jax.grad(layers), (x, x, x), 3), (step, (x, x, x, frames), 1)):
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,))
        calls = Counter(re.findall(r"custom_call @([\w$.]+)", lowered.as_text()))
        assert set(calls) <= {kernel, f"{kernel}Backward"}
        assert sum(calls.values()) >= (least if kernel else 0)
        assert bool(calls) == bool(kernel)


def test_float32_takes_no_16_bit_kernel():
    x = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.float32)
    lowered = jax.jit(attention).trace(x, x, x).lower(lowering_platforms=("cuda",))
    assert "cudnn" not in lowered.as_text()
    with pytest.raises(ValueError, match="cudnn needs bfloat16 or float16"):
        jax.eval_shape(lambda *a: attention(*a, implementation="cudnn"), x, x, x)


@pytest.mark.parametrize(
    ("mask", "queries", "keys"),
    [
        (ChunkCausal(3), 4, 3),
        (FrameLengths(3, 1), 3, 4),
        (Padded(Full(), 3, 2), 3, 4),
    ],
)
def test_sequences_that_are_not_whole_frames_are_refused(mask, queries, keys):
    shapes = [jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32) for n in (queries, keys, keys)]
    for implementation in ("xla", "blockwise"):
        with pytest.raises(ValueError, match="frames"):
            jax.eval_shape(
                lambda *a, i=implementation: attention(*a, mask, implementation=i), *shapes
            )
