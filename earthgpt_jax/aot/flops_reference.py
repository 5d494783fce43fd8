"""The FLOPs reference of a run: what a recipe needs and what the devices can do, for MFU."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax

from earthgpt_jax.aot import flops, gpus, slices
from earthgpt_jax.config import Config
from earthgpt_jax.training.throughput import FlopsReference

# Dense bf16 TFLOP/s by `device_kind`. TPUs: from `slices`. GPUs: from `gpus`.
PEAKS: tuple[tuple[str, float], ...] = (
    *((chip.device_kind, chip.bf16_tflops) for chip in slices.CHIPS.values()),
    *((gpu.pattern, gpu.bf16_tflops) for gpu in gpus.GPUS),
)


def peak_tflops(device_kind: str) -> float | None:
    """Return the peak rate of one device in TFLOP/s; None if the device is unknown."""
    return next((peak for pattern, peak in PEAKS if re.fullmatch(pattern, device_kind)), None)


def flops_reference(config: Config, devices: Sequence[jax.Device]) -> FlopsReference | None:
    """Return the reference for a run of `config` on `devices`; None if their peak rate is unknown, as on CPUs.

    Every token counts as supervised (the head is 1.3 % of a 13B step), and attention's own products are left out.
    """
    peak = peak_tflops(devices[0].device_kind)
    if peak is None:
        return None
    token, image = flops_per_token_and_image(config)
    return FlopsReference(per_token=token, per_image=image, peak=peak * 1e12 * len(devices))


def flops_per_token_and_image(config: Config) -> tuple[float, float]:
    """Return the minimum FLOPs per token and per image.

    `flops.minimum` is linear in tokens and images, so two sequence lengths determine both.
    """
    length = config.data.seq_len

    def sequence(tokens: int) -> float:
        data = dataclasses.replace(config.data, seq_len=tokens, max_images=1)
        return flops.minimum(dataclasses.replace(config, data=data), batch_size=1)

    token = (sequence(2 * length) - sequence(length)) / length
    return token, sequence(length) - token * length
