"""What a compiled step multiplies, and what it moves between a chip and its memory.

From the optimised program, loops counted as often as they turn (`hlo`). Products: of every convolution and dot; the
TPU compiler writes matrix products as convolutions. Attention's kernel is opaque: its products are not in here, its
reads and writes are. Bytes: what each operation reads and writes in HBM, a fusion as a whole; arrays that the compiler
keeps on the chip cost nothing, a slice of an array costs the slice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from earthgpt_jax.aot.collectives import KINDS, channel_of
from earthgpt_jax.aot.hlo import Array, Computation, Instruction, Program

_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "async-start", "async-update", "add-dependency",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one step on one chip.

    Attributes:
        host_bytes: between the chip and the host's memory.
    """

    flops: float
    hbm_bytes: float
    host_bytes: float


def costs(program: Program, *, turns: Mapping[str, int] | None = None) -> Costs:
    """Args:
    turns: see `Program.runs`.
    """
    flops, hbm, host = 0.0, 0.0, 0.0
    overlapped: dict[str, float] = {}  # collectives inside of fusions, which the compiler writes several times
    for run in program.runs(turns):
        flops += run.times * _products(run.instruction, run.computation)
        if run.fused and run.instruction.opcode in KINDS:
            written = run.times * _size(run.instruction.arrays, lambda array: array.in_hbm)
            channel = channel_of(run.instruction)
            overlapped[channel] = min(written, overlapped.get(channel, written))
        if not run.fused:
            hbm += run.times * _moved(program, run.instruction, run.computation, lambda array: array.in_hbm)
            host += run.times * _moved(program, run.instruction, run.computation, lambda array: array.on_host)
    return Costs(flops=flops, hbm_bytes=hbm + sum(overlapped.values()), host_bytes=host)


def _products(instruction: Instruction, computation: Computation) -> float:
    if instruction.opcode not in ("convolution", "dot"):
        return 0.0
    result = instruction.arrays[0].shape
    left, right = (computation[operand].arrays[0].shape for operand in instruction.operands[:2])
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        contracted = [int(axis) for axis in found[1].split(",") if axis] if found else []
        return 2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    assert labels, instruction.rest
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.rest) or [""] * 2)[1]))
    total = 2.0 * right[labels[2].index("i")]
    for label, size in zip(labels[3], result, strict=True):
        if not label.isdigit():
            total *= size
            continue
        axis = int(label)
        total *= _overlaps(
            inputs=left[labels[1].index(label)],
            outputs=size,
            size=right[labels[2].index(label)],
            stride=_entry(window, "stride", axis, 1),
            pad=_entry(window, "pad", axis, 0),
            dilated_input=_entry(window, "lhs_dilate", axis, 1),
            dilated_kernel=_entry(window, "rhs_dilate", axis, 1),
        )
    return total


def _entry(window: Mapping[str, str], name: str, axis: int, default: int) -> int:
    """Of one axis in `size=1x3 pad=0_0x1_1`; of a padding, what stands before."""
    return int(window[name].split("x")[axis].split("_")[0]) if name in window else default


@functools.cache
def _overlaps(
    *, inputs: int, outputs: int, size: int, stride: int, pad: int, dilated_input: int, dilated_kernel: int
) -> int:
    """Pairs of an output and a kernel position that meet an input, no padding or gap, along one axis."""
    at = np.arange(outputs)[:, None] * stride + np.arange(size) * dilated_kernel - pad
    return int(np.sum((at >= 0) & (at <= (inputs - 1) * dilated_input) & (at % dilated_input == 0)))


Counted = Callable[[Array], bool]


def _moved(program: Program, instruction: Instruction, computation: Computation, counted: Counted) -> float:
    """Bytes that an instruction reads and writes in the memory that `counted` selects."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")) or "AllocateBuffer" in instruction.rest:
        return 0.0
    if opcode == "fusion":
        inner = program.computations[instruction.called[0]]
        read = _read_by_fusion(program, instruction, computation, counted)
        return read + _written(program, inner, _root(inner), counted, results=instruction.arrays)
    base = opcode.removesuffix("-start")
    operands = [computation[name].arrays for name in instruction.operands if name in computation]
    if base in _UPDATES:
        update = operands[_UPDATES[base]][0]
        written = instruction.arrays[0] if opcode == base else instruction.arrays[-2]
        return float(update.bytes * (counted(update) + counted(written)))
    if base == "copy" and opcode != base:  # (destination, source, semaphore)
        return _size(instruction.arrays[:2], counted)
    if base in _SLICES:
        part = instruction.arrays[0] if opcode == base else instruction.arrays[-2]
        return part.bytes * (counted(operands[0][0]) + counted(part))
    read = sum(_size(arrays, counted) for arrays in operands)
    return read + _size(instruction.arrays if opcode == base else instruction.arrays[len(operands) :], counted)


def _size(arrays: list[Array], counted: Counted) -> float:
    return float(sum(array.bytes for array in arrays if counted(array)))


def _root(computation: Computation) -> Instruction:
    return next(each for each in computation.values() if each.root)


def _read_by_fusion(program: Program, fusion: Instruction, computation: Computation, counted: Counted) -> float:
    inner = program.computations[fusion.called[0]]
    parameters = _parameters(inner)
    total = 0.0
    for place, name in enumerate(fusion.operands):
        source = computation.get(name)
        if source is None or place not in parameters:
            continue
        arrays = [array for array in source.arrays if counted(array)]
        if arrays:
            total += min(_size(arrays, counted), _read(program, inner, parameters[place]))
    return total


def _parameters(computation: Computation) -> dict[int, Instruction]:
    return {
        int(each.rest.split(")")[0]): each for each in computation.values() if each.opcode == "parameter"
    }  # fmt: skip


def _read(program: Program, computation: Computation, value: Instruction) -> float:
    """Bytes that the users of a value inside a fusion read of it."""
    total = 0.0
    whole = float(sum(array.bytes for array in value.arrays))
    for user in computation.values():
        if value.name not in user.operands:
            continue
        if user.opcode in _SLICES and user.operands[0] == value.name:
            total += user.arrays[0].bytes
        elif user.opcode in _UPDATES and user.operands[0] == value.name:
            pass  # in place
        elif user.opcode in KINDS or (user.opcode == "tuple" and user.root):
            pass  # a collective under way is handed on from fusion to fusion; see `overlapped`
        elif user.opcode in ("bitcast", "get-tuple-element"):
            total += _read(program, computation, user)
        elif user.opcode == "fusion":
            inner = program.computations[user.called[0]]
            parameters = _parameters(inner)
            places = [place for place, name in enumerate(user.operands) if name == value.name]
            total += sum(_read(program, inner, parameters[place]) for place in places if place in parameters)
        else:
            return whole
    return min(total, whole)


def _written(
    program: Program, computation: Computation, value: Instruction, counted: Counted, *, results: list[Array]
) -> float:
    """Bytes that a fusion writes, whose `results` are made by the instruction `value` in it."""
    if value.opcode == "tuple":
        parts = [computation[name] for name in value.operands]
        if len(parts) == len(results):
            pairs = zip(parts, results, strict=True)
            return sum(_written(program, computation, part, counted, results=[result]) for part, result in pairs)
    if value.opcode == "bitcast" and value.operands[0] in computation:
        return _written(program, computation, computation[value.operands[0]], counted, results=results)
    if value.opcode == "parameter" or value.opcode in KINDS:
        return 0.0
    if value.opcode in _UPDATES:
        update = computation[value.operands[_UPDATES[value.opcode]]].arrays
        return sum(array.bytes for array in update) if any(counted(array) for array in results) else 0.0
    if value.opcode == "fusion":
        inner = program.computations[value.called[0]]
        return _written(program, inner, _root(inner), counted, results=results)
    return _size(results, counted)
