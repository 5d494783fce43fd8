"""Read a language model from a GGUF file of llama.cpp: its tensors by rows, dequantized, and its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.file_cache import open_copy
from earthgpt_jax.common.safetensors_files import row_slice

SUFFIX = ".gguf"


class GgufReader:
    """Reads a GGUF file; see `common.safetensors_files.Reader`.

    F32, F16 and BF16 keep their dtypes; quantized tensors are float32, which holds their values exactly.

    Attributes:
        metadata: the file's key-value pairs without those of the tokenizer, and `rope_freqs`, the factors by which
            llama.cpp stretches RoPE's wavelengths, if the file has any.

    Raises:
        EarthGPTError: the package `gguf` is not installed, or the file is damaged, is one of several, or has a type
            that `gguf` does not dequantize.
    """

    def __init__(self, path: Path):
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise EarthGPTError(
                f"{path}: reading this file requires the package gguf: pip install 'earthgpt-jax[gguf]'"
            ) from error
        self._gguf = gguf
        try:
            self._copy = open_copy(path) if isinstance(path, BucketPath) else None  # gguf reads local files only
            reader = gguf.GGUFReader(self._copy.path if self._copy else path)
        except (ValueError, OSError, IndexError) as error:
            raise EarthGPTError(f"{path}: expected a complete GGUF file ({error}); download it again") from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in self._tensors.items()}
        names = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
        plain = {"F16": "float16", "BF16": "bfloat16"}
        self.dtypes = {name: np.dtype(plain.get(kind, "float32")) for name, kind in names.items()}
        self.metadata: dict[str, Any] = {
            key: field.contents() for key, field in reader.fields.items() if not key.startswith(("tokenizer.", "GGUF."))
        }
        if self.metadata.get("split.count", 1) > 1:
            raise EarthGPTError(f"{path}: expected a single GGUF file, got one of several; join them with llama.cpp")
        if "rope_freqs.weight" in self.shapes:
            self.metadata["rope_freqs"] = self.read("rope_freqs.weight").tolist()

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        tensor = self._tensors[key]
        data = tensor.data[row_slice(start, rows)]
        if tensor.tensor_type.name in ("F32", "F16"):
            return np.array(data)
        if tensor.tensor_type.name == "BF16":
            return np.array(data).view(self.dtypes[key])
        try:
            return self._gguf.quants.dequantize(data, tensor.tensor_type)
        except NotImplementedError as error:
            raise EarthGPTError(f"{key}: the type {tensor.tensor_type.name} is not supported") from error
