"""How fast a step can be at best: the slowest of what it has to do, if all of it happens at once.

Work is that of the compiled program (`costs`, `collectives`); rates are the data sheet's (`slices.Chip`). A bound,
not a forecast: nothing runs at its peak, and what is sent is taken to use every link of a chip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from earthgpt_jax.aot.collectives import Collective
from earthgpt_jax.aot.costs import Costs
from earthgpt_jax.aot.slices import Slice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of a step that each part takes at least.

    Attributes:
        compute: products at the bf16 peak, attention's own left out.
        hbm: reading and writing the chip's memory.
        ici: sending within a slice.
        dcn: sending between slices.
        host: to and from the host's memory.
        bound_by: the slowest of them.
        tokens_per_second: of the whole slice, at best.
        mfu: theoretical minimum of FLOPs at the peak, as a share of that time.
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
        return max(self.compute, self.hbm, self.ici, self.dcn, self.host)


def roofline(costs: Costs, sent: Sequence[Collective], wanted: Slice, *, tokens: int, minimum_flops: float) -> Roofline:
    """Args:
    tokens: of a step, of all chips.
    minimum_flops: of a step on one chip.
    """
    chip = wanted.chip
    peak = chip.bf16_tflops * 1e12
    parts = {
        "compute": costs.flops / peak,
        "hbm": costs.hbm_bytes / (chip.hbm_gb_per_second * 1e9),
        "ici": sum(each.sent for each in sent if not each.leaves_slice) / (wanted.ici_gb_per_second * 1e9),
        "dcn": sum(each.sent for each in sent if each.leaves_slice) / (chip.dcn_gb_per_second * 1e9),
        "host": costs.host_bytes / (chip.host_gb_per_second * 1e9),
    }
    slowest = max(parts, key=lambda name: parts[name])
    seconds = parts[slowest]
    return Roofline(
        **parts, bound_by=slowest, tokens_per_second=tokens / seconds, mfu=minimum_flops / peak / seconds
    )  # fmt: skip
