"""The device mesh of an engine.

`data` and `fsdp` distribute the slots; `tensor` splits heads, ffn channels and vocabulary, with their weights and
caches, over devices that hold the same slots. A decoding step reads all weights for one token per slot, and weights
that are sharded over `fsdp` are gathered for every step; for models that do not fit on one device, use `tensor`.
Each process has a mesh of its own devices: processes share questions, not weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import MeshConfig, ModelConfig
from earthgpt_jax.sharding import mesh as mesh_lib

_MAX_WEIGHT_SHARE = 0.6  # of a device's memory; caches and activations need the rest


def build_mesh(config: MeshConfig, *, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of `config`.

    Args:
        config: sizes of the axes. If `data` is -1, no more devices are used than there are slots for.
        batch_size: number of slots of all devices together.
        devices: default: all devices of this process.

    Raises:
        EarthGPTError: the sizes do not fit the number of devices.
    """
    errors = config.check()
    if errors:
        raise EarthGPTError(f"mesh: {'; '.join(errors)}")
    devices = jax.local_devices() if devices is None else list(devices)
    if config.data == -1:
        group = config.fsdp * config.tensor
        data = max(1, min(len(devices) // group, batch_size // config.fsdp))
        config, devices = dataclasses.replace(config, data=data), devices[: data * group]
    return mesh_lib.build_mesh(config, rows=0, devices=devices)  # the number of slots is rounded up to what divides


def default_mesh(model: ModelConfig, *, weights: int, devices: Sequence[jax.Device]) -> MeshConfig:
    """Return a mesh with the slots over all devices, and the weights over as few devices as they fit on.

    Args:
        model: config of the model.
        weights: size of all parameters in bytes.
        devices: the devices to use.

    Raises:
        EarthGPTError: the weights do not fit on these devices.
    """
    statistics = devices[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    if limit is None:  # a CPU
        return MeshConfig()
    return MeshConfig(tensor=smallest_tensor_axis(model, weights=weights, limit=limit, devices=len(devices)))


def smallest_tensor_axis(model: ModelConfig, *, weights: int, limit: int, devices: int) -> int:
    """Return the smallest size of the `tensor` axis at which the weights fit.

    Args:
        model: config of the model; its heads must divide over the axis.
        weights: size of all parameters in bytes.
        limit: memory of a device in bytes.
        devices: number of devices; the axis must divide it.

    Raises:
        EarthGPTError: no size fits.
    """
    heads = (model.llm.heads, model.llm.kv_heads)
    sizes = [n for n in range(1, devices + 1) if devices % n == 0 and not any(head % n for head in heads)]
    for size in sizes:
        if weights / size <= _MAX_WEIGHT_SHARE * limit:
            return size
    raise EarthGPTError(
        f"the weights take {weights / 2**30:.1f} GiB and a device has {limit / 2**30:.1f} GiB: they fit on none of "
        f"{', '.join(map(str, sizes))} devices, the numbers that its {heads[0]} heads and {heads[1]} kv_heads divide "
        "by; use hosts with more devices or more memory, or set a mesh yourself"
    )
