"""XLA's flags for a process with so many CPU devices; imports nothing that would read them."""

from __future__ import annotations

import os

_COUNT = "--xla_force_host_platform_device_count"
_EFFORT = "--xla_backend_optimization_level"


def xla_flags(devices: int) -> str:
    """Those that are set, with `devices` devices.

    Without LLVM's optimisations, unless set: the suite's programs compile for seconds and run for milliseconds.
    """
    kept = [word for word in os.environ.get("XLA_FLAGS", "").split() if not word.startswith(f"{_COUNT}=")]
    if not any(word.startswith(f"{_EFFORT}=") for word in kept):
        kept.append(f"{_EFFORT}=0")
    return " ".join([*kept, f"{_COUNT}={devices}"])
