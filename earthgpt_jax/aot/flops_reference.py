"""What a recipe's step must do, and what the devices here could: the two sides of MFU."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax

from earthgpt_jax.aot import flops, slices
from earthgpt_jax.config import Config
from earthgpt_jax.training.throughput import FlopsReference

# Dense bf16 TFLOP/s by what JAX calls a device. TPUs: see `slices`. GPUs: NVIDIA's data sheets, without sparsity.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"TPU v5( lite|e)", slices.CHIPS["v5e"].bf16_tflops),
    (r"TPU v5p?", slices.CHIPS["v5p"].bf16_tflops),
    (r"TPU v6( lite|e)", slices.CHIPS["v6e"].bf16_tflops),
    (r"NVIDIA A100.*", 312),
    (r"NVIDIA H100 PCIe", 756),
    (r"NVIDIA H100 NVL", 835),
    (r"NVIDIA (H100|H200).*", 989),
    (r"NVIDIA B200.*", 2250),
)


def peak_tflops(device_kind: str) -> float | None:
    """Of one device; None where it is not known."""
    return next((peak for pattern, peak in PEAKS if re.fullmatch(pattern, device_kind)), None)


def flops_reference(config: Config, devices: Sequence[jax.Device]) -> FlopsReference | None:
    """For a run of `config` on `devices`; None where their peak is not known, as on CPUs.

    `flops.minimum` is linear in tokens and images, so that two lengths of row give both. It counts every token as
    supervised (the head is 1.3 % of a 13B step) and leaves attention's own products out.
    """
    peak = peak_tflops(devices[0].device_kind)
    if peak is None:
        return None
    token, image = flops_per_token_and_image(config)
    return FlopsReference(per_token=token, per_image=image, peak=peak * 1e12 * len(devices))


def flops_per_token_and_image(config: Config) -> tuple[float, float]:
    """FLOPs of a token and of an image."""
    length = config.data.seq_len

    def row(tokens: int) -> float:
        data = dataclasses.replace(config.data, seq_len=tokens, max_images=1)
        return flops.minimum(dataclasses.replace(config, data=data), rows=1)

    token = (row(2 * length) - row(length)) / length
    return token, row(length) - token * length
