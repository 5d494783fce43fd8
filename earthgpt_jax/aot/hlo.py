"""Parse optimised HLO text and iterate over its instructions with their execution counts.

The compiler's own totals (`cost_analysis`) count the body of a loop once. Here it counts as often as the loop runs it.
The trip count of a `scan` is a constant in the loop condition. A loop whose trip count depends on the data is in a
named scope, and the caller supplies the trip count of that scope.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2,
    "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|(?:called|branch)_computations=\{([^}]*)\}")
_OPERATION = re.compile(r'op_name="([^"]*)"')
_HOST = 5  # memory space of the host in TPU layouts; 0 is HBM, the others are on the chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """An array in a program.

    Attributes:
        space: memory space: 0 is HBM, 5 is host memory, the others are small memories on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        return math.ceil(_BYTES.get(self.dtype, 0) * math.prod(self.shape))

    @property
    def in_hbm(self) -> bool:
        return self.space == 0

    @property
    def on_host(self) -> bool:
        return self.space == _HOST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction; `rest` is the text after the opening parenthesis of the opcode."""

    name: str
    result: str
    opcode: str
    rest: str
    root: bool = False

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """Arrays of the result; several if it is a tuple."""
        arrays = []
        for dtype, dims, layout in _ARRAY.findall(self.result):
            space = re.search(r"S\((\d+)\)", layout)
            shape = tuple(int(d) for d in dims.split(",") if d)
            arrays.append(Array(dtype=dtype, shape=shape, space=int(space[1]) if space else 0))
        return arrays

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return _NAME.findall(self.rest.split(")")[0])

    @functools.cached_property
    def operation(self) -> str:
        """JAX's name of the operation it was compiled from (`op_name`); "" if there is none."""
        match = _OPERATION.search(self.rest)
        return match[1] if match else ""

    @functools.cached_property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        matches = _CALLED.findall(self.rest)
        return list(itertools.chain(*([one] if one else re.findall(r"[\w.\-]+", several) for one, several in matches)))


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """An instruction that a step executes `times` times.

    Attributes:
        computation: the computation it belongs to.
        fused: whether it is inside a fusion, which the chip executes as one operation.
    """

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A parsed program: its computations by name, and the name of the entry computation."""

    computations: dict[str, Computation]
    entry: str

    def executions(self, trip_counts: Mapping[str, int] | None = None) -> Iterator[Execution]:
        """Yield every instruction that a step executes, called computations included.

        Args:
            trip_counts: named scope -> trip count of the loop in it, for loops whose trip count is not a constant of
                the program. Such loops outside these scopes count once.
        """
        yield from self._executions(self.entry, trip_counts=trip_counts or {}, times=1, fused=False)

    def _executions(self, name: str, *, trip_counts: Mapping[str, int], times: int, fused: bool) -> Iterator[Execution]:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            yield Execution(instruction=instruction, computation=computation, times=times, fused=fused)
            is_loop = instruction.opcode == "while"
            inside = times * (self._trip_count(instruction, computation, trip_counts) if is_loop else 1)
            for called in instruction.called:
                within = fused or instruction.opcode in ("fusion", "reduce", "scatter", "custom-call")
                yield from self._executions(called, trip_counts=trip_counts, times=inside, fused=within)

    def _trip_count(self, loop: Instruction, outer: Computation, trip_counts: Mapping[str, int]) -> int:
        """Return the compiler's trip count, that of a loop that counts up to a constant, or the caller's.

        The compiler may have peeled or unrolled iterations, so the counter may start above 0 or advance by more than 1.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        parts = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.rest))
        condition, body = (self.computations.get(parts.get(name, ""), {}) for name in ("condition", "body"))
        for compare in condition.values():
            if compare.opcode != "compare" or "direction=LT" not in compare.rest:
                continue
            counter, end = compare.operands
            last, index = _constant(condition, end), _tuple_index(condition, counter)
            if last is None or index is None:
                continue
            first, step = 0, 1
            if initial := outer.get(loop.operands[0]):
                first = _constant(outer, initial.operands[index]) or 0 if initial.opcode == "tuple" else 0
            result = next((instruction for instruction in body.values() if instruction.root), None)
            added = body.get(result.operands[index]) if result and result.opcode == "tuple" else None
            if added and added.opcode == "add":
                step = next((value for value in (_constant(body, name) for name in added.operands) if value), 1)
            return max(0, -(-(last - first) // step))
        return next((count for scope, count in trip_counts.items() if scope in loop.operation), 1)


def _constant(computation: Computation, name: str) -> int | None:
    """Return the value of an integer constant, looking through copies; None if it is not a constant."""
    instruction = computation.get(name)
    if instruction and instruction.opcode == "copy":
        return _constant(computation, instruction.operands[0])
    value = re.match(r"(-?\d+)\)", instruction.rest) if instruction and instruction.opcode == "constant" else None
    return int(value[1]) if value else None


def _tuple_index(computation: Computation, name: str) -> int | None:
    """Return the index of a `get-tuple-element` instruction; None if it is another instruction."""
    instruction = computation.get(name)
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    index = re.search(r"index=(\d+)", instruction.rest)
    return int(index[1]) if index else None


def parse(text: str) -> Program:
    """Parse the text of a compiled module (`jax.stages.Compiled.as_text()`)."""
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            root, name, result, opcode, rest = match.groups()
            current[name] = Instruction(name=name, result=result, opcode=opcode, rest=rest, root=bool(root))
    return Program(computations=computations, entry=entry)
