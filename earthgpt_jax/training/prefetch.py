"""Prefetch batches to the devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
from jax.sharding import NamedSharding

from earthgpt_jax.input.batch import Batch


def prefetch_to_device(
    batches: Iterable[tuple[int, Batch]], sharding: NamedSharding
) -> Iterator[tuple[int, Batch, Batch]]:
    """Yield `(step, batch, device arrays)`, with the transfer of the next batch already started."""
    ahead = None
    for step, batch in batches:
        current = (step, batch, device_batch(batch, sharding))
        if ahead is not None:
            yield ahead
        ahead = current
    if ahead is not None:
        yield ahead


def device_batch(batch: Batch, sharding: NamedSharding) -> Batch:
    """Assemble the sharded global batch from this process's sequences (see `sharding.mesh.local_rows`)."""
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)
