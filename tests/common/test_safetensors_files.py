"""Parts of tensors that our reader reads from files of the safetensors library."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import pytest
from safetensors.numpy import save_file

from earthgpt_jax.common import safetensors_ranges
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import SafetensorsReader

RANDOM = np.random.default_rng(0)
TENSORS = {
    "stacked": RANDOM.standard_normal((5, 6, 7)).astype("bfloat16"),
    "scalar": np.array(3.0, np.float32),
    "vector": np.arange(9, dtype=np.int64),
    "matrix": RANDOM.standard_normal((8, 16)).astype(np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("run", [1, 20, 60, 1 << 16])
def test_every_part_of_a_tensor_is_read(tmp_path, monkeypatch, run):
    monkeypatch.setattr(safetensors_ranges, "_RUN_BYTES", run)
    save_file(TENSORS, tmp_path / "model.safetensors")
    reader = SafetensorsReader([tmp_path / "model.safetensors"])
    for key, value in TENSORS.items():
        assert reader.read(key).dtype == value.dtype
        np.testing.assert_array_equal(reader.read(key), value)
        slices = [[slice(0, size), slice(size // 3, size // 2), slice(size // 2, size)] for size in value.shape]
        parts = [part for axes in range(value.ndim + 1) for part in itertools.product(*slices[:axes])]
        with ThreadPoolExecutor(4) as pool:
            found_parts = pool.map(lambda part, key=key: reader.read_slice(key, part), parts)
            for part, found in zip(parts, found_parts, strict=True):
                assert found.shape == value[part].shape
                np.testing.assert_array_equal(found, value[part], err_msg=f"{key} {part}")


def test_a_file_that_became_shorter_is_an_error(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    reader = SafetensorsReader([file])
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(EarthGPTError, match=r"model\.safetensors: cannot be read .*truncated"):
        [reader.read(key) for key in TENSORS]
