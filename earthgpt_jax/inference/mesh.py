"""Which devices answer together: the mesh of an engine.

`data` and `fsdp` are places for rows; `tensor` splits heads, ffn channels and vocabulary, with their weights and
caches, over devices that hold the same rows. A step of decoding reads all weights for one token a row: weights that are
split over `fsdp` are gathered for every one of them, so that `tensor` is the axis for models that are too large.
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

_SHARE = 0.6  # of a device's memory; what weights leave is for caches and activations


def build_mesh(config: MeshConfig, *, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (default: all of this process).

    Where `data` is -1, no more devices than there are rows for.

    Raises:
        EarthGPTError: the sizes do not fit the number of devices.
    """
    errors = config.check()
    if errors:
        raise EarthGPTError(f"mesh: {'; '.join(errors)}")
    devices = jax.local_devices() if devices is None else list(devices)
    if config.data == -1:
        each = config.fsdp * config.tensor
        data = max(1, min(len(devices) // each, batch_size // config.fsdp))
        config, devices = dataclasses.replace(config, data=data), devices[: data * each]
    return mesh_lib.build_mesh(config, rows=0, devices=devices)  # rows are added until they divide


def default_mesh(model: ModelConfig, *, weights: int, devices: Sequence[jax.Device]) -> MeshConfig:
    """Rows over all devices; weights over so few that they fit.

    Args:
        weights: bytes of all parameters.

    Raises:
        EarthGPTError: they fit on no number of these devices.
    """
    statistics = devices[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    if limit is None:  # a CPU
        return MeshConfig()
    return MeshConfig(tensor=smallest_tensor_axis(model, weights=weights, limit=limit, devices=len(devices)))


def smallest_tensor_axis(model: ModelConfig, *, weights: int, limit: int, devices: int) -> int:
    """The smallest size of `tensor` at which a device with `limit` bytes of memory has room for its weights."""
    heads = (model.llm.heads, model.llm.kv_heads)
    sizes = [n for n in range(1, devices + 1) if devices % n == 0 and not any(head % n for head in heads)]
    for size in sizes:
        if weights / size <= _SHARE * limit:
            return size
    raise EarthGPTError(
        f"the model's weights take {weights / 2**30:.1f} GiB, and a device has {limit / 2**30:.1f} GiB: they fit on "
        f"none of {', '.join(map(str, sizes))} devices that its {heads[0]} heads and {heads[1]} kv_heads divide over; "
        "evaluate on hosts with more devices or memory, or say with a mesh what shall be tried"
    )
