"""Plan what surrounds the steps of a run: start, checkpoints, validation and the finished model.

Sizes follow from the shapes and shardings of the program (`program.step_inputs`) and from the rules of the code that
loads (`models.loading`), saves (`training.checkpoints`) and writes (`models.model_writer`). A process runs on each
virtual machine of the slice. Its devices hold consecutive parts of an array along `tensor`, then `fsdp`, then `data`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from earthgpt_jax.aot.program import GIB, StepInputs, bytes_per_device
from earthgpt_jax.config import Config, ModelContents, Stage
from earthgpt_jax.models import loading, model_writer
from earthgpt_jax.models.quantized import Int8, is_quantized

PROCESS_GIB = 4.0  # Python, JAX, the compiler, buffers and data workers of a process, apart from the model's arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of one process in GB/s; by default what one process reaches on a network disk or in a bucket."""

    read: float = 1.0
    write: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase of a run needs.

    Attributes:
        device_gib: memory of the chip that needs the most.
        host_gib: memory of the process that needs the most.
        read_bytes, written_bytes: of all processes together.
        process_read_bytes, process_written_bytes: of the process with the most.
        seconds: for reading or writing at the given rates.
    """

    name: str
    device_gib: float
    host_gib: float
    read_bytes: int = 0
    written_bytes: int = 0
    process_read_bytes: int = 0
    process_written_bytes: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run needs around its steps.

    Attributes:
        checkpoint_bytes: arrays of a checkpoint, before compression.
        model_bytes: arrays of a model directory with all parameters.
        adapter_bytes: arrays of a directory of adapters alone; None if the stage trains none.
        problems: why it does not fit; empty if it does.
    """

    processes: int
    host_limit_gib: float
    checkpoint_bytes: int
    model_bytes: int
    adapter_bytes: int | None
    phases: tuple[Phase, ...]
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """The devices and the memory of a process."""

    devices: int
    memory_gib: float


def plan_run(
    config: Config,
    inputs: StepInputs,
    *,
    host: Host,
    hbm_gib: float,
    rates: Rates = Rates(),
    initial: Mapping[str, int] | None = None,
    step_gib: float | None = None,
    offloaded_gib: float = 0.0,
    validation_gib: float | None = None,
) -> RunPlan:
    """Return what a run needs around its steps.

    Args:
        inputs: arguments of the step on the mesh of the run.
        host: what each process has.
        hbm_gib: memory of a device.
        rates: rates of one process.
        initial: path -> bytes in the files of the initial model; default: its parameters in the compute dtype.
        step_gib: memory of a device during a step; None: unknown.
        offloaded_gib: host memory that the step needs for each device.
        validation_gib: memory of a device during validation; None: not validated or unknown.
    """
    mesh = inputs.placement.mesh
    processes = max(1, math.prod(mesh.shape.values()) // host.devices)
    resident = (bytes_per_device(inputs.state) + bytes_per_device(inputs.frozen)) / GIB
    params: dict[str, Any] = {**inputs.state.trainable, **inputs.frozen}
    stored = stored_sizes(config, params)
    if initial is None:
        itemsize = jnp.dtype(config.model.compute_dtype).itemsize
        initial = {path: math.prod(leaf.shape) * itemsize for path, leaf in params.items() if "/adapter/" not in path}
    phases = [
        _start(config, inputs, initial, processes=processes, host=host, resident=resident, rates=rates),
        Phase(name="step", device_gib=step_gib or resident, host_gib=offloaded_gib * host.devices),
        _save(inputs, processes=processes, host=host, resident=step_gib or resident, rates=rates),
        _finish(config, inputs, stored, processes=processes, resident=resident, rates=rates),
    ]
    if validation_gib is not None:
        phases.insert(2, Phase(name="validation", device_gib=validation_gib, host_gib=0.0))
    phases = [dataclasses.replace(phase, host_gib=phase.host_gib + PROCESS_GIB) for phase in phases]
    adapters = sum(size for path, size in stored.items() if "/adapter/" in path)
    return RunPlan(
        processes=processes,
        host_limit_gib=host.memory_gib,
        checkpoint_bytes=_bytes(inputs.state),
        model_bytes=sum(stored.values()),
        adapter_bytes=adapters if config.stage is Stage.INSTRUCT else None,
        phases=tuple(phases),
        problems=tuple(
            f"{phase.name}: needs {needed:.2f} GiB of {what} memory, of which there are {limit:.2f}"
            for phase in phases
            for what, needed, limit in (
                ("device", phase.device_gib, hbm_gib),
                ("host", phase.host_gib, host.memory_gib),
            )
            if needed > limit
        ),
    )


def stored_sizes(config: Config, params: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of every parameter in the finished model."""
    compute = jnp.dtype(config.model.compute_dtype)
    return {
        path: math.prod(leaf.shape) * (compute if isinstance(leaf, Int8) else np.dtype(leaf.dtype)).itemsize
        for path, leaf in params.items()
    }


def _start(
    config: Config,
    inputs: StepInputs,
    initial: Mapping[str, int],
    *,
    processes: int,
    host: Host,
    resident: float,
    rates: Rates,
) -> Phase:
    """Each process reads the part of each parameter that its devices hold, in pieces; see `loading`."""
    read, largest, passing = 0, 0, 0.0
    params: dict[str, Any] = {**inputs.state.trainable, **inputs.frozen}
    for path, size in initial.items():
        leaf = params[path]
        array: Any = leaf.values if isinstance(leaf, Int8) else leaf
        part = process_fraction(array, devices=host.devices)
        read += round(part * size)
        quantized = path not in inputs.state.trainable and is_quantized(path, config.frozen_dtype)
        itemsize = 4 if quantized else np.dtype(array.dtype).itemsize
        held = round(part * math.prod(array.shape) * itemsize)
        length = array.shape[0] if array.shape else 1
        share = loading.rows_per_piece(array.shape, array.sharding, row_bytes=held // length) / length
        buffered = max(min(size, loading.PIECE_BYTES), size // length)  # rows as they are in the file
        largest = max(largest, round(share * held) + buffered)
        if quantized:  # on the devices, from fp32
            passing = max(passing, 4 * share * math.prod(array.sharding.shard_shape(array.shape)))
    return Phase(
        name="start",
        device_gib=resident + passing / GIB,
        host_gib=loading.READERS * largest / GIB,
        read_bytes=read * processes,
        process_read_bytes=read,
        seconds=read / (rates.read * 1e9),
    )


def _save(inputs: StepInputs, *, processes: int, host: Host, resident: float, rates: Rates) -> Phase:
    """Each shard of the state is copied to the host of one process that holds it, and written from there."""
    total = _bytes(inputs.state)
    largest = min(total, bytes_per_device(inputs.state) * host.devices)
    return Phase(
        name="save",
        device_gib=resident,
        host_gib=largest / GIB,
        written_bytes=total,
        process_written_bytes=largest,
        seconds=largest / (rates.write * 1e9),
    )


def _finish(
    config: Config, inputs: StepInputs, stored: Mapping[str, int], *, processes: int, resident: float, rates: Rates
) -> Phase:
    """Pieces of parameters are brought to the process that writes them; see `model_writer`."""
    params: dict[str, Any] = {**inputs.state.trainable, **inputs.frozen}
    alone = (
        config.stage is Stage.INSTRUCT and config.checkpoint.model is ModelContents.ADAPTERS and not config.init_from
    )
    written = {path: size for path, size in stored.items() if not alone or path in inputs.state.trainable}
    held = all(_is_replicated(params[path]) for path in written)
    groups = model_writer.assign(written, processes=1 if held else processes)
    largest = max(sum(written[path] for path in group) for group in groups)
    rows = [size // params[path].shape[0] for path, size in written.items() if params[path].shape]
    piece = min(max([model_writer.PIECE_BYTES, *rows]), sum(written.values()))
    return Phase(
        name="finish",
        device_gib=resident + piece / GIB,
        host_gib=2 * piece / GIB,
        written_bytes=sum(written.values()),
        process_written_bytes=largest,
        seconds=largest / (rates.write * 1e9),
    )


def process_fraction(array: Any, *, devices: int) -> float:
    """Return the part of an array that the devices of one process hold together."""
    sharding: Any = array.sharding
    sizes, covered, left = dict(sharding.mesh.shape), {}, devices
    for axis in reversed(sharding.mesh.axis_names):  # the last axis varies fastest
        covered[axis] = min(sizes[axis], left)
        left = max(1, left // sizes[axis])
    axes = [axis for entry in sharding.spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
    return math.prod(covered[axis] / sizes[axis] for axis in axes)


def _is_replicated(value: Any) -> bool:
    leaf = value.values if isinstance(value, Int8) else value
    return leaf.sharding.is_fully_replicated


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
