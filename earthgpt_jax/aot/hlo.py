"""A compiled program's optimised HLO text, as what runs: every instruction with how often a step runs it.

The compiler's own totals (`cost_analysis`) count the body of a loop once. Here a body counts as often as its loop
turns: scans turn a constant number of times, which stands in the loop's condition; loops whose number of turns
depends on data have a named scope, and who asks says how often those turn.
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
_HOST = 5  # the compiler's number for the host's memory; 0 is HBM, the others are on the chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """Attributes:
    space: 0 is HBM, 5 the host's memory; others are small memories on the chip.
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
    """One line; `rest` is what stands behind the opcode's opening parenthesis."""

    name: str
    result: str
    opcode: str
    rest: str
    root: bool = False

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """Of the result; several where it is a tuple."""
        found = []
        for dtype, dims, layout in _ARRAY.findall(self.result):
            space = re.search(r"S\((\d+)\)", layout)
            shape = tuple(int(d) for d in dims.split(",") if d)
            found.append(Array(dtype=dtype, shape=shape, space=int(space[1]) if space else 0))
        return found

    @functools.cached_property
    def operands(self) -> list[str]:
        return _NAME.findall(self.rest.split(")")[0])

    @functools.cached_property
    def operation(self) -> str:
        """Where in the program it comes from, as JAX names it."""
        found = _OPERATION.search(self.rest)
        return found[1] if found else ""

    @functools.cached_property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        found = _CALLED.findall(self.rest)
        return list(itertools.chain(*([one] if one else re.findall(r"[\w.\-]+", several) for one, several in found)))


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """An instruction of a computation, run `times` a step; `fused`: inside one that the chip runs as a whole."""

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    computations: dict[str, Computation]
    entry: str

    def runs(self, turns: Mapping[str, int] | None = None) -> Iterator[Run]:
        """Every instruction that a step runs.

        Args:
            turns: named scope -> how often a loop in it turns whose turns are no constant of the program; such
                loops in no scope named here count as one turn.
        """
        yield from self._runs(self.entry, turns=turns or {}, times=1, fused=False)

    def _runs(self, name: str, *, turns: Mapping[str, int], times: int, fused: bool) -> Iterator[Run]:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            yield Run(instruction=instruction, computation=computation, times=times, fused=fused)
            inside = times * (self._turns(instruction, computation, turns) if instruction.opcode == "while" else 1)
            for called in instruction.called:
                within = fused or instruction.opcode in ("fusion", "reduce", "scatter", "custom-call")
                yield from self._runs(called, turns=turns, times=inside, fused=within)

    def _turns(self, loop: Instruction, around: Computation, stated: Mapping[str, int]) -> int:
        """What the compiler says; or of a loop that counts up to a constant, as scans do; or what is stated.

        The compiler may have taken some turns out of the loop, so that it begins later or takes steps of several.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        parts = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.rest))
        condition, body = (self.computations.get(parts.get(name, ""), {}) for name in ("condition", "body"))
        for compare in condition.values():
            if compare.opcode != "compare" or "direction=LT" not in compare.rest:
                continue
            counter, end = compare.operands
            last, place = _constant(condition, end), _place(condition, counter)
            if last is None or place is None:
                continue
            first, step = 0, 1
            if given := around.get(loop.operands[0]):
                first = _constant(around, given.operands[place]) or 0 if given.opcode == "tuple" else 0
            ends = next((each for each in body.values() if each.root), None)
            added = body.get(ends.operands[place]) if ends and ends.opcode == "tuple" else None
            if added and added.opcode == "add":
                step = next((value for value in (_constant(body, each) for each in added.operands) if value), 1)
            return max(0, -(-(last - first) // step))
        return next((turns for scope, turns in stated.items() if scope in loop.operation), 1)


def _constant(computation: Computation, name: str) -> int | None:
    found = computation.get(name)
    if found and found.opcode == "copy":
        return _constant(computation, found.operands[0])
    value = re.match(r"(-?\d+)\)", found.rest) if found and found.opcode == "constant" else None
    return int(value[1]) if value else None


def _place(computation: Computation, name: str) -> int | None:
    """Which part of the loop's tuple this is."""
    found = computation.get(name)
    index = re.search(r"index=(\d+)", found.rest) if found and found.opcode == "get-tuple-element" else None
    return int(index[1]) if index else None


def parse(text: str) -> Program:
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            root, name, result, opcode, rest = found.groups()
            current[name] = Instruction(name=name, result=result, opcode=opcode, rest=rest, root=bool(root))
    return Program(computations=computations, entry=entry)
