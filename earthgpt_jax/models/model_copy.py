"""Copy a model directory and its parents into one directory with all parameters, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path

import numpy as np

from earthgpt_jax.common.files import atomic_folder, explain_write_errors
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.safetensors_files import SafetensorsWriter, row_pieces
from earthgpt_jax.common.tensor_digests import TensorDigests
from earthgpt_jax.models import model_dir, stored_int8


def copy_whole(
    name: str | Path, out: Path, *, parent: str | Path | None = None, int8: bool = False,
    shard_bytes: int | None = None,
) -> Path:  # fmt: skip
    """Write a model directory with all parameters of a model, each with the value that `model_dir.read` gives.

    Args:
        name: an embedded model or a model directory.
        out: the directory to write; it appears under its name once it is complete.
        parent: see `model_dir.read_config`.
        int8: store the large parameters in 8 bits, which rounds them (`stored_int8`).
        shard_bytes: largest size of a file; None: a single file.

    Raises:
        EarthGPTError: there is no such model, its parent is not found, or `out` exists already or cannot be written.
    """
    model = model_dir.read_config(name, parent=parent)
    reader = model_dir.open_params(model)
    paths = sorted(reader.shapes)
    tensors = {path: (reader.shapes[path], reader.dtypes[path]) for path in paths}
    sizes = {path: math.prod(shape) * dtype.itemsize for path, (shape, dtype) in tensors.items()}
    layout = stored_int8.stored({path: reader.shapes[path] for path in paths}, reader.dtypes) if int8 else tensors
    digests = TensorDigests()
    with explain_write_errors(out), atomic_folder(out, key_file="config.json") as folder:
        writer = SafetensorsWriter(folder, layout, shard_bytes=shard_bytes, digests=digests)
        with Bar(total=sum(sizes.values()), desc="model", unit="B", unit_scale=True, leave=False) as bar:
            for path, (shape, dtype) in tensors.items():
                for start, rows in row_pieces(shape, dtype):
                    _write(writer, layout, path, reader.read(path, start, rows), start)
                bar.update(sizes[path])
        writer.close()
        model_dir.write_config(
            folder, out, model=model.model, decimals=model.decimals, chat_template=model.chat_template,
            tokenizer=model.tokenizer, provenance=model.provenance, digests=digests.values(),
        )  # fmt: skip
    return out


def _write(writer: SafetensorsWriter, layout: Container[str], path: str, rows: np.ndarray, start: int) -> None:
    scales = path + stored_int8.SCALE
    if scales not in layout:
        writer.write(path, rows, start)
        return
    values, scale = stored_int8.encode(rows)
    writer.write(path, values, start)
    writer.write(scales, scale, start)
