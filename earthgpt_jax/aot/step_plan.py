"""Plan a training step: what a recipe needs on a TPU slice, and how fast it can be."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from earthgpt_jax.aot import flops, hlo, program, remat_search, run_plan, slices
from earthgpt_jax.aot.collectives import by_kind, collectives
from earthgpt_jax.aot.costs import costs
from earthgpt_jax.aot.program import GIB, OutOfMemory, StepInputs
from earthgpt_jax.aot.roofline import Roofline, roofline
from earthgpt_jax.aot.run_plan import Host, Rates, RunPlan
from earthgpt_jax.aot.slices import Slice
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, Remat
from earthgpt_jax.models import model_dir
from earthgpt_jax.ops import losses
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import AXES, axis_sizes
from earthgpt_jax.training import step
from earthgpt_jax.training.execution import DEFAULT_EXECUTION
from earthgpt_jax.training.initial import RANDOM

COMPILER, SHAPES = "compiler estimate", "sizes from array shapes only; install libtpu for the rest"
DEFAULT_RATES = Rates()
TOO_LARGE = "the arguments and one copy of the gradients exceed the memory of a chip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What a training step needs on a slice. Sizes are estimates per chip in GiB.

    Attributes:
        chips: number of chips in all slices.
        remat: rematerialization policy; that chosen for the slice if the recipe's is `auto`.
        run: what the run needs around its steps.
        remat_tried: policies that `auto` compiled, with their GiB per chip; None: it does not fit.
        per_chip_batch: sequences that a chip (with `tensor` > 1, a group of chips) processes at a time.
        microbatches: number of microbatches per step; with more than one, two copies of the gradients are held.
        estimate: where the figures come from: `COMPILER` or `SHAPES`.
        state_gib: trainable parameters and optimizer state.
        gradients_gib: one copy of the gradients; part of `temporaries_gib` if that is known.
        temporaries_gib, hbm_gib_per_chip: None without a compiler.
        host_gib: host memory, for what is offloaded.
        fits: None if only a compiler could tell.
        flops_per_chip: executed per step with every position supervised, without attention's own products.
        unrolled_flops_per_chip: the same, counted by `flops.executed`; None unless requested.
        minimum_flops_per_chip: theoretical minimum, see `flops.minimum`.
        collectives: kind -> bytes per step on one chip.
        between_slices: the part of `collectives` that leaves a slice.
        roofline: lower bound on the time of a step.
        replicated: large parameters that every chip holds in full, path -> GiB.
        largest_per_chip_batch: None unless searched for.
        compiler_message: why the program does not fit.
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
    run: RunPlan | None = None
    remat_tried: dict[str, float | None] = dataclasses.field(default_factory=dict)
    compiler_message: str = ""

    @property
    def arguments_gib(self) -> float:
        """Size of the arguments of the step."""
        return self.state_gib + self.frozen_gib + self.batch_gib

    @property
    def refused(self) -> bool:
        """Whether the step or what is around it does not fit."""
        return self.fits is False or bool(self.run and self.run.problems)

    @property
    def flops_ratio(self) -> float | None:
        """Executed FLOPs relative to the theoretical minimum."""
        return self.flops_per_chip / self.minimum_flops_per_chip if self.flops_per_chip else None  # type: ignore[operator]


def plan_step(
    config: Config,
    slice_: Slice,
    *,
    per_chip_batch: int | None = None,
    unrolled: bool = False,
    rates: Rates = DEFAULT_RATES,
) -> StepPlan:
    """Compile the step of `config` for a slice; without libtpu, add up the sizes of its arguments.

    A step whose arguments and gradients alone exceed the memory of a chip is not compiled.

    Args:
        per_chip_batch: sequences that a chip (with `tensor` > 1, a group of chips) processes at a time, in each of the
            recipe's microbatches; the default follows from the recipe's batch size and microbatches.
        unrolled: also count FLOPs with `flops.executed`, which takes two more compilations.
        rates: at which each process reads and writes.

    Raises:
        EarthGPTError: the mesh does not fit the slice, the batch or the parameters.
    """
    config, per_chip_batch = _with_per_chip_batch(config, slice_, per_chip_batch)
    plan = _plan_from_shapes(config, slice_, per_chip_batch, rates=rates)
    if plan.arguments_gib + plan.gradients_gib > plan.hbm_limit_gib:
        return dataclasses.replace(plan, fits=False)
    if not slices.compiler_is_available():
        return plan
    plan, config = _add_compiled(plan, config, slice_)
    if plan.fits:
        plan = dataclasses.replace(plan, run=_plan_run(plan, config, slice_, rates=rates))
    if unrolled:
        # A matrix product of one sequence is sharded over `tensor`.
        per_microbatch = flops.executed(config, batch_size=per_chip_batch) / plan.mesh["tensor"]
        plan = dataclasses.replace(plan, unrolled_flops_per_chip=per_microbatch * plan.microbatches)
    return plan


def trip_counts(config: Config, *, batch_size: int, loss_chunk: int = DEFAULT_EXECUTION.loss_chunk) -> dict[str, int]:
    """Return the largest trip counts of the loops that depend on data: every position supervised, no image missing.

    Args:
        batch_size: sequences that a chip processes at a time.
    """
    images = math.prod(program.batch_shapes(program.with_batch_size(config, batch_size)).images.shape[:2])
    return {
        losses.CHUNK_SCOPE: math.ceil(config.data.seq_len / loss_chunk),
        step.IMAGE_LOOP: images // math.gcd(images, step.ENCODE_CHUNK),
    }


def _with_per_chip_batch(config: Config, slice_: Slice, per_chip_batch: int | None) -> tuple[Config, int]:
    """Return the config whose batch gives `per_chip_batch` sequences per chip and microbatch, and that number."""
    groups = slice_.devices // config.mesh.tensor
    microbatches = config.optim.microbatches
    batch = config.data.batch_size // microbatches if per_chip_batch is None else per_chip_batch * groups
    return program.with_batch_size(config, batch, microbatches=microbatches), max(batch // groups, 1)


def _plan_from_shapes(config: Config, slice_: Slice, per_chip_batch: int, *, rates: Rates) -> StepPlan:
    """Return what is known without compiling."""
    batch_size, microbatches = config.data.batch_size, config.optim.microbatches
    sizes = axis_sizes(config.mesh, devices=slice_.devices, rows=batch_size // microbatches, slices=slice_.count)
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    inputs = program.step_inputs(config, mesh)
    plan = StepPlan(
        recipe=config.recipe,
        stage=config.stage,
        topology=slice_.name,
        chips=slice_.devices,
        mesh=dict(zip(AXES, sizes, strict=True)),
        remat=config.remat,
        per_chip_batch=per_chip_batch,
        microbatches=microbatches,
        seq_len=config.data.seq_len,
        estimate=SHAPES,
        state_gib=program.bytes_per_device(inputs.state) / GIB,
        gradients_gib=program.bytes_per_device(inputs.state.trainable) / GIB,
        frozen_gib=program.bytes_per_device(inputs.frozen) / GIB,
        batch_gib=program.bytes_per_device(inputs.batch) / GIB,
        hbm_limit_gib=slice_.chip.hbm_gib,
        minimum_flops_per_chip=flops.minimum(config, batch_size=batch_size) / slice_.devices,
        replicated=_replicated(inputs),
    )
    return dataclasses.replace(plan, run=_plan_run(plan, config, slice_, rates=rates, inputs=inputs))


def _plan_run(
    plan: StepPlan, config: Config, slice_: Slice, *, rates: Rates, inputs: StepInputs | None = None
) -> RunPlan:
    """Plan what is around the step; also its validation, if the step is compiled."""
    validation = None
    if plan.hbm_gib_per_chip is not None and config.validation.every_steps:
        needed = program.memory(program.compile_validation(config, slices.devices(slice_))).total / GIB
        validation = needed + plan.state_gib - plan.gradients_gib  # the optimizer state stays on the devices
    if inputs is None:
        mesh = AbstractMesh(tuple(plan.mesh.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        inputs = program.step_inputs(config, mesh)
    return run_plan.plan_run(
        config,
        inputs,
        host=Host(devices=slice_.chips_per_host, memory_gib=slice_.chip.hosts[slice_.chips_per_host] * 1e9 / GIB),
        hbm_gib=slice_.chip.hbm_gib,
        rates=rates,
        initial=_initial_sizes(config),
        step_gib=plan.hbm_gib_per_chip,
        offloaded_gib=plan.host_gib,
        validation_gib=validation,
    )


def _initial_sizes(config: Config) -> dict[str, int] | None:
    """Return the bytes of each parameter in the files of `config.init`; None if it is not on this machine."""
    if config.init == RANDOM:
        return {}
    if not config.init:
        return None
    try:
        reader = model_dir.open_params(model_dir.read_config(config.init))
    except EarthGPTError:
        return None
    _, shapes = program.abstract_model(config.model)
    return {
        path: math.prod(shape) * reader.dtypes[path].itemsize for path, shape in reader.shapes.items() if path in shapes
    }


def _replicated(inputs: StepInputs) -> dict[str, float]:
    mesh = inputs.placement.mesh
    shapes: dict[str, Any] = {**inputs.state.trainable, **inputs.frozen}
    large = rules.replicated(shapes, inputs.placement.specs, sizes=dict(mesh.shape))
    return {entry.path: entry.bytes / GIB for entry in large} if mesh.shape["fsdp"] > 1 else {}


def _add_compiled(plan: StepPlan, config: Config, slice_: Slice) -> tuple[StepPlan, Config]:
    """Compile the step and add the compiler's figures to the plan; choose the policy of `remat=auto`."""
    devices = slices.devices(slice_)
    compiled: dict[str, jax.stages.Compiled | OutOfMemory] = {}  # by policy

    def compile_and_measure(config: Config) -> int:
        try:
            compiled[config.remat] = step = program.compile_step(config, devices)
        except OutOfMemory as error:
            compiled[config.remat] = error
            raise
        return program.memory(step).total

    if config.remat == Remat.AUTO:
        limits = remat_search.limits_of(slice_.chip)
        found = remat_search.choose(config, compile_and_measure, sequences=plan.per_chip_batch, limits=limits)
        config = dataclasses.replace(config, remat=found.policy)
        tried = {policy: size and size / GIB for policy, size in found.tried.items()}
        plan = dataclasses.replace(plan, remat=found.policy, remat_tried=tried)
    if config.remat not in compiled:
        with contextlib.suppress(OutOfMemory):
            compile_and_measure(config)
    result = compiled[config.remat]
    if isinstance(result, OutOfMemory):
        sizes = _sizes_in_message(str(result), plan)
        plan = dataclasses.replace(plan, estimate=COMPILER, fits=False, compiler_message=str(result), **sizes)
        return plan, config
    return _with_figures(plan, config, slice_, result), config


def _with_figures(plan: StepPlan, config: Config, slice_: Slice, compiled: jax.stages.Compiled) -> StepPlan:
    memory = program.memory(compiled)
    parsed = hlo.parse(compiled.as_text() or "")
    counts = trip_counts(config, batch_size=plan.per_chip_batch)
    work = costs(parsed, trip_counts=counts)
    communication = collectives(parsed, trip_counts=counts, slices=slice_.count)
    between_slices = [entry for entry in communication if entry.crosses_slices]
    assert plan.minimum_flops_per_chip is not None
    return dataclasses.replace(
        plan,
        estimate=COMPILER,
        temporaries_gib=memory.temporaries / GIB,
        hbm_gib_per_chip=memory.total / GIB,
        host_gib=memory.host / GIB,
        fits=memory.total / GIB <= slice_.chip.hbm_gib,
        flops_per_chip=work.flops,
        collectives=by_kind(communication),
        between_slices=by_kind(between_slices) if slice_.count > 1 else {},
        roofline=roofline(
            work,
            communication,
            slice_,
            tokens=config.data.batch_size * config.data.seq_len,
            minimum_flops=plan.minimum_flops_per_chip,
        ),
    )


def _sizes_in_message(message: str, plan: StepPlan) -> dict[str, Any]:
    """Return the sizes that the compiler names when a program does not fit."""
    if used := re.search(r"Used ([\d.]+)G of", message):
        return {"hbm_gib_per_chip": float(used[1])}
    if temporaries := re.search(r"temporaries \(([\d.]+)G\)", message):
        size = float(temporaries[1])
        return {"temporaries_gib": size, "hbm_gib_per_chip": size + plan.arguments_gib}
    return {}
