"""Plan a recipe on a TPU slice: memory, FLOPs, collectives, and a bound on its speed.

Compiles the recipe's training step for a TPU slice with XLA's TPU compiler, on the CPU of this
machine (install libtpu: pip install 'earthgpt-jax[plan]'). Prints the memory that a chip needs and
whether the step fits, the FLOPs it executes compared with the theoretical minimum, the bytes that
its collectives move, and a lower bound on its time; then the memory of chips and hosts, the bytes and
the seconds that start, checkpoints and the finished model take. All figures are compiler estimates; nothing is
executed. A 13B step compiles in a few minutes, several times with remat=auto. Without libtpu, only
what follows from the sizes of arrays is printed.

examples:
  earthgpt plan --config earthgpt_13b:align --topology v5e-8 --per-chip-batch 1
  earthgpt plan --config earthgpt_13b:instruct --topology v5p-128 --largest-batch
  earthgpt plan --config earthgpt_13b:align --topology v5e-16 v5e-256 v6e-64 --per-chip-batch 1
  earthgpt plan --config earthgpt_13b:align --topology 2xv5e-16 --per-chip-batch 2 --config.mesh.data=2
  earthgpt plan --config earthgpt_13b:instruct --topology v6e-8 --per-chip-batch 2 --smallest --json
  earthgpt plan --config earthgpt_13b:instruct --topology v5e-8 --inference --largest-batch

With --inference, plans the programs of `earthgpt eval` instead. The parameters are sharded over the
smallest group of chips that holds them (or over --config.mesh.tensor=N chips); each group answers
--per-chip-batch questions at a time.

exit status:
  0  it fits the chips and hosts of at least one of the slices, or only a compiler could tell
  1  it fits none of the slices
  2  user error; one `error:` line explains the fix
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from earthgpt_jax.aot.step_plan import StepPlan
    from earthgpt_jax.config import Config

OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="NAME:STAGE", help="a recipe name from configs/ or a path, with its stage"
    )
    parser.add_argument(
        "--topology",
        required=True,
        nargs="+",
        metavar="SLICE",
        help="v5e-8, v5p-128 (64 chips), v6e-256, 2xv5e-256 (two slices); several slices print a table",
    )
    parser.add_argument(
        "--per-chip-batch", type=int, metavar="N", help="sequences per chip and microbatch (default: from the recipe)"
    )
    parser.add_argument("--largest-batch", action="store_true", help="search for the largest per-chip batch that fits")
    parser.add_argument(
        "--smallest", action="store_true", help="plan the smallest slice of the same TPU generation that fits"
    )
    parser.add_argument(
        "--unrolled",
        action="store_true",
        help="also count FLOPs with unrolled layers (two more compilations)",
    )
    parser.add_argument("--inference", action="store_true", help="plan inference instead of the training step")
    parser.add_argument(
        "--questions-per-image", type=int, default=16, metavar="N", help="for --inference (default: 16)"
    )
    for what, default in (("read", 1.0), ("write", 0.5)):
        parser.add_argument(
            f"--{what}-gbps",
            type=float,
            default=default,
            metavar="RATE",
            help=f"GB/s at which each process {what}s files, for the seconds of the whole run (default: {default})",
        )
    parser.add_argument("--json", action="store_true", help="print JSON; a list for several slices")


def run(args: argparse.Namespace) -> int:
    import jax

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.config import load

    for option in ("per_chip_batch", "questions_per_image", "read_gbps", "write_gbps"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            raise EarthGPTError(f"--{option.replace('_', '-')}: expected a positive number, got {value}")
    jax.config.update("jax_platforms", "cpu")  # do not occupy a local TPU, which is not needed
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("earthgpt_jax").setLevel(logging.INFO)
    return (_inference if args.inference else _training)(args, load(args.config, args.overrides))


def _inference(args: argparse.Namespace, config: Config) -> int:
    from earthgpt_jax.aot import report, search, slices
    from earthgpt_jax.aot.inference_plan import Workload, plan_inference
    from earthgpt_jax.common.errors import EarthGPTError

    if len(args.topology) > 1 or args.smallest or args.unrolled:
        raise EarthGPTError("--inference: expected one slice, without --smallest and --unrolled")
    slice_ = slices.parse(args.topology[0])
    workload = Workload(questions_per_image=args.questions_per_image)
    if args.per_chip_batch:
        workload = dataclasses.replace(workload, batch_size=args.per_chip_batch)
    # The mesh of a recipe is meant for training; a mesh on the command line is meant for inference.
    mesh = config.mesh if any(override.startswith("--config.mesh.") for override in args.overrides) else None
    plan = plan_inference(config, slice_, workload=workload, mesh=mesh)
    if args.largest_batch:
        largest = search.largest_inference_batch(config, slice_, workload=workload, start=plan)
        plan = dataclasses.replace(plan, largest_batch=largest)
    print(json.dumps(dataclasses.asdict(plan), indent=1) if args.json else report.format_inference_plan(plan))
    return 0 if plan.fits else 1


def _training(args: argparse.Namespace, config: Config) -> int:
    from earthgpt_jax.aot import report
    from earthgpt_jax.common.errors import EarthGPTError

    plans: list[StepPlan] = []
    errors: dict[str, str] = {}  # slice -> why the mesh or the batch cannot be sharded over it
    for name in args.topology:
        try:
            plans.append(_plan_slice(args, config, name))
        except EarthGPTError as error:
            if len(args.topology) == 1:
                raise
            errors[name] = str(error)
    if args.json:
        values = [dataclasses.asdict(plan) for plan in plans]
        values += [{"topology": name, "fits": False, "error": reason} for name, reason in errors.items()]
        print(json.dumps(values if len(args.topology) > 1 else values[0], indent=1))
    else:
        print(report.format_table(plans) if len(args.topology) > 1 else report.format_step_plan(plans[0]))
        for name, reason in errors.items():
            print(f"\n{name}: {reason}")
    return 1 if all(plan.refused for plan in plans) else 0


def _plan_slice(args: argparse.Namespace, config: Config, name: str) -> StepPlan:
    from earthgpt_jax.aot import search, slices
    from earthgpt_jax.aot.run_plan import Rates
    from earthgpt_jax.aot.step_plan import plan_step

    slice_ = slices.parse(name)
    if args.smallest:
        plan = search.smallest_slice(config, slice_, per_chip_batch=args.per_chip_batch)
    else:
        rates = Rates(read=args.read_gbps, write=args.write_gbps)
        plan = plan_step(config, slice_, per_chip_batch=args.per_chip_batch, unrolled=args.unrolled, rates=rates)
    if args.largest_batch:
        largest = search.largest_batch(config, slices.parse(plan.topology), start=plan)
        plan = dataclasses.replace(plan, largest_per_chip_batch=largest)
    return plan
