"""Find the largest batch that fits a slice, and the smallest slice that fits a batch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from earthgpt_jax.aot import inference_plan, step_plan
from earthgpt_jax.aot.inference_plan import InferencePlan, Workload
from earthgpt_jax.aot.slices import Slice
from earthgpt_jax.aot.step_plan import StepPlan
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, MeshConfig, Remat

_log = logging.getLogger(__name__)


def largest_batch(config: Config, slice_: Slice, *, start: StepPlan) -> int:
    """Return the largest per-chip batch that fits.

    Memory grows about linearly with the batch, so a line through the last result gives the next batch to try.

    Args:
        start: the plan of any per-chip batch.
    """
    if config.remat == Remat.AUTO:
        config = dataclasses.replace(config, remat=Remat.FULL)  # what `auto` chooses if memory is short
    plans: dict[int, StepPlan] = {start.per_chip_batch: start}

    def plan(batch: int) -> StepPlan:
        if batch not in plans:
            _log.info("plan: trying a per-chip batch of %d", batch)
            plans[batch] = step_plan.plan_step(config, slice_, per_chip_batch=batch)
        return plans[batch]

    def guess(batch: int) -> int:
        result = plan(batch)
        assert result.hbm_gib_per_chip is not None
        fixed = result.state_gib + result.frozen_gib
        growing = max(result.hbm_gib_per_chip - fixed, 1e-9)
        return int(batch * (result.hbm_limit_gib - fixed) / growing)

    return largest_fitting(start.per_chip_batch, fits=lambda batch: bool(plan(batch).fits), guess=guess)


def largest_inference_batch(config: Config, slice_: Slice, *, workload: Workload, start: InferencePlan) -> int:
    """Return the largest number of questions per group that fits, as a multiple of the questions per image.

    Args:
        start: the plan of `workload`; its mesh is kept.
    """
    mesh = MeshConfig(**start.mesh)
    plans = {start.state_shape.images: start}
    per_image = start.state_shape.slots_per_image

    def plan(images: int) -> InferencePlan:
        if images not in plans:
            _log.info("plan: trying %d questions per group", images * per_image)
            larger = dataclasses.replace(workload, batch_size=images * per_image)
            plans[images] = inference_plan.plan_inference(config, slice_, workload=larger, mesh=mesh)
        return plans[images]

    def guess(images: int) -> int:
        result = plan(images)
        assert result.hbm_gib_per_chip is not None
        per_image_gib = (result.hbm_gib_per_chip - result.parameters_gib) / images
        return int((result.hbm_limit_gib - result.parameters_gib) / per_image_gib)

    return per_image * largest_fitting(start.state_shape.images, fits=lambda images: plan(images).fits, guess=guess)


def largest_fitting(first: int, *, fits: Callable[[int], bool], guess: Callable[[int], int]) -> int:
    """Return the largest positive size that fits, assuming that every smaller size fits too; 0 if none does.

    Args:
        first: size to try first.
        fits: whether a size fits; may be called twice with the same size.
        guess: estimate of the largest size that fits, from a size that fits.
    """
    fitting, failing = 0, 0
    size = first
    while fitting + 1 != failing:
        if fits(size):
            fitting = max(fitting, size)
            size = max(guess(size), fitting + 1)
        else:
            failing = min(failing or size, size)
            size = failing - 1
        if failing:
            size = min(max(size, fitting + 1), failing - 1)
    return fitting


def smallest_slice(config: Config, slice_: Slice, *, per_chip_batch: int | None = None) -> StepPlan:
    """Return the plan for the smallest slice of the same TPU generation that fits.

    Raises:
        EarthGPTError: none fits; the message gives the reason for each slice.
    """
    reasons: list[str] = []
    for candidate in slice_.same_generation():
        _log.info("plan: trying %s", candidate.name)
        try:
            result = step_plan.plan_step(config, candidate, per_chip_batch=per_chip_batch)
        except EarthGPTError as error:  # the mesh or the batch does not divide evenly
            reasons.append(f"{candidate.name}: {error}")
            continue
        if not result.refused:
            return result
        problems = "; ".join(result.run.problems) if result.run else ""
        reasons.append(f"{candidate.name}: {result.compiler_message or problems or step_plan.TOO_LARGE}")
    raise EarthGPTError(
        f"{config.recipe}:{config.stage}: no {slice_.chip.kind} slice fits:\n"
        + "\n".join(f"  - {line}" for line in reasons)
    )
