"""Choose a rematerialization policy (`remat=auto`): keep what saves the most FLOPs in the memory that is left.

The step is compiled with `full` first, which keeps the least. The outputs of a layer are ranked by FLOPs saved per byte
kept, and kept in as many layers as the rest of the memory allows, by arithmetic. Compiling that policy shows what it
really needs; a line through the two gives the next one to try, if any.

The ranking depends on what is trained. A frozen layer y = W x needs neither x nor y in the backward pass, except that
the output of `down` (F wide inside, D wide outside) is needed by the gradient of an adapter's scale: then it saves F/D
times as much per byte as any other. What does not fit is kept in host memory as long as the transfers take less than
two thirds of the time of the matrix products, so that they overlap with these.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import logging
import math
from collections.abc import Callable, Sequence

import jax

from earthgpt_jax.aot import flops, program, slices
from earthgpt_jax.config import CONTEXT, AdapterKind, Config, Kept, Remat
from earthgpt_jax.sharding.mesh import build_mesh
from earthgpt_jax.training.remat_choice import DEFAULT

_log = logging.getLogger(__name__)

RESERVE = 1 / 64  # of the memory of a chip: for batches in flight and fragmentation
_OTHERS = 0.9  # of the memory of devices that are no TPUs
_ENOUGH = 1 / 64  # of the memory: not worth another compilation
_ATTEMPTS = 3
_HOST_TIME = 2 / 3  # of the time of the matrix products: the most that transfers to host memory may take
_PARTIAL = 1 / 8  # of the layers: an output is not kept in fewer, because a second loop takes longer to compile

Measure = Callable[[Config], int]


class _Place(enum.Enum):
    """Where an output is kept."""

    DEVICE = "device"
    HOST = "host"
    NOWHERE = "nowhere"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """An output that a layer can keep.

    Attributes:
        bytes: size on one device.
        flops: what recomputing it costs a device.
    """

    name: str
    bytes: int
    flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a device offers.

    Attributes:
        memory: bytes.
        host_bytes_per_flop: bytes that it can send to host memory or receive in the time of one FLOP; 0: unknown.
    """

    memory: float
    host_bytes_per_flop: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A policy for a number of bytes.

    Attributes:
        bytes: what it keeps on one device in addition to `full`, by arithmetic.
        flops: what it saves compared with `full`.
    """

    policy: str
    bytes: int
    flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Result of `choose`.

    Attributes:
        tried: policy -> bytes that the compiled step needs on a device; None: it does not fit.
    """

    policy: str
    tried: dict[str, int | None]


def outputs(config: Config, *, sequences: int) -> list[Output]:
    """Return what one layer can keep to avoid recomputation, most FLOPs per byte first.

    Args:
        sequences: number of sequences that a device (with `tensor` > 1, a group of devices) processes at a time.
    """
    llm, tensor = config.model.llm, config.mesh.tensor
    tokens, itemsize = sequences * config.data.seq_len, 2 if config.model.compute_dtype.value == "bfloat16" else 4
    query, key = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    # name -> (length of the sums, width of the output); the outputs of o and down are not sharded over `tensor`
    shapes = {
        "down": (llm.ffn_dim, llm.dim), "o": (query, llm.dim), "q": (llm.dim, query), "k": (llm.dim, key),
        "v": (llm.dim, key), "gate": (llm.dim, llm.ffn_dim), "up": (llm.dim, llm.ffn_dim),
        CONTEXT: (config.data.seq_len, query),  # scores, and scores times values, of half of the positions
    }  # fmt: skip
    adapter = config.model.adapter
    if adapter.kind is not AdapterKind.SCALE_BIAS or "down" not in adapter.targets:
        del shapes["down"]  # no gradient reads it
    found = [
        Output(
            name=name,
            bytes=tokens * width * itemsize // (1 if name in ("o", "down") else tensor),
            flops=2 * tokens * inner * width / tensor,
        )
        for name, (inner, width) in shapes.items()
    ]
    return sorted(found, key=lambda output: -output.flops / output.bytes)


def fill(config: Config, *, sequences: int, budget: float, host_budget: float = 0.0) -> Choice:
    """Return the policy that saves the most FLOPs by keeping at most `budget` bytes more than `full`.

    An output is kept in some of the layers only where adapters are trained: two loops would copy the other trainable
    parameters.

    Args:
        host_budget: bytes that may also be kept, in host memory.
    """
    depth = config.model.llm.depth
    ranked = outputs(config, sequences=sequences)
    choices = [
        _choice(ranked, places, depth=depth, budget=budget, partial=config.model.adapter.kind is not AdapterKind.NONE)
        for places in itertools.product(_Place, repeat=len(ranked))
        if _size(ranked, places, _Place.DEVICE) * depth <= budget
        and _size(ranked, places, _Place.HOST) * depth <= host_budget
    ]
    return max(choices, key=lambda choice: (choice.flops, -choice.policy.count("@"), -choice.bytes))


def _size(ranked: Sequence[Output], places: Sequence[_Place], place: _Place) -> int:
    return sum(output.bytes for output, chosen in zip(ranked, places, strict=True) if chosen is place)


def _choice(ranked: Sequence[Output], places: Sequence[_Place], *, depth: int, budget: float, partial: bool) -> Choice:
    """Return the choice that keeps each output in its place, and one more in as many layers as fit if `partial`."""
    device = [output for output, place in zip(ranked, places, strict=True) if place is _Place.DEVICE]
    host = [output for output, place in zip(ranked, places, strict=True) if place is _Place.HOST]
    rest = [output for output, place in zip(ranked, places, strict=True) if place is _Place.NOWHERE]
    layers: dict[str, int | None] = {output.name: None for output in device}
    used = depth * sum(output.bytes for output in device)
    saved = depth * sum(output.flops for output in (*device, *host))
    if partial and rest and rest[0].name != CONTEXT:
        count = min(depth, int((budget - used) // rest[0].bytes))
        if count >= depth * _PARTIAL:
            layers[rest[0].name] = count
            used, saved = used + count * rest[0].bytes, saved + count * rest[0].flops
    policy = Kept(layers=layers, offloaded=tuple(output.name for output in host))
    return Choice(policy=str(policy), bytes=used, flops=saved)


def choose(config: Config, measure: Measure, *, sequences: int, limits: Limits) -> Found:
    """Return the policy for `config` on devices with these limits.

    Args:
        measure: compiles the step of a config and returns the bytes it needs on a device.
        sequences: see `outputs`.
    """
    limit = limits.memory
    # Sent once and received once.
    work = flops.minimum(config, batch_size=sequences) / config.mesh.tensor
    host_budget = _HOST_TIME * work * limits.host_bytes_per_flop / 2
    tried: dict[str, int | None] = {}

    def needed(policy: str) -> int | None:
        if policy not in tried:
            _log.info("remat: compiling with %s", policy)
            try:
                tried[policy] = measure(dataclasses.replace(config, remat=policy))
            except program.OutOfMemory:
                tried[policy] = None
        return tried[policy]

    usable = limit * (1 - RESERVE)
    base = needed(Remat.FULL)
    if base is None or base > usable:
        return Found(policy=Remat.FULL, tried=tried)
    best, budget = Choice(policy=Remat.FULL, bytes=0, flops=0.0), usable - base
    for attempt in range(_ATTEMPTS):
        if attempt == _ATTEMPTS - 1 and best.policy == Remat.FULL and host_budget:
            # Transfers need buffers of a size that only the compiler knows: keep nothing in host memory.
            budget, host_budget = usable - base, 0.0
        choice = fill(config, sequences=sequences, budget=budget, host_budget=host_budget)
        if choice.policy in tried:
            break
        size = needed(choice.policy)
        if size is not None and size <= usable:
            best = max(best, choice, key=lambda one: one.flops)
            if usable - size < _ENOUGH * limit:
                break
        # A policy that does not compile needs more than the devices have, by an unknown amount.
        grown = (limit * (1 + RESERVE) if size is None else size) - base
        budget = min(choice.bytes * (usable - base) / max(grown, 1), 2 * budget)
    return Found(policy=best.policy, tried=tried)


def limits_of(chip: slices.Chip) -> Limits:
    """Return the limits of a TPU chip."""
    rate = chip.host_gb_per_second * 1e9 / (chip.bf16_tflops * 1e12)
    return Limits(memory=chip.hbm_gib * program.GIB, host_bytes_per_flop=rate)


def choose_for_devices(config: Config, devices: Sequence[jax.Device]) -> str:
    """Return the policy for a run of `config` on devices of this process and others; see `choose`.

    If the devices report no limit of their memory, as CPUs do, the policy is `DEFAULT`.
    """
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not memory:
        return DEFAULT
    chip = slices.chip_of(devices[0].device_kind)
    # Outside of TPUs, kernels need memory of their own that the compiler does not count.
    limits = dataclasses.replace(limits_of(chip), memory=memory) if chip else Limits(memory=_OTHERS * memory)
    rows = config.data.batch_size // config.optim.microbatches
    sizes = build_mesh(config.mesh, rows=rows, devices=devices).shape
    sequences = math.ceil(rows / (sizes["data"] * sizes["fsdp"]))

    def measure(config: Config) -> int:
        return program.memory(program.compile_step(config, devices)).total

    return choose(config, measure, sequences=sequences, limits=limits).policy
