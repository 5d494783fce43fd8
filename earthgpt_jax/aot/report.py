"""Format plans as text."""

from __future__ import annotations

from collections.abc import Sequence

from earthgpt_jax.aot.inference_plan import InferencePlan
from earthgpt_jax.aot.roofline import Roofline
from earthgpt_jax.aot.run_plan import RunPlan
from earthgpt_jax.aot.step_plan import TOO_LARGE, StepPlan

_RESOURCES = {
    "compute": "matrix products",
    "hbm": "HBM",
    "ici": "links between chips",
    "dcn": "network between slices",
    "host": "host memory",
}


def format_step_plan(plan: StepPlan) -> str:
    """Format the plan of a training step as a report of several sections."""
    microbatches = f", {plan.microbatches} microbatches" if plan.microbatches > 1 else ""
    lines = [
        f"{plan.recipe}:{plan.stage} on {plan.topology} ({plan.chips} chips; {_mesh(plan.mesh)}), "
        f"{plan.per_chip_batch} x {plan.seq_len} tokens per chip{microbatches}, remat {plan.remat}",
        f"figures: {plan.estimate}",
        "",
        f"{'HBM per chip':<31}{'GiB':>8}",
    ]
    sizes = [
        ("trainable and optimizer", plan.state_gib),
        ("frozen parameters", plan.frozen_gib),
        ("batch", plan.batch_gib),
        ("gradients, activations, other", plan.temporaries_gib),
        ("total", plan.hbm_gib_per_chip),
        ("available", plan.hbm_limit_gib),
    ]
    lines += [f"  {name:<29}{_number(size):>8}" for name, size in sizes]
    if plan.temporaries_gib is None:
        lines.append(f"  {'one copy of the gradients':<29}{plan.gradients_gib:>8.2f}")
    if plan.host_gib:
        lines.append(f"  {'in host memory':<29}{plan.host_gib:>8.2f}")
    if plan.fits is not None:
        lines.append("fits" if plan.fits else f"does NOT fit: {plan.compiler_message or TOO_LARGE}")
    if plan.largest_per_chip_batch is not None:
        lines.append(f"largest per-chip batch that fits: {plan.largest_per_chip_batch}")
    return "\n".join(
        [*lines, *_flops(plan), *_collectives(plan), *_roofline(plan.roofline), *_run(plan.run), *_replicated(plan)]
    )


def format_table(plans: Sequence[StepPlan]) -> str:
    """Format several plans as a table, one line per plan."""
    if not plans:
        return ""
    heads = (
        "slice", "chips", "mesh", "batch/chip", "HBM GiB", "of", "fits", "x minimum", "bound by", "tokens/s", "MFU"
    )  # fmt: skip
    rows = [heads, *map(_table_row, plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    first = plans[0]
    title = (
        f"{first.recipe}:{first.stage}, sequences of {first.seq_len} tokens, remat {first.remat}; {first.estimate}; "
        "tokens/s and MFU are upper bounds"
    )
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([title, "", *table])


def format_inference_plan(plan: InferencePlan) -> str:
    """Format the plan of the inference programs."""
    shape = plan.state_shape
    lines = [
        f"{plan.recipe}:{plan.stage}, inference on {plan.topology} ({plan.chips} chips; {_mesh(plan.mesh)})",
        f"per group of {plan.mesh['tensor']} chips: {shape.images} images of {plan.prefix_tokens} tokens x "
        f"{shape.slots_per_image} questions of {shape.question_tokens} + {shape.answer_tokens} tokens",
        f"figures: {plan.estimate}",
        "",
        f"{'HBM per chip':<31}{'GiB':>8}",
    ]
    sizes = [
        ("parameters", plan.parameters_gib),
        ("image prefixes", plan.prefixes_gib),
        ("question caches", plan.caches_gib),
        *((f"temporary: {program.name}", program.temporary_gib) for program in plan.programs),
        ("total, at most", plan.hbm_gib_per_chip),
        ("available", plan.hbm_limit_gib),
    ]
    lines += [f"  {name:<29}{_number(size):>8}" for name, size in sizes]
    lines.append("fits" if plan.fits else "does NOT fit")
    lines += [program.compiler_message for program in plan.programs if program.compiler_message]
    if plan.largest_batch is not None:
        lines.append(f"largest batch that fits: {plan.largest_batch} questions per group")
    lines += ["", f"{'upper bounds':<16}{'per call':>9}{'ms':>9}{'per second':>11}  unit, bound by"]
    for program in plan.programs:
        if bound := program.roofline:
            lines.append(
                f"  {program.name:<14}{program.units:>9}{bound.seconds * 1e3:>9.2f}{bound.tokens_per_second:>11,.0f}  "
                f"{program.unit}, {bound.bound_by}"
            )
    return "\n".join(lines)


def _table_row(plan: StepPlan) -> tuple[str, ...]:
    bound, largest = plan.roofline, plan.largest_per_chip_batch
    return (
        plan.topology,
        str(plan.chips),
        "x".join(str(size) for size in plan.mesh.values()),
        str(plan.per_chip_batch if largest is None else largest),
        _number(plan.hbm_gib_per_chip),
        _number(plan.hbm_limit_gib),
        "no" if plan.refused else {True: "yes", False: "no", None: "?"}[plan.fits],
        "" if plan.flops_ratio is None else f"{plan.flops_ratio:.3f}",
        bound.bound_by if bound else "",
        f"{bound.tokens_per_second:,.0f}" if bound else "",
        f"{bound.mfu:.0%}" if bound else "",
    )


def _flops(plan: StepPlan) -> list[str]:
    if not plan.minimum_flops_per_chip:
        return []
    lines = ["", f"{'FLOPs per chip and step':<31}{'TFLOP':>8}"]
    lines.append(f"  {'theoretical minimum':<29}{plan.minimum_flops_per_chip / 1e12:>8.2f}")
    for name, count in (("executed", plan.flops_per_chip), ("executed, unrolled", plan.unrolled_flops_per_chip)):
        if count is not None:
            ratio = count / plan.minimum_flops_per_chip
            lines.append(f"  {name:<29}{count / 1e12:>8.2f}   {ratio:.3f} x minimum")
    return lines


def _collectives(plan: StepPlan) -> list[str]:
    if not plan.collectives:
        return []
    sizes = [*plan.collectives.items()]
    sizes += [(f"{kind}, between slices", size) for kind, size in plan.between_slices.items() if size]
    lines = [f"  {name:<29}{size / 2**20:>8.1f}" for name, size in sizes]
    return ["", f"{'collectives per chip and step':<31}{'MiB':>8}", *lines]


def _roofline(bound: Roofline | None) -> list[str]:
    if bound is None:
        return []
    lines = ["", f"{'minimum time of a step':<31}{'ms':>8}"]
    for name, resource in _RESOURCES.items():
        if seconds := getattr(bound, name):
            mark = "   the bound" if name == bound.bound_by else ""
            lines.append(f"  {resource:<29}{seconds * 1e3:>8.1f}{mark}")
    lines.append(
        f"at best {bound.tokens_per_second:,.0f} tokens/s on the slice, {bound.mfu:.1%} MFU (compiler estimate)"
    )
    return lines


def _run(plan: RunPlan | None) -> list[str]:
    if plan is None:
        return []
    lines = [
        "",
        f"{'whole run, ' + str(plan.processes) + ' process(es)':<22}{'chip GiB':>10}{'host GiB':>10}{'read GB':>9}"
        f"{'written GB':>12}{'seconds':>9}",
    ]
    for phase in plan.phases:
        lines.append(
            f"  {phase.name:<20}{phase.device_gib:>10.2f}{phase.host_gib:>10.2f}{phase.read_bytes / 1e9:>9.2f}"
            f"{phase.written_bytes / 1e9:>12.3f}{phase.seconds:>9.1f}"
        )
    lines.append(f"  memory of a host: {plan.host_limit_gib:.0f} GiB")
    sizes = [("checkpoint", plan.checkpoint_bytes), ("model", plan.model_bytes), ("adapters alone", plan.adapter_bytes)]
    lines.append("  " + ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in sizes if size is not None))
    return [*lines, *(f"does NOT fit: {problem}" for problem in plan.problems)]


def _replicated(plan: StepPlan) -> list[str]:
    if not plan.replicated:
        return []
    return ["", "replicated on every chip:", *(f"  {path:<44}{size:.3f} GiB" for path, size in plan.replicated.items())]


def _mesh(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
