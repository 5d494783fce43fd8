"""Say what a run, a checkpoint or a foreign file of weights is, without loading it.

Of a work directory of `earthgpt train`, its checkpoints folder or a single checkpoint: recipe and
stage, step, data position and the datasets' fingerprints, what is trained and what is frozen, the mesh
and the versions it was saved by; and what is unfinished or damaged (exit status 1).
Of anything else, files or folders: its layout and tensors.

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
        "path", type=Path, nargs="+", help="a run or a checkpoint; or files or folders of foreign weights"
    )


def run(args: argparse.Namespace) -> int:
    return show(args.path)


def show(paths: Sequence[Path]) -> int:
    """Prints what the paths are: a run, a checkpoint, or the parts of a foreign one; 1 if it is not whole."""
    from earthgpt_jax.training.inspection import inspect

    told = inspect(paths[0]) if len(paths) == 1 else None
    if told is None:
        return _foreign(paths)
    for each in told:
        print(each)
    return 0 if all(each.intact for each in told) else 1


def _foreign(paths: Sequence[Path]) -> int:
    import numpy as np

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.convert.layouts import open_source_checkpoint

    try:
        source = open_source_checkpoint(paths)
    except EarthGPTError as error:
        raise EarthGPTError(f"{error}; nor is it the work directory of a run, or a checkpoint in one") from error
    shapes, dtypes = source.reader.shapes, source.reader.dtypes
    total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    size = sum(int(np.prod(shape, dtype=np.int64)) * dtypes[key].itemsize for key, shape in shapes.items())
    print(f"{source.path}: {source.layout.name}; {len(shapes)} tensors, {total:,} numbers, {size / 1e9:.2f} GB")
    width = max(map(len, shapes))
    for key, shape in shapes.items():
        print(f"  {key:<{width}}  {dtypes[key]!s:<9} {' x '.join(map(str, shape))}")
    return 0
