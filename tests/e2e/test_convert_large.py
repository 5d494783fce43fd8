"""13B-shaped weights through the converter, both ways, within 2 GiB: `bash scripts/test -m slow -k large`.

The inputs are sparse files, so they take no space; what is written does: about 55 GB of free disk.
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

from earthgpt_jax.config import load
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.exporter import SHARD_BYTES, llama_config
from earthgpt_jax.convert.tensor_io import Safetensors, SafetensorsWriter
from earthgpt_jax.input.tokenizer import train_tokenizer
from earthgpt_jax.models import earthgpt

LIMIT = 2 << 30  # bytes, resident
DISK = 60 << 30


def _sparse(folder: Path, table: tables.Table, ours: dict, prefix: str) -> Path:
    """A checkpoint of zeros without blocks on the disk, but for a mark in every tensor's first number."""
    folder.mkdir(parents=True)
    shapes = table.their_shapes({path.removeprefix(prefix): s for path, s in ours.items() if path.startswith(prefix)})
    dtype = np.dtype("bfloat16")
    writer = SafetensorsWriter(folder, {key: (shape, dtype) for key, shape in shapes.items()}, shard_bytes=SHARD_BYTES)
    for number, key in enumerate(shapes):
        file, offset = writer._place[key]
        os.pwrite(file, np.asarray([number % 250 + 1], dtype).tobytes(), offset)
    return folder


def _run(*command: str) -> int:
    """Peak resident bytes of `earthgpt COMMAND`."""
    code = (
        "import resource, sys; from earthgpt_jax.cli.main import main; status = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True)
    return int(result.stdout.split()[-1])


@pytest.mark.slow
def test_13b_through_the_converter_in_2_gib(tmp_path):
    if shutil.disk_usage(tmp_path).free < DISK:
        pytest.skip(f"needs {DISK >> 30} GiB of free disk")
    model = load("earthgpt_13b:align").model
    ours = {path: tuple(leaf.shape) for path, leaf in earthgpt.abstract(model)[1].items()}
    llm = _sparse(tmp_path / "llm", tables.llama_hf(model.llm), ours, "llm/")
    (llm / "config.json").write_text(json.dumps(llama_config(model.llm)))
    vit = _sparse(tmp_path / "vit", tables.dinov2_hf(model.vit), ours, "vit/")
    convnext = _sparse(tmp_path / "convnext", tables.convnext_timm(model.convnext), ours, "convnext/")
    _tokenizer(llm / "tokenizer.model", model.llm.vocab_size)

    in_peak = _run(
        "convert", "import", "--config", "earthgpt_13b:align", "--vit", str(vit), "--convnext", str(convnext),
        "--llm", str(llm), "--out", str(tmp_path / "ours"),
    )  # fmt: skip
    out_peak = _run("convert", "export", str(tmp_path / "ours"), "--to", "llama", "--out", str(tmp_path / "back"))
    print(f"peak resident: import {in_peak / 2**30:.2f} GiB, export {out_peak / 2**30:.2f} GiB")  # noqa: T201  (the figure is the point)
    assert max(in_peak, out_peak) <= LIMIT

    theirs, back = (Safetensors(sorted(folder.glob("*.safetensors"))) for folder in (llm, tmp_path / "back"))
    assert theirs.shapes == back.shapes and theirs.dtypes == back.dtypes
    for key, shape in theirs.shapes.items():
        if len(shape) == 1 or "layers.7." in key:  # all norms, and one layer in full
            np.testing.assert_array_equal(theirs.read(key), back.read(key), err_msg=key)
        else:
            np.testing.assert_array_equal(theirs.read(key, 0, 1), back.read(key, 0, 1), err_msg=key)


def _tokenizer(path: Path, size: int) -> None:
    """Any tokenizer with so many pieces: of random words."""
    letters = np.random.default_rng(0).integers(97, 123, (60_000, 7), dtype=np.uint8)
    train_tokenizer([" ".join(bytes(word).decode() for word in letters)[:4000] for letters in np.split(letters, 120)],
                    vocab_size=size, path=path)  # fmt: skip
