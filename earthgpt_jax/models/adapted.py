"""Read the model that adapters and their parent are together, without holding either in memory."""

from __future__ import annotations

import numpy as np

from earthgpt_jax.common.safetensors_files import Reader, read_part, row_slice
from earthgpt_jax.config import DType, FrozenDType
from earthgpt_jax.models.quantized import frozen_array_dtype, is_quantized, round_to_int8


class AdaptedReader:
    """Reads parameters of a run's own, and those of its parent with the values that the run computed with.

    The run held the parent's parameters in `frozen_dtype`. With int8, kernels are quantized, and returned in
    `compute_dtype`.
    """

    def __init__(self, parent: Reader, own: Reader, *, frozen_dtype: FrozenDType, compute_dtype: DType):
        self._readers = {path: own if path in own.shapes else parent for path in (*parent.shapes, *own.shapes)}
        self._own, self._compute_dtype = own, compute_dtype
        self._quantized = {
            path for path in parent.shapes if path not in own.shapes and is_quantized(path, frozen_dtype)
        }
        self.shapes = {path: reader.shapes[path] for path, reader in self._readers.items()}
        self.dtypes = {
            path: own.dtypes[path] if path in own.shapes
            else np.dtype(compute_dtype if path in self._quantized else frozen_array_dtype(frozen_dtype))
            for path in self._readers
        }  # fmt: skip

    def read(self, path: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        shape = self.shapes[path]
        return self.read_slice(path, (row_slice(start, rows), *(slice(None) for _ in shape[1:])) if shape else ())

    def read_slice(self, path: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of a parameter, given by one slice per axis."""
        reader = self._readers[path]
        if path not in self._quantized:
            return read_part(reader, path, index).astype(self.dtypes[path], copy=False)
        layers, inputs, outputs = index  # the scale of an output channel depends on all of its inputs
        kernels = read_part(reader, path, (layers, slice(None), outputs))
        return round_to_int8(kernels, self._compute_dtype)[:, inputs]
