"""Import and export weights of 13B size within 2 GiB of memory: `bash scripts/test -m slow -k large`.

The inputs are sparse files that take no space on disk; the outputs need about 55 GB of free disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.common.safetensors_files import SafetensorsReader, SafetensorsWriter
from earthgpt_jax.config import load
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.exporter import SHARD_BYTES, llama_config
from earthgpt_jax.input.tokenizer import train_tokenizer
from earthgpt_jax.models import earthgpt

LIMIT = 2 << 30  # resident bytes
DISK = 60 << 30


def _sparse(folder: Path, table: tables.Table, ours: dict, prefix: str) -> Path:
    """Write a sparse checkpoint of zeros, with a mark in the first number of every tensor."""
    folder.mkdir(parents=True)
    shapes = table.checkpoint_shapes(
        {path.removeprefix(prefix): s for path, s in ours.items() if path.startswith(prefix)}
    )
    dtype = np.dtype("bfloat16")
    writer = SafetensorsWriter(folder, {key: (shape, dtype) for key, shape in shapes.items()}, shard_bytes=SHARD_BYTES)
    for number, key in enumerate(shapes):
        file, offset = writer._location[key]
        os.pwrite(file, np.asarray([number % 250 + 1], dtype).tobytes(), offset)
    return folder


def _run(*command: str) -> int:
    """Run `earthgpt COMMAND` and return its peak resident bytes."""
    code = (
        "import resource, sys; from earthgpt_jax.cli.main import main; status = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True)
    return int(result.stdout.split()[-1])


@pytest.mark.slow
def test_13b_is_imported_and_exported_within_2_gib(tmp_path):
    if shutil.disk_usage(tmp_path).free < DISK:
        pytest.skip(f"needs {DISK >> 30} GiB of free disk")
    model = load("earthgpt_13b:align").model
    ours = {path: tuple(leaf.shape) for path, leaf in earthgpt.abstract(model)[1].items()}
    llm = _sparse(tmp_path / "llm", tables.llama_hf(model.llm), ours, "llm/")
    (llm / "config.json").write_text(json.dumps(llama_config(model.llm)))
    vit = _sparse(tmp_path / "vit", tables.dinov2_hf(model.vit), ours, "vit/")
    convnext = _sparse(tmp_path / "convnext", tables.convnext_timm(model.convnext), ours, "convnext/")
    _tokenizer(llm / "tokenizer.model", model.llm.vocab_size)

    import_peak = _run(
        "convert", "import", "--config", "earthgpt_13b:align", "--vit", str(vit), "--convnext", str(convnext),
        "--llm", str(llm), "--out", str(tmp_path / "ours"), "--config.model.vit.position_rule=hf",
    )  # fmt: skip
    export_peak = _run(
        "convert", "export", str(tmp_path / "ours"), "--to", "llama", "--out", str(tmp_path / "exported")
    )
    print(f"peak resident: import {import_peak / 2**30:.2f} GiB, export {export_peak / 2**30:.2f} GiB")  # noqa: T201  (the figure to report)
    assert max(import_peak, export_peak) <= LIMIT

    source, exported = (
        SafetensorsReader(sorted(folder.glob("*.safetensors"))) for folder in (llm, tmp_path / "exported")
    )
    assert source.shapes == exported.shapes and source.dtypes == exported.dtypes
    for key, shape in source.shapes.items():
        if len(shape) == 1 or "layers.7." in key:  # all norms, and layer 7 completely
            np.testing.assert_array_equal(source.read(key), exported.read(key), err_msg=key)
        else:
            np.testing.assert_array_equal(source.read(key, 0, 1), exported.read(key, 0, 1), err_msg=key)


def _tokenizer(path: Path, size: int) -> None:
    """Train a tokenizer of `size` pieces on random words."""
    letters = np.random.default_rng(0).integers(97, 123, (60_000, 7), dtype=np.uint8)
    train_tokenizer([" ".join(bytes(word).decode() for word in letters)[:4000] for letters in np.split(letters, 120)],
                    vocab_size=size, path=path)  # fmt: skip
