"""Copy a model directory and its parents into one directory with all parameters, a few rows at a time."""

from __future__ import annotations

import math
from pathlib import Path

from earthgpt_jax.common.files import atomic_folder, explain_write_errors
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.safetensors_files import SafetensorsWriter, row_pieces
from earthgpt_jax.common.tensor_digests import TensorDigests
from earthgpt_jax.models import model_dir


def copy_whole(name: str | Path, out: Path, *, parent: str | Path | None = None) -> Path:
    """Write a model directory with all parameters of a model, each with the value that `model_dir.read` gives.

    Args:
        name: an embedded model or a model directory.
        out: the directory to write; it appears under its name once it is complete.
        parent: see `model_dir.read_config`.

    Raises:
        EarthGPTError: there is no such model, its parent is not found, or `out` exists already or cannot be written.
    """
    model = model_dir.read_config(name, parent=parent)
    reader = model_dir.open_params(model)
    tensors = {path: (reader.shapes[path], reader.dtypes[path]) for path in sorted(reader.shapes)}
    sizes = {path: math.prod(shape) * dtype.itemsize for path, (shape, dtype) in tensors.items()}
    digests = TensorDigests()
    with explain_write_errors(out), atomic_folder(out, key_file="config.json") as folder:
        writer = SafetensorsWriter(folder, tensors, digests=digests)
        with Bar(total=sum(sizes.values()), desc="model", unit="B", unit_scale=True, leave=False) as bar:
            for path, (shape, dtype) in tensors.items():
                for start, rows in row_pieces(shape, dtype):
                    writer.write(path, reader.read(path, start, rows), start)
                bar.update(sizes[path])
        writer.close()
        model_dir.write_config(
            folder, out, model=model.model, decimals=model.decimals, chat_template=model.chat_template,
            tokenizer=model.tokenizer, provenance=model.provenance, digests=digests.values(),
        )  # fmt: skip
    return out
