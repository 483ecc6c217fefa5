"""Floating-point operations of single HLO instructions: dots, convolutions, calls of libraries."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jwm_jax.distributed.hlo import ArrayType, Computation, Instruction

FREE_CALLS = (
    "AllocateBuffer",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "ConcatBitcast",
    "LayoutConstraint",
    "AssumeGatherIndicesInBound",
    "PadToStatic",
    "SliceToDynamic",
    "MoveToHost",
    "MoveToDevice",
    "annotate_device_placement",
)
"""Custom calls that compute nothing."""


@dataclass(frozen=True)
class CustomCall:
    """A call of code that XLA does not look into.

    Attributes:
        target: Name of the code.
        op_name: Path of the traced operation.
        inputs: Types of the operands.
        outputs: Types of the results.
        count: How often it runs.
        flops: Of all runs; None where no formula is known.
    """

    target: str
    op_name: str
    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    count: int = 1
    flops: float | None = None


def dot_flops(computation: Computation, it: Instruction) -> int:
    """2 B M N K of a dot."""
    left = computation[it.operands[0]].types[0].shape
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", it.attributes)
    dims = [int(d) for d in found.group(1).split(",") if d] if found else []
    return 2 * it.types[0].size * math.prod(left[d] for d in dims)


def convolution_flops(computation: Computation, it: Instruction) -> int:
    """2 for each multiplication of a convolution that meets an input, not padding or a hole."""
    left, right = (computation[name].types[0].shape for name in it.operands[:2])
    out = it.types[0].shape
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", it.attributes).groups()
    lhs, rhs, result = ({label: i for i, label in enumerate(part)} for part in labels)
    window = re.search(r"window=\{([^}]*)\}", it.attributes)
    fields = dict(f.split("=") for f in window.group(1).split()) if window else {}
    spatial = sorted(label for label in lhs if label.isdigit())

    def each(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(spatial)

    positions = 1
    for label, stride, pad, left_hole, right_hole in zip(
        spatial,
        each("stride", "1"),
        each("pad", "0_0"),
        each("lhs_dilate", "1"),
        each("rhs_dilate", "1"),
        strict=True,
    ):
        positions *= _meetings(
            left[lhs[label]], right[rhs[label]], out[result[label]],
            int(stride), int(pad.split("_")[0]), int(left_hole), int(right_hole),
        )  # fmt: skip
    groups = re.search(r"batch_group_count=(\d+)", it.attributes)
    batch = left[lhs["b"]] // (int(groups.group(1)) if groups else 1)
    return 2 * batch * positions * right[rhs["i"]] * out[result["f"]]


def _meetings(size, taps, outputs, stride, pad, left_hole, right_hole) -> int:
    """Pairs of an output position and a kernel tap between which an input lies, on one axis."""
    at = np.arange(outputs)[:, None] * stride + np.arange(taps)[None] * right_hole - pad
    inside = (at >= 0) & (at <= (size - 1) * left_hole) & (at % left_hole == 0)
    return int(inside.sum())


def matmul_flops(call: CustomCall) -> float:
    """2 B M N K of a matrix product of a library, whose right side may lack the batch axes."""
    left, right, out = call.inputs[0], call.inputs[1], call.outputs[0]
    batch = math.prod(out.shape[:-2]) if len(right.shape) == len(out.shape) else 1
    return 2 * out.size * math.sqrt(left.size * right.size / (out.size * batch))


def attention_flops(products: int) -> Callable[[CustomCall], float]:
    """Attention of cuDNN: a number of products [T, S, D] for each of B batches and H heads.

    Queries are [B, T, H, D], keys [B, S, H', D]. Masked logits count as well.
    """

    def flops(call: CustomCall) -> float:
        batch, queries, heads, features = call.inputs[0].shape
        return 2 * products * batch * heads * queries * call.inputs[1].shape[1] * features

    return flops


def splash_flops(products: int) -> Callable[[CustomCall], float]:
    """JAX's splash attention on TPUs: as `attention_flops`, heads first and batches outside.

    Its first operands are tables of blocks, in integers; queries are [H, T, D], keys [H, S, D].
    Blocks that a mask leaves out count as well.
    """

    def flops(call: CustomCall) -> float:
        arrays = [t.shape for t in call.inputs if t.dtype in ("bf16", "f32")]
        queries, keys = arrays[:2]
        return 2.0 * products * math.prod(queries) * keys[1]

    return flops


FORMULAS: dict[str, Callable[[CustomCall], float]] = {
    "__onednn$matmul": matmul_flops,
    "__cublas$gemm": matmul_flops,
    "__cublas$lt$matmul": matmul_flops,
    "__cudnn$fmha": attention_flops(2),
    "__cudnn$fmhaSoftmaxBackward": attention_flops(5),
    "splash_mha_fwd": splash_flops(2),
    "splash_mha_dq": splash_flops(3),
    "splash_mha_dkv": splash_flops(4),
}
"""By a part of the target or of the operation's path; the last that fits counts."""
