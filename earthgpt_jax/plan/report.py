"""`plan`: what a recipe needs on a slice, and how it reads."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from earthgpt_jax.config import Config
from earthgpt_jax.plan import flops, hlo, program, slices
from earthgpt_jax.plan.program import GIB, Abstract, OutOfMemory
from earthgpt_jax.plan.slices import Slice
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import AXES, resolve

_log = logging.getLogger(__name__)
COMPILER, SHAPES = "compiler estimate", "bytes of the shapes alone; for the rest install libtpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe needs on a slice; sizes are of one chip, in GiB, and everything is an estimate.

    Attributes:
        estimate: where the figures come from.
        state_gib: trained parameters and the optimizer's moments.
        temporaries_gib, hbm_gib_per_chip, fits: None where no compiler was asked.
        flops_per_chip: of a step, every position supervised, without attention's own products.
        collectives: kind -> bytes a step on one chip.
        replicated: large parameters that every chip holds whole, path -> GiB.
        largest_per_chip_batch: None unless searched for.
        compiler_message: why it does not fit.
    """

    recipe: str
    stage: str
    topology: str
    chips: int
    mesh: dict[str, int]
    remat: str
    per_chip_batch: int
    tokens_per_row: int
    estimate: str
    state_gib: float
    frozen_gib: float
    batch_gib: float
    hbm_limit_gib: float
    temporaries_gib: float | None = None
    hbm_gib_per_chip: float | None = None
    fits: bool | None = None
    flops_per_chip: float | None = None
    minimum_flops_per_chip: float | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    replicated: dict[str, float] = dataclasses.field(default_factory=dict)
    largest_per_chip_batch: int | None = None
    compiler_message: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What shall be found out besides memory and collectives; each costs compilations."""

    flops: bool = True
    largest_batch: bool = False


def plan(config: Config, wanted: Slice, *, per_chip_batch: int | None = None, question: Question) -> Plan:
    """Compiles the step of `config` for the slice; without libtpu, adds up the shapes.

    Args:
        per_chip_batch: rows that a chip works on at a time (with `tensor` > 1, that its group of chips does);
            default: what the recipe's batch and microbatches come to.

    Raises:
        EarthGPTError: the mesh does not fit the slice, the batch or the parameters.
    """
    config, per_chip = _per_chip(config, wanted, per_chip_batch)
    rows = config.data.batch_size
    sizes = resolve(config.mesh, devices=wanted.devices, rows=rows)
    given = program.abstract(config, AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES)))
    result = Plan(
        recipe=config.recipe,
        stage=config.stage,
        topology=wanted.name,
        chips=wanted.devices,
        mesh=dict(zip(AXES, sizes, strict=True)),
        remat=config.remat,
        per_chip_batch=per_chip,
        tokens_per_row=config.data.tokens_per_row,
        estimate=SHAPES,
        state_gib=program.bytes_per_device(given.state) / GIB,
        frozen_gib=program.bytes_per_device(given.frozen) / GIB,
        batch_gib=program.bytes_per_device(given.batch) / GIB,
        hbm_limit_gib=wanted.chip.hbm_gib,
        minimum_flops_per_chip=flops.minimum(config, rows=rows) / wanted.devices,
        replicated=_replicated(given),
    )
    if not slices.compiler_is_there():
        return result
    result = _compiled(result, config, wanted, given)
    if question.flops:
        # Per row, and a row's products are spread over `tensor`.
        one = flops.executed(config, rows=per_chip) / sizes[2]
        result = dataclasses.replace(result, flops_per_chip=one)
    if question.largest_batch:
        result = dataclasses.replace(result, largest_per_chip_batch=largest_batch(config, wanted, start=result))
    return result


def largest_batch(config: Config, wanted: Slice, *, start: Plan) -> int:
    """Most rows a chip that fit: guessed along the line through what one row needs, then tried around there."""

    tried: dict[int, Plan] = {start.per_chip_batch: start}

    def attempt(rows: int) -> Plan:
        if rows not in tried:
            _log.info("plan: trying %d rows a chip", rows)
            tried[rows] = plan(config, wanted, per_chip_batch=rows, question=Question(flops=False))
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


def text(result: Plan) -> str:
    """For people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    lines = [
        f"{result.recipe}:{result.stage} on {result.topology} ({result.chips} chips; {mesh}), "
        f"{result.per_chip_batch} x {result.tokens_per_row} tokens a chip, remat {result.remat}",
        f"figures: {result.estimate}",
        "",
        f"{'HBM a chip':<28}{'GiB':>8}",
    ]
    parts = [
        ("trained and optimizer", result.state_gib),
        ("frozen weights", result.frozen_gib),
        ("batch", result.batch_gib),
        ("activations and other", result.temporaries_gib),
        ("together", result.hbm_gib_per_chip),
        ("there is", result.hbm_limit_gib),
    ]
    lines += [f"  {name:<26}{_number(value):>8}" for name, value in parts]
    if result.fits is not None:
        lines.append("fits" if result.fits else f"does NOT fit: {result.compiler_message}")
    if result.largest_per_chip_batch is not None:
        lines.append(f"largest batch that fits: {result.largest_per_chip_batch} rows a chip")
    if result.minimum_flops_per_chip:
        lines += ["", f"{'FLOPs a chip and step':<28}{'TFLOP':>8}"]
        lines.append(f"  {'theoretical minimum':<26}{result.minimum_flops_per_chip / 1e12:>8.2f}")
        if result.flops_per_chip is not None:
            ratio = result.flops_per_chip / result.minimum_flops_per_chip
            lines.append(f"  {'executed':<26}{result.flops_per_chip / 1e12:>8.2f}   {ratio:.3f} of the minimum")
    if result.collectives:
        lines += ["", f"{'collectives a chip and step':<28}{'MiB':>8}"]
        lines += [f"  {kind:<26}{size / 2**20:>8.1f}" for kind, size in result.collectives.items()]
    if result.replicated:
        lines += ["", "whole on every chip:"]
        lines += [f"  {path:<44}{size:.3f} GiB" for path, size in result.replicated.items()]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _per_chip(config: Config, wanted: Slice, per_chip_batch: int | None) -> tuple[Config, int]:
    """The config of one microbatch with so many rows a chip, and how many those are."""
    groups = wanted.devices // config.mesh.tensor
    microbatch = config.data.batch_size // config.optim.microbatches
    rows = microbatch if per_chip_batch is None else per_chip_batch * groups
    return program.with_rows(config, rows), max(rows // groups, 1)


def _replicated(given: Abstract) -> dict[str, float]:
    mesh = given.placement.mesh
    shapes: dict[str, Any] = {**given.state.trained, **given.frozen}
    found = rules.replicated(shapes, given.placement.specs, sizes=dict(mesh.shape))
    return {entry.path: entry.bytes / GIB for entry in found} if mesh.shape["fsdp"] > 1 else {}


def _compiled(result: Plan, config: Config, wanted: Slice, given: Abstract) -> Plan:
    try:
        compiled: jax.stages.Compiled = program.compiled(config, slices.devices(wanted))
    except OutOfMemory as error:
        return dataclasses.replace(
            result, estimate=COMPILER, fits=False, compiler_message=str(error), **_from_message(str(error), result)
        )
    memory = program.memory(compiled)
    return dataclasses.replace(
        result,
        estimate=COMPILER,
        temporaries_gib=memory.temporaries / GIB,
        hbm_gib_per_chip=memory.total / GIB,
        fits=True,
        collectives=hlo.by_kind(hlo.collectives(compiled.as_text() or "")),
    )


def _from_message(message: str, result: Plan) -> dict[str, Any]:
    """Sizes that the compiler names when a program does not fit."""
    if used := re.search(r"Used ([\d.]+)G of", message):
        return {"hbm_gib_per_chip": float(used[1])}
    if temporaries := re.search(r"temporaries \(([\d.]+)G\)", message):
        needed = float(temporaries[1])
        arguments = result.state_gib + result.frozen_gib + result.batch_gib
        return {"temporaries_gib": needed, "hbm_gib_per_chip": needed + arguments}
    return {}
