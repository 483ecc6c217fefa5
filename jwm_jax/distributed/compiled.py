"""What a compiled program costs each device: products, collectives, memory.

    compiled = jax.jit(step).lower(state, batch).compile()      # on this machine, or for a topology
    print(read_compiled(compiled, mesh, params=state.params).table())

Everything is read from the optimised HLO of one device (XLA partitions before it optimises), with
the body of a loop times its number of trips; XLA's own `cost_analysis` counts it once. Counted are

    products      2 B M N K a dot; 2 a multiplication of a convolution that meets no padding and no
                  hole of a dilation, which is also how XLA counts them
    elementwise   one for each element that arithmetic gives or a reduction takes
    custom calls  by formula: matrix products of oneDNN and cuBLAS, attention of cuDNN and splash
                  attention, and whatever `flops_of` knows; the others are listed and count nothing
    collectives   bytes a device puts in, for a gather what it gets; one that TPU executables spread
                  over several fusions (they share its channel) counts once

Of a conditional the dearest branch counts, but the collectives of all branches are listed. A loop
whose number of trips depends on data counts once and is listed.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jwm_jax.distributed.device_groups import axes_of, device_groups
from jwm_jax.distributed.hlo import ArrayType, Computation, Instruction, Scope, parse
from jwm_jax.distributed.operation_costs import (
    FORMULAS,
    FREE_CALLS,
    CustomCall,
    convolution_flops,
    dot_flops,
)

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

OPTIMIZER = "optimizer"
"""Named scope of an optimiser's update: what moves there are gradients, moments and updates."""

FEW = 8
"""Elements up to which what a collective moves counts as scalars."""

_ARITHMETIC = frozenset(
    (
        *("add", "subtract", "multiply", "divide", "remainder", "maximum", "minimum", "power"),
        *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh"),
        *("tan", "sine", "cosine", "atan2", "erf", "sqrt", "rsqrt", "cbrt", "negate", "abs"),
        *("sign", "floor", "ceil", "round-nearest-even", "round-nearest-afz", "clamp"),
        *("select", "compare", "and", "or", "xor", "not"),
    )
)


@dataclass(frozen=True)
class Collective:
    """A collective operation, synchronous or not.

    Attributes:
        kind: One of `COLLECTIVES`.
        axes: Mesh axes along which it moves data; ("?",) without a mesh.
        group: Devices that take part together.
        inputs: Types of what one device puts in.
        bytes: Of all runs, a device.
        count: How often it runs.
        op_name: Path of the traced operation.
        moves: "scalars", "parameters" (weights or gradients) or "activations", see `what_moves`.
        channel: Number of the exchange, which the parts of an asynchronous one share.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    inputs: tuple[ArrayType, ...]
    bytes: int
    count: int
    op_name: str
    moves: str
    channel: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes a device, as the compiler planned them.

    Attributes:
        temporary: For intermediate values, at their peak.
        argument: Of the inputs.
        output: Of the results, those that take an input's place included.
        alias: Of the results that take an input's place.
    """

    temporary: int
    argument: int
    output: int
    alias: int

    @property
    def total(self) -> int:
        """Bytes that the program needs at once."""
        return self.temporary + self.argument + self.output - self.alias


@dataclass(frozen=True)
class Program:
    """What a compiled program costs one device.

    Attributes:
        flops: Of dots, convolutions and custom calls with a formula.
        elementwise: Operations on single elements.
        collectives: All of them, where they stand in the program.
        custom_calls: Those that compute.
        unknown_loops: Paths of the loops whose trips are not known; their bodies count once.
        memory: Bytes; None where the backend does not say.
    """

    flops: float
    elementwise: float
    collectives: tuple[Collective, ...]
    custom_calls: tuple[CustomCall, ...]
    unknown_loops: tuple[str, ...]
    memory: Memory | None

    @property
    def unknown_calls(self) -> tuple[CustomCall, ...]:
        """The custom calls that count nothing because no formula is known."""
        return tuple(call for call in self.custom_calls if call.flops is None)

    def select(
        self, kind: str | None = None, axis: str | None = None, moves: str | None = None
    ) -> tuple[Collective, ...]:
        """The collectives of a kind, along a mesh axis, or that move a sort of data."""
        return tuple(
            c
            for c in self.collectives
            if (kind is None or c.kind == kind)
            and (axis is None or axis in c.axes)
            and (moves is None or c.moves == moves)
        )

    def traffic(self) -> dict[tuple[str, tuple[str, ...], str], tuple[int, int]]:
        """Count and bytes of the collectives by (kind, mesh axes, what they move)."""
        total: dict[tuple[str, tuple[str, ...], str], tuple[int, int]] = {}
        for c in self.collectives:
            key = (c.kind, c.axes, c.moves)
            count, size = total.get(key, (0, 0))
            total[key] = (count + c.count, size + c.bytes)
        return dict(sorted(total.items()))

    def table(self) -> str:
        """All of it as text."""
        lines = [
            f"products       {_short(self.flops)}FLOP a device",
            f"elementwise    {_short(self.elementwise)}op a device",
        ]
        if self.memory is not None:
            parts = dataclasses.asdict(self.memory)
            said = ", ".join(f"{name} {_short(size)}B" for name, size in parts.items())
            lines.append(f"memory         {_short(self.memory.total)}B a device ({said})")
        for (kind, axes, moves), (count, size) in self.traffic().items():
            where = "+".join(axes)
            lines.append(f"{kind:<18} {where:<14} {moves:<12} {count:>6} x {_short(size):>9}B")
        if not self.collectives:
            lines.append("no collectives")
        lines += [
            f"not counted    custom call {c.target} x {c.count} ({c.op_name})"
            for c in self.unknown_calls
        ]
        lines += [f"counted once   loop {path or '(unnamed)'}" for path in self.unknown_loops]
        return "\n".join(lines)


def read_compiled(
    compiled: Any,
    mesh: Mesh | None = None,
    params: Any = None,
    flops_of: Mapping[str, Callable[[CustomCall], float]] | None = None,
) -> Program:
    """Read a compiled program.

    Args:
        compiled: `jax.stages.Compiled`, of any backend or for a topology.
        mesh: The mesh it was compiled for; names the axes of the collectives.
        params: Tree of arrays or ShapeDtypeStructs of the weights, by whose sizes the collectives
            that move weights and gradients are told from those that move activations.
        flops_of: Formulas of custom calls for one run, by a part of their target or op_name.

    Returns:
        The costs of one device.
    """
    stats = compiled.memory_analysis()
    memory = None
    if stats is not None:
        memory = Memory(
            temporary=stats.temp_size_in_bytes,
            argument=stats.argument_size_in_bytes,
            output=stats.output_size_in_bytes,
            alias=stats.alias_size_in_bytes,
        )
    return read_text(compiled.as_text(), mesh, params, flops_of, memory)


def read_text(
    text: str,
    mesh: Mesh | None = None,
    params: Any = None,
    flops_of: Mapping[str, Callable[[CustomCall], float]] | None = None,
    memory: Memory | None = None,
) -> Program:
    """Read the text of a compiled program; arguments as in `read_compiled`."""
    module = parse(text)
    reader = _Reader(module, mesh, parameter_sizes(params, mesh), {**FORMULAS, **(flops_of or {})})
    total = reader.walk(Scope(module, module.entry))
    return Program(
        flops=total.flops,
        elementwise=total.elementwise,
        collectives=tuple(total.collectives),
        custom_calls=tuple(total.calls),
        unknown_loops=tuple(total.loops),
        memory=memory,
    )


def parameter_sizes(params: Any, mesh: Mesh | None) -> frozenset[int]:
    """Numbers of elements that a parameter, a layer of it, or a shard of either can have."""
    shards = {1}
    for size in () if mesh is None else mesh.shape.values():
        shards |= {n * size for n in shards}
    sizes = set()
    for leaf in jax.tree.leaves(params):
        layer = leaf.size // leaf.shape[0] if leaf.ndim > 1 else leaf.size
        for whole in (leaf.size, layer):
            sizes |= {whole // n for n in shards if whole % n == 0}
    return frozenset(sizes)


def what_moves(sizes: Iterable[int], parameters: frozenset[int], op_name: str = "") -> str:
    """The sort of data of a collective that moves arrays of these numbers of elements.

    Up to `FEW` elements each are "scalars"; where every other array has the size of a parameter,
    of one layer of it or of a shard, or where the scope `OPTIMIZER` asks for them, they are
    "parameters", else "activations". An activation that happens to have such a size is not noticed:
    `Collective.op_name` says where it comes from.
    """
    many = [size for size in sizes if size > FEW]
    if not many:
        return "scalars"
    known = f"/{OPTIMIZER}/" in op_name or all(size in parameters for size in many)
    return "parameters" if known else "activations"


@dataclass
class _Total:
    """Sums over the instructions of a computation and what it calls."""

    flops: float = 0.0
    elementwise: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    calls: list[CustomCall] = dataclasses.field(default_factory=list)
    loops: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "_Total", times: int = 1) -> None:
        self.flops += times * other.flops
        self.elementwise += times * other.elementwise
        self.loops += other.loops
        self.collectives += [
            dataclasses.replace(c, count=times * c.count, bytes=times * c.bytes)
            for c in other.collectives
            if times
        ]
        self.calls += [
            dataclasses.replace(
                c, count=times * c.count, flops=None if c.flops is None else times * c.flops
            )
            for c in other.calls
            if times
        ]


class _Reader:
    def __init__(self, module, mesh, parameters, formulas):
        self.module, self.mesh = module, mesh
        self.parameters, self.formulas = parameters, formulas

    def walk(self, scope: Scope) -> _Total:
        """Everything that one run of a computation costs."""
        total = _Total()
        for it in scope.computation.instructions.values():
            kind = it.opcode.removesuffix("-start")
            if it.opcode == "while":
                trips = scope.trips(it)
                if trips is None:
                    total.loops.append(it.op_name)
                total.add(self.walk(scope.body(it)), 1 if trips is None else trips)
            elif it.opcode == "conditional":
                names = it.called("branch_computations")
                names = names or it.called("true_computation") + it.called("false_computation")
                branches = [self.walk(Scope(self.module, name)) for name in names]
                dearest = max(branches, key=lambda b: (b.flops, b.elementwise))
                others = [c for b in branches if b is not dearest for c in b.collectives]
                total.add(dearest)
                total.collectives += others
            elif kind in COLLECTIVES:
                total.collectives.append(self.collective(scope.computation, it, kind))
            elif it.opcode == "custom-call":
                self.custom_call(scope, it, total)
            elif it.opcode in ("fusion", "call", "async-start"):
                for name in it.called("calls") + it.called("to_apply"):
                    inner = self.walk(scope.inside(it, name))
                    if it.opcode == "fusion":
                        seen = {c.channel for c in total.collectives if c.channel}
                        inner.collectives = [
                            _as_fused(name, c) for c in inner.collectives if c.channel not in seen
                        ]
                    total.add(inner)
            elif it.opcode == "dot":
                total.flops += dot_flops(scope.computation, it)
            elif it.opcode == "convolution":
                total.flops += convolution_flops(scope.computation, it)
            elif it.opcode in _ARITHMETIC:
                total.elementwise += it.types[0].size
            elif it.opcode in ("reduce", "reduce-window", "scatter"):
                operand = it.operands[-1 if it.opcode == "scatter" else 0]
                total.elementwise += scope.computation[operand].types[0].size
        return total

    def collective(self, computation: Computation, it: Instruction, kind: str) -> Collective:
        inputs = tuple(t for name in it.operands for t in computation[name].types)
        groups = device_groups(it.attributes, self.mesh)
        group = max((len(g) for g in groups), default=1)
        many = group if kind == "all-gather" else 1
        channel = re.search(r"channel_id=(\d+)", it.attributes)
        return Collective(
            kind=kind,
            axes=("?",) if self.mesh is None else axes_of(groups, self.mesh),
            group=group,
            inputs=inputs,
            bytes=many * sum(t.bytes for t in inputs),
            count=1,
            op_name=it.op_name,
            moves=what_moves((t.size for t in inputs), self.parameters, it.op_name),
            channel=channel.group(1) if channel else "",
        )

    def custom_call(self, scope: Scope, it: Instruction, total: _Total) -> None:
        target = re.search(r'custom_call_target="([^"]*)"', it.attributes).group(1)
        if target in FREE_CALLS:
            return
        inputs = tuple(t for name in it.operands for t in scope.computation[name].types)
        call = CustomCall(target, it.op_name, inputs, it.types)
        known = [f for part, f in self.formulas.items() if part in target or part in it.op_name]
        if known:
            call = dataclasses.replace(call, flops=float(known[-1](call)))
            total.flops += call.flops
        total.calls.append(call)


def _as_fused(computation: str, collective: Collective) -> Collective:
    """TPU executables fuse a reduction with the slice of its result that a device keeps."""
    if computation.startswith("all-reduce-scatter"):
        return dataclasses.replace(collective, kind="reduce-scatter")
    return collective


def _short(value: float | int) -> str:
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.4g} {unit}"
    return f"{value:.4g} "
