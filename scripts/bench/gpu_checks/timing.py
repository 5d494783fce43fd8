"""Time of compiled functions, and the rates that a device reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

_SECONDS = 0.3  # each measurement runs about this long


def seconds_per_call(function: Callable[..., Any], *arguments: Any, seconds: float = _SECONDS) -> float:
    """Return the time of one call, averaged over calls that follow one another; the first call is not counted."""
    jax.block_until_ready(function(*arguments))
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    calls = max(1, min(50, int(seconds / max(time.perf_counter() - started, 1e-6))))
    started = time.perf_counter()
    for _ in range(calls):
        output = function(*arguments)
    jax.block_until_ready(output)
    return (time.perf_counter() - started) / calls


def peak_bytes(device: jax.Device) -> int | None:
    """Return the most memory that this process has used on a device; None if the device does not count it."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
