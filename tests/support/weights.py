"""Load checkpoints of other projects into a single module, through the tables of the converter."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from earthgpt_jax import params as params_lib
from earthgpt_jax.convert.layouts import open_source_checkpoint
from earthgpt_jax.convert.tables import Table


def load_into(module: nnx.Module, path: Path | list[Path], table: Table) -> nnx.Module:
    """Return `module` with the tensors of a checkpoint, all of which must fit."""
    graphdef, params = params_lib.split_module(module)
    reader = open_source_checkpoint(path).reader
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for step in table.steps(shapes, reader.shapes, where=str(path)):
        value = step.transform.from_checkpoint(reader.read(step.key, step.start, step.rows))
        arrays[step.path][... if step.layer is None else step.layer] = value
    return params_lib.merge_module(graphdef, {name: jnp.asarray(value) for name, value in arrays.items()})
