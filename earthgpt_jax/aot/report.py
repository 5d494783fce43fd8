"""`plan`: what a recipe needs on a slice, and how it reads."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from earthgpt_jax.aot import flops, hlo, program, slices
from earthgpt_jax.aot.collectives import by_kind, collectives
from earthgpt_jax.aot.costs import costs
from earthgpt_jax.aot.program import GIB, OutOfMemory, StepInputs
from earthgpt_jax.aot.roofline import Roofline, roofline
from earthgpt_jax.aot.slices import Slice
from earthgpt_jax.config import Config
from earthgpt_jax.ops import losses
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import AXES, resolve
from earthgpt_jax.training import step
from earthgpt_jax.training.execution import DEFAULT_EXECUTION

COMPILER, SHAPES = "compiler estimate", "bytes of the shapes alone; for the rest install libtpu"
BY_SHAPES = "arguments and a copy of the gradients are more than a chip holds"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What a recipe needs on a slice; sizes are of one chip, in GiB, and everything is an estimate.

    Attributes:
        estimate: where the figures come from.
        microbatches: of a step; with more than one, a second copy of the gradients is held.
        state_gib: trained parameters and the optimizer's moments.
        gradients_gib: one copy; without a compiler part of what is needed at least, with one part of the temporaries.
        temporaries_gib, hbm_gib_per_chip: None where no compiler was asked.
        host_gib: of the host's memory, for what is offloaded.
        fits: None where only a compiler could tell.
        flops_per_chip: of a step, every position supervised, without attention's own products.
        unrolled_flops_per_chip: the same, counted another way (`flops.executed`); None unless asked for.
        collectives: kind -> bytes a step on one chip.
        between_slices: of those, what leaves a slice.
        roofline: how fast a step can be at best.
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
    microbatches: int
    seq_len: int
    estimate: str
    state_gib: float
    gradients_gib: float
    frozen_gib: float
    batch_gib: float
    hbm_limit_gib: float
    temporaries_gib: float | None = None
    hbm_gib_per_chip: float | None = None
    host_gib: float = 0.0
    fits: bool | None = None
    flops_per_chip: float | None = None
    unrolled_flops_per_chip: float | None = None
    minimum_flops_per_chip: float | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    between_slices: dict[str, int] = dataclasses.field(default_factory=dict)
    roofline: Roofline | None = None
    replicated: dict[str, float] = dataclasses.field(default_factory=dict)
    largest_per_chip_batch: int | None = None
    compiler_message: str = ""

    @property
    def arguments_gib(self) -> float:
        return self.state_gib + self.frozen_gib + self.batch_gib

    @property
    def ratio(self) -> float | None:
        """Executed FLOPs beside the fewest possible."""
        return self.flops_per_chip / self.minimum_flops_per_chip if self.flops_per_chip else None  # type: ignore[operator]


def plan_step(config: Config, wanted: Slice, *, per_chip_batch: int | None = None, unrolled: bool = False) -> StepPlan:
    """Compiles the step of `config` for the slice; without libtpu, adds up the shapes.

    Args:
        per_chip_batch: rows that a chip works on at a time (with `tensor` > 1, that its group of chips does), in
            each of the recipe's microbatches; default: what the recipe's batch and microbatches come to.
        unrolled: counts FLOPs a second way, which takes two more compilations.

    Raises:
        EarthGPTError: the mesh does not fit the slice, the batch or the parameters.
    """
    config, per_chip = _per_chip(config, wanted, per_chip_batch)
    rows, microbatches = config.data.batch_size, config.optim.microbatches
    sizes = resolve(config.mesh, devices=wanted.devices, rows=rows // microbatches, slices=wanted.count)
    given = program.step_inputs(config, AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES)))
    result = StepPlan(
        recipe=config.recipe,
        stage=config.stage,
        topology=wanted.name,
        chips=wanted.devices,
        mesh=dict(zip(AXES, sizes, strict=True)),
        remat=config.remat,
        per_chip_batch=per_chip,
        microbatches=microbatches,
        seq_len=config.data.seq_len,
        estimate=SHAPES,
        state_gib=program.bytes_per_device(given.state) / GIB,
        gradients_gib=program.bytes_per_device(given.state.trainable) / GIB,
        frozen_gib=program.bytes_per_device(given.frozen) / GIB,
        batch_gib=program.bytes_per_device(given.batch) / GIB,
        hbm_limit_gib=wanted.chip.hbm_gib,
        minimum_flops_per_chip=flops.minimum(config, rows=rows) / wanted.devices,
        replicated=_replicated(given),
    )
    if result.arguments_gib + result.gradients_gib > result.hbm_limit_gib:
        return dataclasses.replace(result, fits=False)
    if not slices.compiler_is_there():
        return result
    result = _compiled(result, config, wanted)
    if unrolled:
        # Per row, and a row's products are spread over `tensor`.
        one = flops.executed(config, rows=per_chip) * microbatches / sizes[2]
        result = dataclasses.replace(result, unrolled_flops_per_chip=one)
    return result


def turns(config: Config, *, rows: int, loss_chunk: int = DEFAULT_EXECUTION.loss_chunk) -> dict[str, int]:
    """How often the loops turn whose turns data decides, at most: every position supervised, no image missing.

    Args:
        rows: on a chip at a time.
    """
    images = program.batch_shapes(program.with_rows(config, rows)).images.shape[1] * rows
    return {
        losses.CHUNK_SCOPE: math.ceil(config.data.seq_len / loss_chunk),
        step.IMAGE_LOOP: images // math.gcd(images, step.ENCODE_CHUNK),
    }


def text(result: StepPlan) -> str:
    """For people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    times = f", {result.microbatches} times a step" if result.microbatches > 1 else ""
    lines = [
        f"{result.recipe}:{result.stage} on {result.topology} ({result.chips} chips; {mesh}), "
        f"{result.per_chip_batch} x {result.seq_len} tokens a chip{times}, remat {result.remat}",
        f"figures: {result.estimate}",
        "",
        f"{'HBM a chip':<28}{'GiB':>8}",
    ]
    parts = [
        ("trained and optimizer", result.state_gib),
        ("frozen weights", result.frozen_gib),
        ("batch", result.batch_gib),
        ("gradients, activations, other", result.temporaries_gib),
        ("together", result.hbm_gib_per_chip),
        ("there is", result.hbm_limit_gib),
    ]
    lines += [f"  {name:<29}{_number(value):>8}" for name, value in parts]
    if result.temporaries_gib is None:
        lines.append(f"  {'a copy of the gradients':<29}{result.gradients_gib:>8.2f}")
    if result.host_gib:
        lines.append(f"  {'in the host memory':<29}{result.host_gib:>8.2f}")
    if result.fits is not None:
        lines.append("fits" if result.fits else f"does NOT fit: {result.compiler_message or BY_SHAPES}")
    if result.largest_per_chip_batch is not None:
        lines.append(f"largest batch that fits: {result.largest_per_chip_batch} rows a chip")
    lines += _flops_text(result)
    if result.collectives:
        lines += ["", f"{'collectives a chip and step':<31}{'MiB':>8}"]
        lines += [f"  {kind:<29}{size / 2**20:>8.1f}" for kind, size in result.collectives.items()]
        lines += [
            f"  {kind + ', between slices':<29}{size / 2**20:>8.1f}"
            for kind, size in result.between_slices.items()
            if size
        ]
    if result.roofline:
        lines += _roofline_text(result.roofline)
    if result.replicated:
        lines += ["", "whole on every chip:"]
        lines += [f"  {path:<44}{size:.3f} GiB" for path, size in result.replicated.items()]
    return "\n".join(lines)


def table(results: Sequence[StepPlan]) -> str:
    """One line a plan."""
    heads = (
        "slice",
        "chips",
        "mesh",
        "rows a chip",
        "HBM GiB",
        "of",
        "fits",
        "x minimum",
        "bound by",
        "tokens/s",
        "MFU",
    )
    lines = []
    for each in results:
        bound = each.roofline
        lines.append(
            (
                each.topology,
                str(each.chips),
                "x".join(str(size) for size in each.mesh.values()),
                str(each.per_chip_batch if each.largest_per_chip_batch is None else each.largest_per_chip_batch),
                _number(each.hbm_gib_per_chip),
                _number(each.hbm_limit_gib),
                {True: "yes", False: "no", None: "?"}[each.fits],
                "" if each.ratio is None else f"{each.ratio:.3f}",
                bound.bound_by if bound else "",
                f"{bound.tokens_per_second:,.0f}" if bound else "",
                f"{bound.mfu:.0%}" if bound else "",
            )
        )
    widths = [max(len(row[column]) for row in (heads, *lines)) for column in range(len(heads))]
    formatted = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *lines)
    ]
    if not results:
        return ""
    first = results[0]
    title = (
        f"{first.recipe}:{first.stage}, rows of {first.seq_len} tokens, remat {first.remat}; {first.estimate}; "
        "tokens/s and MFU at best"
    )
    return "\n".join([title, "", *formatted])


def _flops_text(result: StepPlan) -> list[str]:
    if not result.minimum_flops_per_chip:
        return []
    lines = ["", f"{'FLOPs a chip and step':<31}{'TFLOP':>8}"]
    lines.append(f"  {'theoretical minimum':<29}{result.minimum_flops_per_chip / 1e12:>8.2f}")
    for name, count in (("executed", result.flops_per_chip), ("counted unrolled", result.unrolled_flops_per_chip)):
        if count is not None:
            ratio = count / result.minimum_flops_per_chip
            lines.append(f"  {name:<29}{count / 1e12:>8.2f}   {ratio:.3f} of the minimum")
    return lines


def _roofline_text(bound: Roofline) -> list[str]:
    lines = ["", f"{'a step takes at least':<31}{'ms':>8}"]
    for name, what in (
        ("compute", "matrix products"),
        ("hbm", "HBM"),
        ("ici", "links between chips"),
        ("dcn", "network between slices"),
        ("host", "host memory"),
    ):
        if seconds := getattr(bound, name):
            mark = "   the bound" if name == bound.bound_by else ""
            lines.append(f"  {what:<29}{seconds * 1e3:>8.1f}{mark}")
    lines.append(
        f"at best {bound.tokens_per_second:,.0f} tokens/s on the slice, {bound.mfu:.1%} MFU (compiler estimate)"
    )
    return lines


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _per_chip(config: Config, wanted: Slice, per_chip_batch: int | None) -> tuple[Config, int]:
    """The config with so many rows a chip at a time, and how many those are."""
    groups = wanted.devices // config.mesh.tensor
    microbatches = config.optim.microbatches
    rows = config.data.batch_size // microbatches if per_chip_batch is None else per_chip_batch * groups
    return program.with_rows(config, rows, microbatches=microbatches), max(rows // groups, 1)


def _replicated(given: StepInputs) -> dict[str, float]:
    mesh = given.placement.mesh
    shapes: dict[str, Any] = {**given.state.trainable, **given.frozen}
    found = rules.replicated(shapes, given.placement.specs, sizes=dict(mesh.shape))
    return {entry.path: entry.bytes / GIB for entry in found} if mesh.shape["fsdp"] > 1 else {}


def _compiled(result: StepPlan, config: Config, wanted: Slice) -> StepPlan:
    try:
        compiled: jax.stages.Compiled = program.compile_step(config, slices.devices(wanted))
    except OutOfMemory as error:
        return dataclasses.replace(
            result, estimate=COMPILER, fits=False, compiler_message=str(error), **_from_message(str(error), result)
        )
    memory = program.memory(compiled)
    parsed = hlo.parse(compiled.as_text() or "")
    scopes = turns(config, rows=result.per_chip_batch)
    work = costs(parsed, turns=scopes)
    sent = collectives(parsed, turns=scopes, slices=wanted.count)
    assert result.minimum_flops_per_chip is not None
    return dataclasses.replace(
        result,
        estimate=COMPILER,
        temporaries_gib=memory.temporaries / GIB,
        hbm_gib_per_chip=memory.total / GIB,
        host_gib=memory.host / GIB,
        fits=memory.total / GIB <= wanted.chip.hbm_gib,
        flops_per_chip=work.flops,
        collectives=by_kind(sent),
        between_slices=by_kind([each for each in sent if each.leaves_slice]) if wanted.count > 1 else {},
        roofline=roofline(
            work,
            sent,
            wanted,
            tokens=config.data.batch_size * config.data.seq_len,
            minimum_flops=result.minimum_flops_per_chip,
        ),
    )


def _from_message(message: str, result: StepPlan) -> dict[str, Any]:
    """Sizes that the compiler names when a program does not fit."""
    if used := re.search(r"Used ([\d.]+)G of", message):
        return {"hbm_gib_per_chip": float(used[1])}
    if temporaries := re.search(r"temporaries \(([\d.]+)G\)", message):
        needed = float(temporaries[1])
        return {"temporaries_gib": needed, "hbm_gib_per_chip": needed + result.arguments_gib}
    return {}
