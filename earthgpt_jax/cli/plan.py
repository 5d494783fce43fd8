"""Compile a recipe's step for a TPU slice: memory, FLOPs, collectives, the bound of its speed.

Compiles the recipe's real training step for a TPU slice with the TPU's own compiler, on this machine's
CPU (package libtpu: pip install 'earthgpt-jax[plan]'), and says what a chip's memory holds, whether it
fits, how many FLOPs a step executes beside the fewest possible, how many bytes its collectives move, and
how fast a step can be at best. All figures are the compiler's estimates; nothing is run. A 13B step takes a
few minutes. Without libtpu: the bytes of weights, optimizer and batch on each chip, from their shapes.

examples:
  earthgpt plan --config earthgpt_13b:align --topology v5e-8 --per-chip-batch 1
  earthgpt plan --config earthgpt_13b:instruct --topology v5p-128 --largest-batch
  earthgpt plan --config earthgpt_13b:align --topology v5e-16 v5e-256 v6e-64 --per-chip-batch 1
  earthgpt plan --config earthgpt_13b:align --topology 2xv5e-16 --per-chip-batch 2 --config.mesh.data=2
  earthgpt plan --config earthgpt_13b:instruct --topology v6e-8 --per-chip-batch 2 --smallest --json
  earthgpt plan --config earthgpt_13b:instruct --topology v5e-8 --inference --largest-batch

With --inference: the programs that `earthgpt eval` runs, for a batch of questions; weights lie over as few chips as
hold them (or as --config.mesh.tensor=N says), and those are a group, which has --per-chip-batch questions in work.
Exit status 1: it fits none of the slices.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from earthgpt_jax.config import Config

OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="NAME:STAGE", help="a recipe of configs/ or a path")
    parser.add_argument(
        "--topology",
        required=True,
        nargs="+",
        metavar="SLICE",
        help="v5e-8, v5p-128 (64 chips), v6e-256, 2xv5e-256 (two slices); of several a table",
    )
    parser.add_argument(
        "--per-chip-batch", type=int, metavar="ROWS", help="rows on a chip at a time (default: the recipe's)"
    )
    parser.add_argument("--largest-batch", action="store_true", help="search for the most rows a chip that fit")
    parser.add_argument(
        "--smallest", action="store_true", help="instead of the slice itself the smallest of its generation that fits"
    )
    parser.add_argument(
        "--unrolled", action="store_true", help="count FLOPs a second way as well, which takes two more compilations"
    )
    parser.add_argument("--inference", action="store_true", help="instead of the training step, answering questions")
    parser.add_argument(
        "--questions-per-image", type=int, default=16, metavar="N", help="with --inference (default: 16)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; of several slices a list")


def run(args: argparse.Namespace) -> int:
    import jax

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.config import load

    for option in ("per_chip_batch", "questions_per_image"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise EarthGPTError(f"--{option.replace('_', '-')}: expected a positive number, got {value}")
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here is not needed, and would be taken
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("earthgpt_jax").setLevel(logging.INFO)
    return (_inference if args.inference else _training)(args, load(args.config, args.overrides))


def _inference(args: argparse.Namespace, config: Config) -> int:
    from earthgpt_jax.aot import inference, slices
    from earthgpt_jax.common.errors import EarthGPTError

    if len(args.topology) > 1 or args.smallest or args.unrolled:
        raise EarthGPTError("--inference: expected one slice, and neither --smallest nor --unrolled")
    wanted = slices.parse(args.topology[0])
    asked = inference.Workload(per_image=args.questions_per_image)
    if args.per_chip_batch:
        asked = dataclasses.replace(asked, rows=args.per_chip_batch)
    # A recipe's mesh is for training; one that the command line names is meant.
    mesh = config.mesh if any(each.startswith("--config.mesh.") for each in args.overrides) else None
    result = inference.plan_inference(config, wanted, asked=asked, mesh=mesh)
    if args.largest_batch:
        most = inference.largest_rows(config, wanted, asked=asked, start=result)
        result = dataclasses.replace(result, largest_rows=most)
    print(json.dumps(dataclasses.asdict(result), indent=1) if args.json else inference.text(result))
    return 0 if result.fits else 1


def _training(args: argparse.Namespace, config: Config) -> int:
    from earthgpt_jax.aot import report, search, slices
    from earthgpt_jax.common.errors import EarthGPTError

    results: list[report.StepPlan] = []
    refused: dict[str, str] = {}  # of several slices those that the mesh or the batch cannot be spread over
    for name in args.topology:
        try:
            wanted = slices.parse(name)
            if args.smallest:
                results.append(search.smallest_slice(config, wanted, per_chip_batch=args.per_chip_batch))
            else:
                results.append(
                    report.plan_step(config, wanted, per_chip_batch=args.per_chip_batch, unrolled=args.unrolled)
                )
        except EarthGPTError as error:
            if len(args.topology) == 1:
                raise
            refused[name] = str(error)
            continue
        if args.largest_batch:
            most = search.largest_batch(config, slices.parse(results[-1].topology), start=results[-1])
            results[-1] = dataclasses.replace(results[-1], largest_per_chip_batch=most)
    if args.json:
        values = [dataclasses.asdict(result) for result in results]
        values += [{"topology": name, "fits": False, "error": why} for name, why in refused.items()]
        print(json.dumps(values if len(args.topology) > 1 else values[0], indent=1))
    else:
        print(report.table(results) if len(args.topology) > 1 else report.text(results[0]))
        for name, why in refused.items():
            print(f"\n{name}: {why}")
    return 1 if all(result.fits is False for result in results) else 0
