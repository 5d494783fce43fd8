"""Roofline: a lower bound on the time of a step.

The work is that of the compiled program (`costs`, `collectives`), the rates are those of the data sheet
(`slices.Chip`). The slowest resource bounds the step, assuming that all others overlap with it. This is a bound, not a
forecast: nothing runs at its peak, and communication is assumed to use every link of a chip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from earthgpt_jax.aot.collectives import Collective
from earthgpt_jax.aot.costs import Costs
from earthgpt_jax.aot.slices import Slice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Smallest time per step that each resource needs, in seconds.

    Attributes:
        compute: matrix products at the bf16 peak, without attention's own.
        hbm: HBM traffic.
        ici: communication within a slice.
        dcn: communication between slices.
        host: transfers to and from host memory.
        bound_by: name of the slowest resource.
        tokens_per_second: upper bound for the full slice.
        mfu: upper bound of the model FLOPs utilization.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    host: float
    bound_by: str
    tokens_per_second: float
    mfu: float

    @property
    def seconds(self) -> float:
        """Lower bound on the time of a step."""
        return max(self.compute, self.hbm, self.ici, self.dcn, self.host)


def roofline(
    costs: Costs, collectives: Sequence[Collective], slice_: Slice, *, tokens: int, minimum_flops: float
) -> Roofline:
    """Return the roofline of a step.

    Args:
        costs: work of one chip.
        tokens: number of tokens per step on all chips.
        minimum_flops: theoretical minimum of one chip's FLOPs per step.
    """
    chip = slice_.chip
    peak = chip.bf16_tflops * 1e12
    parts = {
        "compute": costs.flops / peak,
        "hbm": costs.hbm_bytes / (chip.hbm_gb_per_second * 1e9),
        "ici": sum(entry.sent for entry in collectives if not entry.crosses_slices) / (slice_.ici_gb_per_second * 1e9),
        "dcn": sum(entry.sent for entry in collectives if entry.crosses_slices) / (chip.dcn_gb_per_second * 1e9),
        "host": costs.host_bytes / (chip.host_gb_per_second * 1e9),
    }
    slowest = max(parts, key=lambda name: parts[name])
    seconds = parts[slowest]
    return Roofline(
        **parts, bound_by=slowest, tokens_per_second=tokens / seconds, mfu=minimum_flops / peak / seconds
    )  # fmt: skip
