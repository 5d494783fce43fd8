"""The largest batch that fits a slice, and the smallest slice that a batch fits."""

from __future__ import annotations

import logging

from earthgpt_jax.aot import report
from earthgpt_jax.aot.report import StepPlan
from earthgpt_jax.aot.slices import Slice
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config

_log = logging.getLogger(__name__)


def largest_batch(config: Config, wanted: Slice, *, start: StepPlan) -> int:
    """Most rows a chip that fit: guessed along the line through what one row needs, then tried around there."""
    tried: dict[int, StepPlan] = {start.per_chip_batch: start}

    def attempt(rows: int) -> StepPlan:
        if rows not in tried:
            _log.info("plan: trying %d rows a chip", rows)
            tried[rows] = report.plan_step(config, wanted, per_chip_batch=rows)
        return tried[rows]

    fitting, failing = 0, 0
    rows = start.per_chip_batch
    while fitting + 1 != failing:
        result = attempt(rows)
        if result.fits:
            fitting = max(fitting, rows)
            assert result.hbm_gib_per_chip is not None
            fixed = result.state_gib + result.frozen_gib
            guess = int(rows * (result.hbm_limit_gib - fixed) / max(result.hbm_gib_per_chip - fixed, 1e-9))
            rows = max(guess, fitting + 1)
        else:
            failing = min(failing or rows, rows)
            rows = failing - 1
        if failing:
            rows = min(max(rows, fitting + 1), failing - 1)
    return fitting


def smallest_slice(config: Config, wanted: Slice, *, per_chip_batch: int | None = None) -> StepPlan:
    """The plan for the smallest slice of the generation of `wanted` that fits; slices are tried from the smallest on.

    Raises:
        EarthGPTError: none fits; the message says of each why.
    """
    against: list[str] = []
    for candidate in wanted.same_generation():
        _log.info("plan: trying %s", candidate.name)
        try:
            result = report.plan_step(config, candidate, per_chip_batch=per_chip_batch)
        except EarthGPTError as error:  # the mesh or the batch does not divide
            against.append(f"{candidate.name}: {error}")
            continue
        if result.fits is not False:
            return result
        against.append(f"{candidate.name}: {result.compiler_message or report.BY_SHAPES}")
    raise EarthGPTError(
        f"{config.recipe}:{config.stage}: no slice of {wanted.chip.kind} fits:\n"
        + "\n".join(f"  - {line}" for line in against)
    )
