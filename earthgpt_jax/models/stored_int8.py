"""Store the large parameters of a model in 8 bits: a quarter of the bytes of float32.

A vector along the last axis of a parameter becomes int8 values with one scale: values ~ scale * int8. The file holds
both, the scales under the name of the parameter and `SCALE`. Whoever reads the parameter gets float32: this is how a
model is stored and not how it computes (`quantized`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import Reader, Shape, read_part, row_slice

SCALE = ".scale"
_FLOAT32, _INT8 = np.dtype("float32"), np.dtype("int8")
_LARGEST = 127
_MIN_SIZE = 1 << 15  # all smaller parameters together are a few percent of a model


def stored(shapes: Mapping[str, Shape], dtypes: Mapping[str, np.dtype]) -> dict[str, tuple[Shape, np.dtype]]:
    """Return the tensors, name -> (shape, dtype), that the parameters of a model are stored as."""
    tensors: dict[str, tuple[Shape, np.dtype]] = {}
    for path, shape in shapes.items():
        if len(shape) < 2 or math.prod(shape) < _MIN_SIZE:
            tensors[path] = shape, dtypes[path]
        else:
            tensors[path] = shape, _INT8
            tensors[path + SCALE] = (*shape[:-1], 1), _FLOAT32
    return tensors


def encode(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values and float32 scales of rows of a parameter."""
    rows = rows.astype(np.float32)
    scale = np.abs(rows).max(-1, keepdims=True) / _LARGEST
    scale[scale == 0] = 1
    return np.rint(rows / scale).astype(np.int8), scale


class DecodingReader:
    """Reads parameters of which some are stored in 8 bits; these are returned as float32.

    Raises:
        EarthGPTError: a parameter has 8 bits and no scales, or the reverse.
    """

    def __init__(self, base: Reader):
        self._base = base
        self._encoded = {key.removesuffix(SCALE) for key in base.shapes if key.endswith(SCALE)}
        in_8_bits = {key for key, dtype in base.dtypes.items() if dtype == _INT8}
        if alone := sorted(self._encoded ^ in_8_bits):
            raise EarthGPTError(
                f"{alone[0]}: expected int8 values and their scales, got one of them; copy the model again"
            )
        self.shapes = {path: shape for path, shape in base.shapes.items() if not path.endswith(SCALE)}
        self.dtypes = {path: _FLOAT32 if path in self._encoded else base.dtypes[path] for path in self.shapes}

    def read(self, path: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        return self.read_slice(path, (row_slice(start, rows),) if self.shapes[path] else ())

    def read_slice(self, path: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of a parameter, given by one slice per axis."""
        values = read_part(self._base, path, index)
        if path not in self._encoded:
            return values
        vectors = index[: len(self.shapes[path]) - 1]  # the last axis has a single scale
        return values.astype(np.float32) * read_part(self._base, path + SCALE, vectors)
