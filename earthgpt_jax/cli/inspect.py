"""Describe a run, a checkpoint, or weights in another format, without loading them.

For a work directory of `earthgpt train`, its checkpoints folder or a single checkpoint, prints the
recipe and stage, the step, the data position, the fingerprints of the datasets, what is trainable
and what is frozen, and the mesh and versions it was saved with. Unfinished and damaged checkpoints
are reported (exit status 1).
For other files or folders, prints the detected layout and the tensors.

examples:
  earthgpt inspect runs/instruct
  earthgpt inspect runs/instruct/checkpoints/400
  earthgpt inspect Llama-2-13b-hf
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, nargs="+", help="a run, a checkpoint, or files or folders with weights in another format"
    )


def run(args: argparse.Namespace) -> int:
    return show(args.path)


def show(paths: Sequence[Path]) -> int:
    """Describe the paths; return 1 if a checkpoint is unfinished or damaged, 0 otherwise."""
    from earthgpt_jax.training.inspection import inspect

    summaries = inspect(paths[0]) if len(paths) == 1 else None
    if summaries is None:
        return _show_weights(paths)
    for summary in summaries:
        print(summary)
    return 0 if all(summary.intact for summary in summaries) else 1


def _show_weights(paths: Sequence[Path]) -> int:
    import numpy as np

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.convert.layouts import open_source_checkpoint

    try:
        source = open_source_checkpoint(paths)
    except EarthGPTError as error:
        raise EarthGPTError(f"{error}; it is neither the work directory of a run nor a checkpoint") from error
    shapes, dtypes = source.reader.shapes, source.reader.dtypes
    total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    size = sum(int(np.prod(shape, dtype=np.int64)) * dtypes[key].itemsize for key, shape in shapes.items())
    print(f"{source.path}: {source.layout.name}; {len(shapes)} tensors, {total:,} parameters, {size / 1e9:.2f} GB")
    width = max(map(len, shapes))
    for key, shape in shapes.items():
        print(f"  {key:<{width}}  {dtypes[key]!s:<9} {' x '.join(map(str, shape))}")
    return 0
