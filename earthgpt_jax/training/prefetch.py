"""Batches onto the devices, one ahead of the step that runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
from jax.sharding import NamedSharding

from earthgpt_jax.input.batch import Batch
from earthgpt_jax.training.step import DeviceBatch


def prefetch_to_device(
    batches: Iterable[tuple[int, Batch]], sharding: NamedSharding
) -> Iterator[tuple[int, Batch, DeviceBatch]]:
    """`(step, batch, its arrays on the devices)`; the next batch is on its way before one is handed out."""
    ahead = None
    for step, batch in batches:
        here = (step, batch, device_batch(batch, sharding))
        if ahead is not None:
            yield ahead
        ahead = here
    if ahead is not None:
        yield ahead


def device_batch(batch: Batch, sharding: NamedSharding) -> DeviceBatch:
    """The global batch, split by rows over the devices, from the rows of this process (`sharding.mesh.local_rows`)."""
    arrays = (getattr(batch, name) for name in DeviceBatch._fields)
    return DeviceBatch(*(jax.make_array_from_process_local_data(sharding, array) for array in arrays))
