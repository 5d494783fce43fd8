"""`earthgpt data stats`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "count records, tasks, labels and objects"
DESCRIPTION = "Counts what dataset directories hold."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="a dataset directory, or a folder of several")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.mmrs.inspection import directories, statistics

    print("\n\n".join(statistics(directory) for directory in directories(args.dir)))
    return 0
