"""Tensors of safetensors files in buckets, compared with those that were written by the safetensors library."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from earthgpt_jax.common import files
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import SafetensorsReader, open_model_files


def _tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "blocks": rng.normal(size=(6, 300, 500)).astype(np.float32),
        "half": rng.normal(size=(3, 40, 50)).astype(ml_dtypes.bfloat16),
        "bytes": rng.integers(0, 9, (7,)).astype(np.int8),
        "scalar": np.asarray(3, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def test_any_part_of_a_tensor_is_read_from_a_bucket(bucket: BucketPath, tmp_path: Path) -> None:
    tensors, rng = _tensors(), np.random.default_rng(1)
    save_file(tensors, tmp_path / "model.safetensors")
    files.copy(tmp_path / "model.safetensors", bucket / "model.safetensors")
    reader, local = open_model_files(bucket), SafetensorsReader([tmp_path / "model.safetensors"])
    assert reader.shapes == local.shapes and reader.dtypes == local.dtypes
    for name, value in tensors.items():
        assert np.array_equal(reader.read(name), value)
        if value.size > 1:
            assert np.array_equal(reader.read(name, 1, 2), value[1:3])
        for _ in range(10):
            bounds = [sorted(rng.choice(size + 1, 2, replace=False)) if size else (0, 0) for size in value.shape]
            index = tuple(slice(None) if rng.random() < 0.4 else slice(*map(int, pair)) for pair in bounds)
            found = reader.read_slice(name, index)
            assert found.dtype == value.dtype and np.array_equal(found, value[index]), (name, index)


def test_a_process_reads_little_more_than_its_shard(faulty_bucket, tmp_path: Path) -> None:
    value = np.arange(4 * 1024 * 512, dtype=np.float32).reshape(4, 1024, 512)
    save_file({"kernel": value}, tmp_path / "model.safetensors")
    files.copy(tmp_path / "model.safetensors", faulty_bucket.path / "model.safetensors")
    reader = open_model_files(faulty_bucket.path)
    faulty_bucket.proxy.requests.clear()
    assert np.array_equal(reader.read_slice("kernel", (slice(None), slice(256, 512))), value[:, 256:512])
    assert len(faulty_bucket.proxy.requests) == 4, "one range of bytes per layer"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:20], lambda data: b"", lambda data: data + b"x"]
)
def test_a_damaged_file_in_a_bucket_is_refused(bucket: BucketPath, tmp_path: Path, damage) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    (bucket / "model.safetensors").write_bytes(damage((tmp_path / "model.safetensors").read_bytes()))
    with pytest.raises(EarthGPTError, match="expected a complete safetensors file"):
        open_model_files(bucket)
