"""Collectives of a compiled program, from its optimised HLO text.

Every collective is counted as often as the loops around it turn, once a channel: the TPU compiler writes
one that it overlaps with other work several times, beside that work, under one channel id.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2,
    "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|(?:called|branch)_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OPERATION = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a step.

    Attributes:
        bytes: of a device's full side of it each time: an all-gather's result, a reduce-scatter's operand.
        times: how often a step does it.
        operation: where in the program it comes from, as JAX names it.
    """

    kind: str
    bytes: int
    times: int
    operation: str

    @property
    def total(self) -> int:
        return self.bytes * self.times


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Instruction:
    name: str
    result: str
    opcode: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """The collectives of one step, largest total first.

    A loop whose number of turns is not a constant of the program counts as one turn.
    """
    computations, entry = _parse(text)
    seen: dict[tuple[str, str], Collective] = {}
    for number, (instruction, times) in enumerate(_walk(computations, entry, times=1)):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = _CHANNEL.search(instruction.rest)
        operation = _OPERATION.search(instruction.rest)
        found = Collective(
            kind=kind,
            bytes=_payload(instruction, kind),
            times=times,
            operation=operation[1] if operation else "",
        )
        key = (kind, channel[1] if channel else f"#{number}")
        if key not in seen or found.times < seen[key].times:
            seen[key] = found
    return sorted(seen.values(), key=lambda each: -each.total)


def by_kind(found: list[Collective]) -> dict[str, int]:
    """Bytes a step of each kind; kinds that do not occur are 0."""
    return {kind: sum(each.total for each in found if each.kind == kind) for kind in KINDS}


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_Instruction(name=found[1], result=found[2], opcode=found[3], rest=found[4]))
    return computations, entry


def _walk(computations: dict[str, list[_Instruction]], name: str, *, times: int) -> Iterator[tuple[_Instruction, int]]:
    """Every instruction that running the computation `name` runs, with how often."""
    for instruction in computations.get(name, ()):
        yield instruction, times
        turns = _turns(computations, instruction) if instruction.opcode == "while" else 1
        for one, several in _CALLED.findall(instruction.rest):
            for called in [one] if one else re.findall(r"[\w.\-]+", several):
                yield from _walk(computations, called, times=times * turns)


def _turns(computations: dict[str, list[_Instruction]], loop: _Instruction) -> int:
    """What the compiler says; or of a loop that counts from 0 up to a constant, as scans do; 1 of others."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    instructions = computations.get(condition[1], []) if condition else []
    constants = {
        each.name: int(value[1])
        for each in instructions
        if each.opcode == "constant" and (value := re.match(r"(-?\d+)\)", each.rest))
    }
    for each in instructions:
        if each.opcode == "compare" and "direction=LT" in each.rest:
            named = [constants[operand] for operand in re.findall(r"%([\w.\-]+)", each.rest) if operand in constants]
            if named:
                return named[0]
    return 1


def _payload(instruction: _Instruction, kind: str) -> int:
    sizes = [
        int(_BYTES.get(dtype, 0) * math.prod(int(d) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(instruction.result)
    ]
    if kind == "collective-permute" or (instruction.opcode.endswith("-start") and kind != "all-reduce"):
        return max(sizes)  # (operand, result, semaphores)
    if kind == "reduce-scatter":  # its result is a device's share of the operand
        return sum(sizes) * _group_size(instruction.rest)
    return sum(sizes)


def _group_size(rest: str) -> int:
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?\([^)]*\))? ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return 1
