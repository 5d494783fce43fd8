"""The collectives of a compiled step: what the chips send to each other.

A collective counts as often as the surrounding loops execute it, and once per channel: if the TPU compiler overlaps a
collective with other work, it emits the collective several times with the same channel id. Traffic between slices
appears as a transfer between a chip and its host's runtime, named after the collective it belongs to.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from earthgpt_jax.aot.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a step.

    Attributes:
        bytes: size of the larger side on one device, per execution: the result of an all-gather, the operand of a
            reduce-scatter.
        times: number of executions per step.
        group_size: number of devices in each group.
        crosses_slices: whether a group spans several slices.
        operation: JAX's name of the operation it was compiled from.
    """

    kind: str
    bytes: int
    times: int
    group_size: int
    crosses_slices: bool
    operation: str

    @property
    def total(self) -> int:
        """Bytes per step."""
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Smallest number of bytes that a device must send per step (that of a ring algorithm)."""
        if self.kind == "collective-permute":
            return float(self.total)
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.total * (self.group_size - 1) / self.group_size


def collectives(program: Program, *, trip_counts: Mapping[str, int] | None = None, slices: int = 1) -> list[Collective]:
    """Return the collectives of one step, largest total first.

    Args:
        trip_counts: see `Program.executions`.
        slices: number of slices that the program runs on.
    """
    seen: dict[tuple[str, str], Collective] = {}
    for number, execution in enumerate(program.executions(trip_counts)):
        instruction = execution.instruction
        kind = instruction.opcode.removesuffix("-start")
        between = _BETWEEN_SLICES.search(instruction.rest) if kind == "send" else None
        if between:
            kind, group_size = between[1].lower().replace("_", "-"), slices
            size = instruction.arrays[0].bytes
        elif kind in KINDS:
            group_size = _group_size(instruction.rest)
            size = _payload(instruction, kind, group_size=group_size)
        else:
            continue
        collective = Collective(
            kind=kind,
            bytes=size,
            times=execution.times,
            group_size=group_size,
            crosses_slices=between is not None,
            operation=instruction.operation,
        )
        key = (instruction.opcode, channel_of(instruction) or f"#{number}")
        if key not in seen or collective.times < seen[key].times:
            seen[key] = collective
    return sorted(seen.values(), key=lambda collective: -collective.total)


def channel_of(instruction: Instruction) -> str:
    """Return the channel id, which all copies of one collective share; "" if there is none."""
    match = _CHANNEL.search(instruction.rest)
    return match[1] if match else ""


def by_kind(entries: Sequence[Collective]) -> dict[str, int]:
    """Return the bytes per step of each kind of collective; 0 for kinds that do not occur."""
    kinds = dict.fromkeys((*KINDS, *(entry.kind for entry in entries)))
    return {kind: sum(entry.total for entry in entries if entry.kind == kind) for kind in kinds}


def _payload(instruction: Instruction, kind: str, *, group_size: int) -> int:
    """Return `Collective.bytes` of an instruction."""
    sizes = [array.bytes for array in instruction.arrays]
    if kind == "collective-permute" or (instruction.opcode.endswith("-start") and kind != "all-reduce"):
        return max(sizes)  # (operand, result, semaphores)
    if kind == "reduce-scatter":  # its result is one device's share of the operand
        return sum(sizes) * group_size
    return sum(sizes)


def _group_size(rest: str) -> int:
    """Parse the number of devices per group from `replica_groups`, in any of its three notations."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?\([^)]*\))? ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return 1
