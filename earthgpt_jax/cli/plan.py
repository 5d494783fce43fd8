"""`earthgpt plan`: does a recipe fit a TPU slice, and what does a step cost there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging

NAME = "plan"
HELP = "compile a recipe's step for a TPU slice: memory, FLOPs, collectives"
OVERRIDES = True
DESCRIPTION = """\
Compiles the recipe's real training step for a TPU slice with the TPU's own compiler, on this machine's
CPU (package libtpu: pip install 'earthgpt-jax[plan]'), and says what a chip's memory holds, whether it
fits, how many FLOPs a step executes beside the fewest possible, and how many bytes its collectives move.
All figures are the compiler's estimates; nothing is run. A 13B step takes a minute or two.
Without libtpu: the bytes of weights, optimizer and batch on each chip, from their shapes.

examples:
  earthgpt plan --config earthgpt_13b:align --topology v5e-8 --per-chip-batch 1
  earthgpt plan --config earthgpt_13b:instruct --topology v5p-128 --largest-batch
  earthgpt plan --config earthgpt_13b:instruct --topology 2xv5e-256 --json --config.mesh.fsdp=16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="NAME:STAGE", help="a recipe of configs/ or a path")
    parser.add_argument(
        "--topology", required=True, metavar="SLICE", help="v5e-8, v5p-128 (64 chips), v6e-256, 2xv5e-256 (two slices)"
    )
    parser.add_argument(
        "--per-chip-batch", type=int, metavar="ROWS", help="rows on a chip at a time (default: the recipe's)"
    )
    parser.add_argument("--largest-batch", action="store_true", help="search for the most rows a chip that fit")
    parser.add_argument("--no-flops", action="store_true", help="leave executed FLOPs out: one compilation, not three")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import jax

    from earthgpt_jax.config import load
    from earthgpt_jax.errors import EarthGPTError
    from earthgpt_jax.plan import report, slices

    if args.per_chip_batch is not None and args.per_chip_batch < 1:
        raise EarthGPTError(f"--per-chip-batch: expected a positive number, got {args.per_chip_batch}")
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here is not needed, and would be taken
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("earthgpt_jax").setLevel(logging.INFO)
    question = report.Question(flops=not args.no_flops, largest_batch=args.largest_batch)
    result = report.plan(
        load(args.config, args.overrides),
        slices.parse(args.topology),
        per_chip_batch=args.per_chip_batch,
        question=question,
    )
    print(json.dumps(dataclasses.asdict(result), indent=1) if args.json else report.text(result))
    return 1 if result.fits is False else 0
