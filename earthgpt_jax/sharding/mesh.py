"""Where arrays live: rows of a batch spread over devices, everything else whole on each of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from earthgpt_jax.errors import EarthGPTError


class Placement(NamedTuple):
    """Of a batch, whose leading axis is split over `data`, and of what every device holds whole."""

    batch: NamedSharding
    whole: NamedSharding


def data_parallel(batch_size: int) -> Placement:
    """Over as many of this process's devices as divide the batch evenly; with several processes, over all devices.

    Raises:
        EarthGPTError: there are several processes, and their devices do not divide the batch.
    """
    devices = jax.devices()
    if jax.process_count() == 1:
        devices = devices[: math.gcd(batch_size, len(devices))]
    elif batch_size % len(devices):
        raise EarthGPTError(
            f"batch: expected a multiple of the {len(devices)} devices of {jax.process_count()} processes, got "
            f"{batch_size} rows; set data.batch_size / optim.microbatches so"
        )
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return Placement(NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec()))


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Which rows of a batch this process's devices hold, in order."""
    shards = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in shards if index for row in range(batch_size)[index[0]]})
