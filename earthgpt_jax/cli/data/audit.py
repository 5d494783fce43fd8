"""Report train/test overlap: which evaluation images are also in training splits.

Compares every training split with every evaluation split of the datasets in a folder. Images match if they
are the same file, have the same pixels in another file format, or are near-duplicates (resized, compressed,
cropped slightly at the border, stretched to 8 bits; flipped and rotated copies are not found). The result is
printed, written into each manifest (`overlap`), and listed record by record in `overlap.jsonl` next to it.
Training on the folder then excludes the matched training records; near-duplicates are excluded only if they
belong to another dataset.

Image hashes are computed once per dataset and cached in `perceptual_hashes.npz`. Records and fingerprints do
not change. Exit status 0; with --strict, 1 if any overlap was found.

examples:
  earthgpt data audit datasets
  earthgpt data audit datasets --strict
"""

from __future__ import annotations

import argparse

from earthgpt_jax.common import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=files.path, help="a folder of dataset directories, or a dataset directory")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if any overlap is found")
    parser.add_argument("--workers", type=int, help="number of processes that decode images (default: one per core)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.manifest import dataset_directories
    from earthgpt_jax.datasets.overlap.audit import audit

    if args.workers is not None and args.workers < 1:
        raise EarthGPTError(f"--workers: expected at least 1, got {args.workers}")
    result = audit(dataset_directories(args.dir), workers=args.workers)
    print(result.table())
    return 1 if args.strict and result.overlaps else 0
