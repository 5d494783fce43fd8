"""Where arrays live: rows of a batch spread over devices, everything else whole on each of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


class Placement(NamedTuple):
    """Of a batch, whose leading axis is split over `data`, and of what every device holds whole."""

    batch: NamedSharding
    whole: NamedSharding


def data_parallel(batch_size: int) -> Placement:
    """Over as many of this process's devices as divide the batch evenly."""
    count = math.gcd(batch_size, jax.local_device_count())
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:count])
    return Placement(NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec()))
