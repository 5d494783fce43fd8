"""Read an encoder from an ONNX file that PyTorch exported: its weights under the names of the PyTorch module.

Constant folding of the exporter transposes the weights of linear layers and drops their names, which become
`onnx::MatMul_1966`. The nodes that read them keep the module's path: `/backbone/layer.0/query/MatMul`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.file_cache import open_copy
from earthgpt_jax.common.safetensors_files import row_slice

if TYPE_CHECKING:
    import onnx

SUFFIX = ".onnx"
_ANONYMOUS = "onnx::"
_POSITIONS = "embeddings.position_embeddings"


class OnnxReader:
    """Reads the weights of an ONNX file; see `common.safetensors_files.Reader`.

    Weights without a name get that of the module whose node reads them, as [out, in] like in PyTorch. The position
    table of transformers' ViTs, which the exporter splits in two to interpolate one of them, is joined again.

    Raises:
        EarthGPTError: the package `onnx` is not installed, or the file is damaged or lacks its weights.
    """

    def __init__(self, path: Path):
        try:
            import onnx
            from onnx import numpy_helper
        except ModuleNotFoundError as error:
            raise EarthGPTError(
                f"{path}: reading this file requires the package onnx: pip install 'earthgpt-jax[onnx]'"
            ) from error
        copy = open_copy(path) if isinstance(path, BucketPath) else None  # onnx reads local files only
        try:
            graph = onnx.load(copy.path if copy else path).graph
            arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        except Exception as error:  # protobuf and onnx raise errors of many types
            raise EarthGPTError(
                f"{path}: expected a complete ONNX file ({type(error).__name__}: {error}); download it again"
            ) from error
        self._arrays = dict(_named(graph, arrays))
        self.shapes = {name: tuple(array.shape) for name, array in self._arrays.items()}
        self.dtypes = {name: array.dtype for name, array in self._arrays.items()}

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        array = self._arrays[key]
        return array[row_slice(start, rows)] if array.ndim else array


def _named(graph: onnx.GraphProto, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of every weight whose name is known or can be told from the nodes that read it."""
    yield from ((name, array) for name, array in arrays.items() if not name.startswith(_ANONYMOUS))
    tables: dict[str, list[np.ndarray]] = {}
    for node in graph.node:
        scope = node.name.rpartition("/")[0].strip("/").replace("/", ".")
        for name in node.input:
            if not name.startswith(_ANONYMOUS) or name not in arrays:
                continue
            array = arrays[name]
            if node.op_type == "MatMul" and array.ndim == 2:
                yield f"{scope}.weight", array.T
            elif re.search(r"(^|\.)embeddings$", scope) and array.ndim == 3:
                tables.setdefault(scope, []).append(array)
    for scope, parts in tables.items():
        # Ordered by length: the entry of the CLS token, then those of the patches.
        joined = np.concatenate(sorted(parts, key=lambda part: part.shape[1]), axis=1)
        yield scope.removesuffix("embeddings") + _POSITIONS, joined
