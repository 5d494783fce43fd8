"""FLOPs and memory traffic of a compiled step.

Both are read from the optimised program, with loop bodies multiplied by their trip counts (`hlo`).

FLOPs are those of every convolution and dot; the TPU compiler emits matrix products as convolutions. The attention
kernel is opaque: its FLOPs are missing, its reads and writes are included. Memory traffic is what each operation, or
fusion as a whole, reads and writes in HBM. Arrays that the compiler keeps on the chip cost nothing; reading a slice of
an array costs the slice.
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
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # index of the operand that is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Cost of one step on one chip.

    Attributes:
        flops: of matrix products and convolutions, without attention's own.
        hbm_bytes: read from and written to HBM.
        host_bytes: moved between the chip and host memory.
    """

    flops: float
    hbm_bytes: float
    host_bytes: float


def costs(program: Program, *, trip_counts: Mapping[str, int] | None = None) -> Costs:
    """Return the cost of one step.

    Args:
        trip_counts: see `Program.executions`.
    """
    flops, hbm, host = 0.0, 0.0, 0.0
    overlapped: dict[str, float] = {}  # channel -> bytes of collectives inside fusions, which are emitted several times
    for execution in program.executions(trip_counts):
        instruction, computation, times = execution.instruction, execution.computation, execution.times
        flops += times * _flops(instruction, computation)
        if execution.fused and instruction.opcode in KINDS:
            written = times * _size(instruction.arrays, lambda array: array.in_hbm)
            channel = channel_of(instruction)
            overlapped[channel] = min(written, overlapped.get(channel, written))
        if not execution.fused:
            hbm += times * _moved(program, instruction, computation, lambda array: array.in_hbm)
            host += times * _moved(program, instruction, computation, lambda array: array.on_host)
    return Costs(flops=flops, hbm_bytes=hbm + sum(overlapped.values()), host_bytes=host)


def _flops(instruction: Instruction, computation: Computation) -> float:
    if instruction.opcode not in ("convolution", "dot"):
        return 0.0
    result = instruction.arrays[0].shape
    left, right = (computation[operand].arrays[0].shape for operand in instruction.operands[:2])
    if instruction.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        contracted = [int(axis) for axis in match[1].split(",") if axis] if match else []
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
        total *= _multiplications(
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
    """Return the entry of one axis, for example of `pad=0_0x1_1`; of a padding, the low side."""
    return int(window[name].split("x")[axis].split("_")[0]) if name in window else default


@functools.cache
def _multiplications(
    *, inputs: int, outputs: int, size: int, stride: int, pad: int, dilated_input: int, dilated_kernel: int
) -> int:
    """Count the pairs of output and kernel positions along one axis that touch an input, not padding or a gap."""
    position = np.arange(outputs)[:, None] * stride + np.arange(size) * dilated_kernel - pad
    inside = (position >= 0) & (position <= (inputs - 1) * dilated_input)
    return int(np.sum(inside & (position % dilated_input == 0)))


Counted = Callable[[Array], bool]


def _moved(program: Program, instruction: Instruction, computation: Computation, counted: Counted) -> float:
    """Return the bytes that an instruction reads and writes in the memory that `counted` selects."""
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
    return next(instruction for instruction in computation.values() if instruction.root)


def _read_by_fusion(program: Program, fusion: Instruction, computation: Computation, counted: Counted) -> float:
    """Return the bytes that a fusion reads of its operands."""
    inner = program.computations[fusion.called[0]]
    parameters = _parameters(inner)
    total = 0.0
    for number, name in enumerate(fusion.operands):
        source = computation.get(name)
        if source is None or number not in parameters:
            continue
        arrays = [array for array in source.arrays if counted(array)]
        if arrays:
            total += min(_size(arrays, counted), _read(program, inner, parameters[number]))
    return total


def _parameters(computation: Computation) -> dict[int, Instruction]:
    """Return the parameters of a computation by their numbers."""
    parameters = [instruction for instruction in computation.values() if instruction.opcode == "parameter"]
    return {int(parameter.rest.split(")")[0]): parameter for parameter in parameters}


def _read(program: Program, computation: Computation, value: Instruction) -> float:
    """Return the bytes of a value that its users inside a fusion read."""
    total = 0.0
    size = float(sum(array.bytes for array in value.arrays))
    for user in computation.values():
        if value.name not in user.operands:
            continue
        if user.opcode in _SLICES and user.operands[0] == value.name:
            total += user.arrays[0].bytes
        elif user.opcode in _UPDATES and user.operands[0] == value.name:
            pass  # updated in place
        elif user.opcode in KINDS or (user.opcode == "tuple" and user.root):
            pass  # a collective in progress is passed from fusion to fusion; see `overlapped` in `costs`
        elif user.opcode in ("bitcast", "get-tuple-element"):
            total += _read(program, computation, user)
        elif user.opcode == "fusion":
            inner = program.computations[user.called[0]]
            parameters = _parameters(inner)
            numbers = [number for number, name in enumerate(user.operands) if name == value.name]
            total += sum(_read(program, inner, parameters[number]) for number in numbers if number in parameters)
        else:
            return size
    return min(total, size)


def _written(
    program: Program, computation: Computation, value: Instruction, counted: Counted, *, results: list[Array]
) -> float:
    """Return the bytes that a fusion writes; its instruction `value` produces the arrays `results`."""
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
