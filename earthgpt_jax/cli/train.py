"""`earthgpt train`: one stage of a recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NAME = "train"
HELP = "train a stage of a recipe; resumes by itself"
OVERRIDES = True
DESCRIPTION = """\
Trains one stage: `align` (projector, attention, norms on image-caption pairs), then `instruct`
(adapters on instructions). The same command continues a run that was stopped, bit for bit; on another
number of hosts, but for the order of sums. Worker processes change nothing.

WORKDIR then holds config.json (the recipe), plan.txt (what an epoch of it holds), metrics.jsonl and
tb/ (loss, rate, epoch), checkpoints/, and at the end model/.

examples:
  earthgpt train --config tiny:align --workdir runs/align --config.data.source=DATA
  earthgpt train --config tiny:instruct --workdir runs/instruct --config.data.source=DATA \\
      --config.init=runs/align/model
  earthgpt train --config tiny_real:instruct --workdir runs/real --config.data.source=DATASETS \\
      --config.data.mixture=mmrs_balanced --config.data.augment=flips --config.data.workers=2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME:STAGE",
        help="a recipe of configs/ or a path, with its stage: tiny:align; override any field as --config.a.b=value",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="checkpoints, metrics and the finished model")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.config import load
    from earthgpt_jax.training.loop import train

    config = load(args.config, args.overrides)
    finished = train(config, args.workdir)
    print(f"finished: {finished}", file=sys.stderr)
    return 0
