"""What a compiled step sends between chips.

Every collective is counted as often as the loops around it turn, once a channel: the TPU compiler writes
one that it overlaps with other work several times, beside that work, under one channel id. What crosses from slice to
slice it writes as a chip's transfer with the runtime of its host, named after the collective that it is a part of.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from earthgpt_jax.aot.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a step.

    Attributes:
        bytes: of a device's full side of it each time: an all-gather's result, a reduce-scatter's operand.
        times: how often a step does it.
        members: devices that take part in it together.
        leaves_slice: whether some of those are on another slice.
        operation: where in the program it comes from, as JAX names it.
    """

    kind: str
    bytes: int
    times: int
    members: int
    leaves_slice: bool
    operation: str

    @property
    def total(self) -> int:
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least, in a step: around a ring, as all algorithms that send the least."""
        if self.kind == "collective-permute":
            return float(self.total)
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.total * (self.members - 1) / self.members


def collectives(program: Program, *, turns: Mapping[str, int] | None = None, slices: int = 1) -> list[Collective]:
    """The collectives of one step, largest total first.

    Args:
        turns: see `Program.runs`.
        slices: that the program runs on.
    """
    seen: dict[tuple[str, str], Collective] = {}
    for number, run in enumerate(program.runs(turns)):
        instruction = run.instruction
        kind = instruction.opcode.removesuffix("-start")
        between = _BETWEEN_SLICES.search(instruction.rest) if kind == "send" else None
        if between:
            kind, members = between[1].lower().replace("_", "-"), slices
            size = instruction.arrays[0].bytes
        elif kind in KINDS:
            members = _members(instruction.rest)
            size = _payload(instruction, kind, members=members)
        else:
            continue
        found = Collective(
            kind=kind,
            bytes=size,
            times=run.times,
            members=members,
            leaves_slice=between is not None,
            operation=instruction.operation,
        )
        key = (instruction.opcode, channel_of(instruction) or f"#{number}")
        if key not in seen or found.times < seen[key].times:
            seen[key] = found
    return sorted(seen.values(), key=lambda each: -each.total)


def channel_of(instruction: Instruction) -> str:
    """What all writings of one collective have in common; "" where there is nothing."""
    found = _CHANNEL.search(instruction.rest)
    return found[1] if found else ""


def by_kind(found: list[Collective]) -> dict[str, int]:
    """Bytes a step of each kind; kinds that do not occur are 0."""
    kinds = dict.fromkeys((*KINDS, *(each.kind for each in found)))
    return {kind: sum(each.total for each in found if each.kind == kind) for kind in kinds}


def _payload(instruction: Instruction, kind: str, *, members: int) -> int:
    sizes = [array.bytes for array in instruction.arrays]
    if kind == "collective-permute" or (instruction.opcode.endswith("-start") and kind != "all-reduce"):
        return max(sizes)  # (operand, result, semaphores)
    if kind == "reduce-scatter":  # its result is a device's share of the operand
        return sum(sizes) * members
    return sum(sizes)


def _members(rest: str) -> int:
    """Devices that take part together."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?\([^)]*\))? ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return 1
