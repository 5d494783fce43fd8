"""`earthgpt data preview`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "draw a sheet of records with their boxes and texts"
DESCRIPTION = "Draws records with their boxes and texts."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="a dataset directory, or a folder of several")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--count", type=int, default=12, help="records on the sheet (default: 12)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.errors import EarthGPTError
    from earthgpt_jax.mmrs.inspection import directories
    from earthgpt_jax.mmrs.preview import sheet

    if args.count < 1:
        raise EarthGPTError(f"--count: expected at least 1, got {args.count}")
    if args.out.suffix.lower() != ".png" or not args.out.absolute().parent.is_dir():
        raise EarthGPTError(f"--out {args.out}: expected the name of a PNG in a folder that exists")
    sheet(directories(args.dir), count=args.count).save(args.out)
    print(f"wrote {args.out}", file=sys.stderr)
    return 0
