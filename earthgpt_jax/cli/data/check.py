"""`earthgpt data check`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "read everything back; exit status 1 if something is wrong"
DESCRIPTION = "Reads a dataset directory back, as a whole, and says what is wrong with it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="a dataset directory, or a folder of several")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.mmrs.inspection import complaints, directories

    wrong = 0
    for directory in directories(args.dir):
        found = complaints(directory)
        wrong += len(found)
        for complaint in found:
            print(f"{directory}: {complaint}")
        if not found:
            print(f"{directory}: fine")
    return 1 if wrong else 0
