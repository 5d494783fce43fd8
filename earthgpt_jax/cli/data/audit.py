"""Which evaluation splits are trained on, and by what.

Compares every training split with every evaluation split of the datasets in a folder: images that are
the same file, the same pixels in another file format, or near copies (resized, compressed, cut a little
at the border, stretched to 8 bits; not flipped or turned). Says which benchmark is contaminated and by
what, writes it into each manifest (`leaks`) and names the records in `leaks.jsonl` beside it. From then
on training on the folder leaves out those records too, near copies where another dataset holds them out.

What images look like is computed once a dataset (looks.npz) and kept; the records and their fingerprint
stay as they are. Exit status 0, with --strict 1 if anything was found.

examples:
  earthgpt data audit datasets
  earthgpt data audit datasets --strict
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="a folder of dataset directories, or one of them")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if any image is in both")
    parser.add_argument("--workers", type=int, help="processes that decode images (default: one a core)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.manifest import dataset_directories
    from earthgpt_jax.datasets.overlap.audit import audit

    if args.workers is not None and args.workers < 1:
        raise EarthGPTError(f"--workers: expected at least 1, got {args.workers}")
    found = audit(dataset_directories(args.dir), workers=args.workers)
    print(found.table())
    return 1 if args.strict and found.overlaps else 0
