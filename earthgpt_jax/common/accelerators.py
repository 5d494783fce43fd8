"""Which accelerators this machine has, without asking JAX."""

from __future__ import annotations

import glob
import importlib.util
import os
import sys


def skip_tpu_search() -> None:
    """Let JAX use the CPU at once where the TPU compiler is installed (extra `plan`) but neither a TPU nor CUDA is.

    Otherwise libtpu searches for a TPU first, for seconds, and reports that it found none. `JAX_PLATFORMS` comes first.
    """
    installed = importlib.util.find_spec
    cuda = any(installed(f"jax_cuda{version}_plugin") for version in (12, 13))
    tpu = any(glob.glob(pattern) for pattern in ("/dev/accel*", "/dev/vfio/[0-9]*"))
    if not installed("libtpu") or cuda or tpu or "JAX_PLATFORMS" in os.environ:
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if (jax := sys.modules.get("jax")) is not None and jax.config.jax_platforms is None:  # it has read its environment
        jax.config.update("jax_platforms", "cpu")
