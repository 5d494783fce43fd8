"""NVIDIA GPUs by their device name: peak rates.

Rates are from NVIDIA's data sheets: dense bf16 without sparsity, and the bandwidth of the memory.
"""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU model.

    Attributes:
        pattern: regular expression of `jax.Device.device_kind`.
        bf16_tflops: peak compute rate.
        hbm_gb_per_second: memory bandwidth.
    """

    pattern: str
    bf16_tflops: float
    hbm_gb_per_second: float


# The first pattern that matches decides.
GPUS = (
    Gpu(pattern=r"NVIDIA A100.*80GB.*", bf16_tflops=312, hbm_gb_per_second=2039),
    Gpu(pattern=r"NVIDIA A100.*", bf16_tflops=312, hbm_gb_per_second=1555),
    Gpu(pattern=r"NVIDIA H100 PCIe", bf16_tflops=756, hbm_gb_per_second=2000),
    Gpu(pattern=r"NVIDIA H100 NVL", bf16_tflops=835, hbm_gb_per_second=3900),
    Gpu(pattern=r"NVIDIA H100.*", bf16_tflops=989, hbm_gb_per_second=3350),
    Gpu(pattern=r"NVIDIA H200.*", bf16_tflops=989, hbm_gb_per_second=4800),
    Gpu(pattern=r"NVIDIA B200.*", bf16_tflops=2250, hbm_gb_per_second=8000),
)


def find(device_kind: str) -> Gpu | None:
    """Return the GPU with this device name; None if the table does not have it."""
    return next((gpu for gpu in GPUS if re.fullmatch(gpu.pattern, device_kind)), None)
