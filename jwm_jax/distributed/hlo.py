"""The text of an optimised HLO module as computations of instructions, and how often loops run.

`jax.stages.Compiled.as_text()` prints one instruction a line,

    %name = f32[4,8]{1,0} opcode(%operand, ...), attribute=value, ..., metadata={op_name="..."}

inside computations that other instructions call. Layouts are left out here; a tuple's type is the
list of its arrays. A while loop's number of trips is what XLA wrote down (`known_trip_count`), or
follows from its condition and body when these move one integer by a constant step from a constant
start to a constant limit (TPU executables say nothing of it).
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
"""Of element types whose name does not say it."""

_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
    r"(calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_CALLED_LISTS = re.compile(r"(branch_computations|called_computations|calls)=\{([^}]*)\}")


@dataclass(frozen=True)
class ArrayType:
    """Type of an array.

    Attributes:
        dtype: As HLO spells it, for example "bf16".
        shape: Sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        bits = BITS.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype).group())
        return -(-self.size * bits // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Without the percent sign.
        opcode: For example "dot".
        types: Of the arrays it gives; several for a tuple.
        operands: Names.
        text: What stands between the operands' parentheses.
        attributes: What follows them.
    """

    name: str
    opcode: str
    types: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    text: str
    attributes: str

    @property
    def op_name(self) -> str:
        """Path of the traced operation that it comes from; "" where there is none."""
        found = _OP_NAME.search(self.attributes)
        return found.group(1) if found else ""

    def called(self, key: str) -> list[str]:
        """Names of the computations that an attribute lists, for example "body"."""
        one = [name for k, name in _CALLED.findall(self.attributes) if k == key]
        lists = [names for k, names in _CALLED_LISTS.findall(self.attributes) if k == key]
        return one + [name.strip(" %") for names in lists for name in names.split(",") if name]


@dataclass
class Computation:
    """A list of instructions, the last of which is usually the root.

    Attributes:
        name: Without the percent sign.
        instructions: By name, in the order of the text.
        root: Name of the result.
    """

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]


@dataclass(frozen=True)
class Module:
    """A whole program.

    Attributes:
        computations: By name.
        entry: Name of the one that runs.
    """

    computations: Mapping[str, Computation]
    entry: str

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]


def parse(text: str) -> Module:
    """Read what `Compiled.as_text()` prints.

    Raises:
        ValueError: There is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _whole_lines(text):
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = Computation(header.group(2))
                entry = current.name if header.group(1) else entry
            continue
        if _END.match(line):
            computations[current.name] = current
            current = None
            continue
        found = _INSTRUCTION.match(_COMMENT.sub("", line))
        if found:
            root, name, kind, opcode, rest = found.groups()
            inside, attributes = _split(rest)
            current.instructions[name] = Instruction(
                name, opcode, _types(kind), tuple(_NAME.findall(inside)), inside, attributes
            )
            current.root = name if root or not current.root else current.root
    if not entry:
        raise ValueError("the text holds no ENTRY computation; pass Compiled.as_text().")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """The lines of a module, an instruction whose attributes are printed over several in one."""
    whole = ""
    for line in text.splitlines():
        if whole and not _END.match(line) and not line.startswith("  "):
            whole += line
            continue
        if whole:
            yield whole
        whole = line if line.startswith("  ") else ""
        if not whole:
            yield line
    if whole:
        yield whole


def _split(rest: str) -> tuple[str, str]:
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _types(text: str) -> tuple[ArrayType, ...]:
    return tuple(
        ArrayType(dtype, tuple(int(n.lstrip("<=")) for n in shape.split(",") if n))
        for dtype, shape in _ARRAY.findall(text)
    )


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
}
_SAME = {"copy", "bitcast", "convert", "reshape", "broadcast", "copy-start", "copy-done"}


class Scope:
    """A computation where it is called: what integers its scalars hold, as far as that is constant.

    Attributes:
        module: The program.
        computation: The one that is called.
        parameters: What each parameter stands for, as the scope and instruction it comes from.
        elements: For the body or condition of a loop, values of the elements of its tuple.
    """

    def __init__(
        self,
        module: Module,
        computation: str,
        parameters: Mapping[int, tuple["Scope", str]] | None = None,
        elements: Mapping[int, int] | None = None,
    ) -> None:
        self.module, self.computation = module, module[computation]
        self.parameters, self.elements = parameters or {}, elements or {}
        self._values: dict[str, int | None] = {}

    def inside(self, caller: Instruction, computation: str) -> "Scope":
        """The scope of a computation that an instruction of this one calls with its operands."""
        given = {i: (self, name) for i, name in enumerate(caller.operands)}
        return Scope(self.module, computation, given)

    def value(self, name: str) -> int | None:
        """The integer that an instruction gives, or None where it is not a known constant."""
        if name not in self._values:
            it = self.computation[name]
            scalar = len(it.types) == 1 and it.types[0].size == 1
            whole = scalar and it.types[0].dtype[0] in "psu"  # pred, s32, u32 and the like
            self._values[name] = self._compute(it) if whole else None
        return self._values[name]

    def _compute(self, it: Instruction) -> int | None:
        if it.opcode == "constant":
            return _integer(it.text)
        if it.opcode in _SAME:
            return self.value(it.operands[0])
        if it.opcode == "parameter":
            source = self.parameters.get(int(it.text))
            return None if source is None else source[0].value(source[1])
        if it.opcode == "get-tuple-element":
            return self.element(it.operands[0], _index(it))
        if it.opcode in ("fusion", "call"):
            called = (it.called("calls") + it.called("to_apply"))[0]
            inner = self.inside(it, called)
            return inner.value(inner.computation.root)
        values = [self.value(operand) for operand in it.operands]
        if None in values:
            return None
        if it.opcode == "compare":
            direction = re.search(r"direction=(\w+)", it.attributes).group(1)
            return int(_COMPARE[direction](*values))
        if it.opcode in _ARITHMETIC and len(values) == 2:
            return _ARITHMETIC[it.opcode](*values)
        return None

    def element(self, name: str, index: int) -> int | None:
        """The integer in one element of a tuple, or None."""
        it = self.computation[name]
        if it.opcode == "tuple":
            return self.value(it.operands[index])
        if it.opcode in _SAME or it.opcode == "opt-barrier":
            return self.element(it.operands[0], index)
        if it.opcode == "parameter":
            if index in self.elements:
                return self.elements[index]
            source = self.parameters.get(int(it.text))
            return None if source is None else source[0].element(source[1], index)
        return None

    def body(self, loop: Instruction) -> "Scope":
        """The scope of a loop's body, in which only what the body passes on unchanged is known."""
        name = loop.called("body")[0]
        body = self.module[name]
        kept = {}
        for index in range(len(loop_elements(body))):
            if _passes_on(body, index):
                value = self.element(loop.operands[0], index)
                if value is not None:
                    kept[index] = value
        return Scope(self.module, name, elements=kept)

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop of this computation runs, or None where that is not known."""
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known.group(1))
        body = self.body(loop)
        condition = loop.called("condition")[0]
        moving = [
            i
            for i in _elements_read(self.module[condition])
            if i not in body.elements and self.element(loop.operands[0], i) is not None
        ]
        if len(moving) != 1:
            return None
        (index,) = moving
        start = self.element(loop.operands[0], index)

        def after(value: int) -> int | None:
            scope = Scope(self.module, body.computation.name, None, {**body.elements, index: value})
            return scope.element(body.computation.root, index)

        def goes_on(value: int) -> int | None:
            scope = Scope(self.module, condition, None, {**body.elements, index: value})
            return scope.value(scope.computation.root)

        first = after(start)
        second = None if first is None else after(first)
        if second is None or goes_on(start) is None or second - first != first - start:
            return None
        return _count(start, first - start, goes_on)


def _count(start: int, step: int, goes_on: Callable[[int], int | None]) -> int | None:
    """The first k at which the condition fails for start + k step; None beyond 2^40."""
    if not goes_on(start):
        return 0
    high = 1
    while goes_on(start + high * step):
        high *= 2
        if high > 1 << 40:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if goes_on(start + middle * step) else (low, middle)
    return high


def loop_elements(body: Computation) -> tuple[str, ...]:
    """Names of what a loop's body puts into its tuple; empty where its root is no tuple."""
    root = body[body.root]
    return root.operands if root.opcode == "tuple" else ()


def _passes_on(body: Computation, index: int) -> bool:
    name = loop_elements(body)[index]
    while body[name].opcode in _SAME:
        name = body[name].operands[0]
    it = body[name]
    if it.opcode != "get-tuple-element" or _index(it) != index:
        return False
    return body[it.operands[0]].opcode == "parameter"


def _elements_read(computation: Computation) -> list[int]:
    reads = (i for i in computation.instructions.values() if i.opcode == "get-tuple-element")
    return sorted({_index(i) for i in reads})


def _index(it: Instruction) -> int:
    return int(re.search(r"index=(\d+)", it.attributes).group(1))


def _integer(text: str) -> int | None:
    if text in ("true", "false"):
        return int(text == "true")
    text = text.strip("{} ")
    return int(text) if re.fullmatch(r"-?\d+", text) else None
