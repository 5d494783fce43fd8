"""Describe a run, a checkpoint, or weights in another format, without loading them.

For a work directory of `earthgpt train`, its checkpoints folder or a single checkpoint, prints the
recipe and stage, the step, the data position, the fingerprints of the datasets, what is trainable
and what is frozen, and the mesh and versions it was saved with. Unfinished and damaged checkpoints
are reported (exit status 1).
For other files or folders, prints the detected layout and the tensors. A model directory that holds
adapters alone is shown with its parent.

examples:
  earthgpt inspect runs/instruct
  earthgpt inspect runs/instruct/checkpoints/400
  earthgpt inspect runs/instruct/model --check
  earthgpt inspect Llama-2-13b-hf
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from earthgpt_jax.models.model_dir import ModelDir

from earthgpt_jax.common import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=files.path,
        nargs="+",
        help="a run, a checkpoint, or files or folders with weights in another format",
    )
    parser.add_argument(
        "--check", action="store_true",
        help="read all arrays of a model directory and its parents and compare them with their fingerprints",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    status = show(args.path)
    if args.check:
        _check(args.path)
    return status


def _check(paths: Sequence[Path]) -> None:
    from earthgpt_jax.models import model_dir

    for path in paths:
        model = model_dir.read_config(path)
        model_dir.check_fingerprint(model)
        state = "unchanged since they were written" if model.stored_fingerprint else "not compared (format 2)"
        print(f"{path}: arrays {state}; fingerprint {model_dir.fingerprint(model)}")


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
    from earthgpt_jax.models import model_dir

    try:
        source = open_source_checkpoint(paths)
    except EarthGPTError as error:
        raise EarthGPTError(f"{error}; it is neither the work directory of a run nor a checkpoint") from error
    for path in filter(model_dir.holds_adapters_alone, paths):
        print(_describe_adapters(model_dir.read_config(path)))
    shapes, dtypes = source.reader.shapes, source.reader.dtypes
    total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    size = sum(int(np.prod(shape, dtype=np.int64)) * dtypes[key].itemsize for key, shape in shapes.items())
    print(f"{source.path}: {source.layout.name}; {len(shapes)} tensors, {total:,} parameters, {size / 1e9:.2f} GB")
    width = max(map(len, shapes))
    for key, shape in shapes.items():
        print(f"  {key:<{width}}  {dtypes[key]!s:<9} {' x '.join(map(str, shape))}")
    return 0


def _describe_adapters(model: ModelDir) -> str:
    from earthgpt_jax.common.safetensors_files import open_model_files

    assert model.parent is not None and model.parent_record is not None
    own = open_model_files(model.path)
    size = sum(math.prod(shape) * own.dtypes[key].itemsize for key, shape in own.shapes.items())
    return (
        f"{model.path}: adapters alone: {len(own.shapes)} tensors, {size / 1e6:.2f} MB; parent {model.parent.path}, "
        f"fingerprint {model.parent_record.fingerprint}, in {model.parent_record.frozen_dtype}; together:"
    )
