"""What a compiled step sends between chips.

Every collective is counted as often as the loops around it turn, once a channel: the TPU compiler writes
one that it overlaps with other work several times, beside that work, under one channel id.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from earthgpt_jax.plan.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CHANNEL = re.compile(r"channel_id=(\d+)")


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


def collectives(program: Program, *, turns: Mapping[str, int] | None = None, slice_size: int = 0) -> list[Collective]:
    """The collectives of one step, largest total first.

    Args:
        turns: see `Program.runs`.
        slice_size: devices of a slice, where there are several; the program's first so many are the first slice.
    """
    seen: dict[tuple[str, str], Collective] = {}
    for number, run in enumerate(program.runs(turns)):
        kind = run.instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        groups = _groups(run.instruction.rest)
        members = len(groups[0]) if groups else 1
        leaves = bool(slice_size) and any(len({member // slice_size for member in group}) > 1 for group in groups)
        found = Collective(
            kind=kind,
            bytes=_payload(run.instruction, kind, members=members),
            times=run.times,
            members=members,
            leaves_slice=leaves,
            operation=run.instruction.operation,
        )
        channel = _CHANNEL.search(run.instruction.rest)
        key = (kind, channel[1] if channel else f"#{number}")
        if key not in seen or found.times < seen[key].times:
            seen[key] = found
    return sorted(seen.values(), key=lambda each: -each.total)


def by_kind(found: list[Collective]) -> dict[str, int]:
    """Bytes a step of each kind; kinds that do not occur are 0."""
    return {kind: sum(each.total for each in found if each.kind == kind) for kind in KINDS}


def _payload(instruction: Instruction, kind: str, *, members: int) -> int:
    sizes = [array.bytes for array in instruction.arrays]
    if kind == "collective-permute" or (instruction.opcode.endswith("-start") and kind != "all-reduce"):
        return max(sizes)  # (operand, result, semaphores)
    if kind == "reduce-scatter":  # its result is a device's share of the operand
        return sum(sizes) * members
    return sum(sizes)


def _groups(rest: str) -> list[list[int]]:
    """Devices that take part together, by their number in the program; of a permute its pairs."""
    for pattern in (r"replica_groups=\{(\{[\d,{} ]*\})\}", r"source_target_pairs=\{(\{[\d,{} ]*\})\}"):
        if found := re.search(pattern, rest):
            return [[int(one) for one in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = (tuple(int(n) for n in part.split(",")) if part else () for part in found.groups())
        numbers = np.arange(int(np.prod(dims))).reshape(dims)
        return (numbers.transpose(order) if order else numbers).reshape(shape).tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?\(([^)]*)\))? ?\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        numbers = np.arange(int(np.prod(list(sizes.values()))))
        if found[2] and (listed := re.findall(r"\d+", found[2])) and len(listed) == len(numbers):
            numbers = np.asarray([int(one) for one in listed])
        axes = re.findall(r"'(\w+)'", found[3])
        names = list(sizes)
        places = [names.index(axis) for axis in axes]
        others = [place for place in range(len(names)) if place not in places]
        grid = numbers.reshape(tuple(sizes.values())).transpose(*others, *places)
        return grid.reshape(-1, int(np.prod([sizes[axis] for axis in axes]))).tolist()
    return []
