"""XLA flags for a given number of CPU devices. This module must not import JAX, which reads the flags."""

from __future__ import annotations

import os

_COUNT = "--xla_force_host_platform_device_count"
_EFFORT = "--xla_backend_optimization_level"


def xla_flags(devices: int) -> str:
    """Return the flags in the environment with the number of CPU devices set to `devices`.

    LLVM's optimisations are disabled unless set: the programs of the suite compile for seconds and run for
    milliseconds.
    """
    kept = [word for word in os.environ.get("XLA_FLAGS", "").split() if not word.startswith(f"{_COUNT}=")]
    if not any(word.startswith(f"{_EFFORT}=") for word in kept):
        kept.append(f"{_EFFORT}=0")
    return " ".join([*kept, f"{_COUNT}={devices}"])
