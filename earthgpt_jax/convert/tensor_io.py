"""Read and write tensors on disk by rows, so that converting a checkpoint of any size needs little memory.

A `Reader` knows the shape of every tensor without reading it and returns rows of one tensor at a time.
`SafetensorsWriter` lays out its files first and then accepts rows in any order. Rows are indices into the leading
axis: our layer axis, and the axis along which other layouts fuse tensors (qkv) and split them (shards).
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors relies on)
import numpy as np
from safetensors import SafetensorError, safe_open

from earthgpt_jax.common.errors import EarthGPTError

Shape = tuple[int, ...]
INDEX = "model.safetensors.index.json"
# torch.load maps files into memory. They are mapped again after this many bytes, which releases the pages read.
_REMAP_BYTES = 256 << 20
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
    "BF16": np.dtype("bfloat16"), "I64": np.dtype("int64"), "I32": np.dtype("int32"), "I16": np.dtype("int16"),
    "I8": np.dtype("int8"), "U8": np.dtype("uint8"), "BOOL": np.dtype("bool"),
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Reader(Protocol):
    """Named tensors whose shapes are known before they are read."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    @property
    def dtypes(self) -> Mapping[str, np.dtype]: ...

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        """Return rows `start:start+rows` of a tensor, or all rows from `start` if `rows` is None."""
        ...


def _rows(start: int, rows: int | None) -> slice:
    return slice(start, None if rows is None else start + rows)


# ---------------------------------------------------------------------------------------------- reading
class SafetensorsReader:
    """Reads one or several safetensors files as one namespace."""

    def __init__(self, files: Iterable[Path]):
        self._file: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for file in files:
            try:
                with safe_open(file, framework="numpy") as tensors:
                    for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                        view = tensors.get_slice(key)
                        self.shapes[key] = tuple(view.get_shape())
                        self.dtypes[key] = _DTYPES[view.get_dtype()]
                        self._file[key] = file
            except KeyError as error:
                raise EarthGPTError(f"{file}: unsupported tensor type {error}") from error
            except (SafetensorError, OSError, ValueError) as error:
                raise EarthGPTError(
                    f"{file}: expected a complete safetensors file ({error}); it may be truncated: download it again"
                ) from error

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        # Opened for this tensor only, because closing the file releases the mapped pages.
        with safe_open(self._file[key], framework="numpy") as tensors:
            if not self.shapes[key]:
                return np.array(tensors.get_tensor(key))
            return np.array(tensors.get_slice(key)[_rows(start, rows)])


class TorchReader:
    """Reads a file written by `torch.save` that holds `{"key": tensor}` or `{"model": {"key": tensor}}`."""

    def __init__(self, file: Path):
        self.file = file
        self._open()
        self.shapes = {key: tuple(value.shape) for key, value in self._tensors.items()}
        self.dtypes = {key: _torch_dtype(value, self.file) for key, value in self._tensors.items()}

    def _open(self) -> None:
        try:
            import torch
        except ModuleNotFoundError as error:
            raise EarthGPTError(
                f"{self.file}: reading this file requires PyTorch: pip install 'earthgpt-jax[convert]', "
                "or save the tensors as safetensors"
            ) from error
        try:
            values: Any = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise EarthGPTError(
                f"{self.file}: expected a plain state dict, got objects other than tensors; loading those would run "
                "code from the file: save `model.state_dict()` instead"
            ) from error
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            raise EarthGPTError(
                f"{self.file}: expected a complete file written by torch.save ({str(error).splitlines()[0]}); "
                "it may be truncated: download it again"
            ) from error
        values = values.get("model", values) if isinstance(values, dict) else values
        if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
            raise EarthGPTError(f"{self.file}: expected a dict of tensors, got {_describe(values)}")
        self._tensors, self._bytes_read = values, 0

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        if self._bytes_read > _REMAP_BYTES:
            self._open()
        value = self._tensors[key]
        value = value[_rows(start, rows)].clone() if value.ndim else value.clone()
        self._bytes_read += value.nbytes
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return value.view(torch.int16).numpy().view(self.dtypes[key])
        return value.numpy()


def _torch_dtype(value: Any, file: Path) -> np.dtype:
    name = str(value.dtype).removeprefix("torch.")
    try:
        return np.dtype(name)
    except TypeError as error:
        raise EarthGPTError(f"{file}: unsupported tensor type {name}") from error


def _describe(values: Any) -> str:
    if not isinstance(values, dict):
        return type(values).__name__
    others = [f"{key}: {type(value).__name__}" for key, value in values.items() if not hasattr(value, "dtype")]
    return "{" + ", ".join(others[:4]) + ("}" if len(others) <= 4 else ", ...}")


class ShardedReader:
    """Reads model-parallel shards as full tensors.

    Args:
        dims: (regex, axis) pairs: the axis along which the tensors of these names are split. Every shard holds a
            full copy of the other tensors.

    Raises:
        EarthGPTError: the shards hold different tensors.
    """

    def __init__(self, shards: Sequence[Reader], dims: Sequence[tuple[str, int]]):
        self._shards, self._dims = shards, dims
        first = shards[0]
        for number, shard in enumerate(shards[1:], 1):
            if different := sorted(first.shapes.keys() ^ shard.shapes.keys()):
                raise EarthGPTError(
                    f"shards 0 and {number}: expected the same tensors in both, got different ones "
                    f"({', '.join(different[:6])}); use the shards of one checkpoint"
                )
        self.dtypes = first.dtypes
        self.shapes = {}
        for key, shape in first.shapes.items():
            dim = split_dim(key, dims)
            if dim is not None:
                total = sum(shard.shapes[key][dim] for shard in shards)
                shape = (*shape[:dim], total, *shape[dim + 1 :])
            self.shapes[key] = tuple(shape)

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        match split_dim(key, self._dims):
            case None:
                return self._shards[0].read(key, start, rows)
            case 0:
                # The requested rows may span two shards, and shards are few: read all of them.
                return np.concatenate([shard.read(key) for shard in self._shards])[_rows(start, rows)]
            case dim:
                return np.concatenate([shard.read(key, start, rows) for shard in self._shards], axis=dim)


def split_dim(key: str, dims: Sequence[tuple[str, int]]) -> int | None:
    """Return the axis along which model-parallel shards split a tensor; None if every shard holds all of it."""
    return next((dim for pattern, dim in dims if re.fullmatch(pattern, key)), None)


class CombinedReader:
    """Reads the tensors of several readers as one namespace; of a repeated name, the last reader's tensor."""

    def __init__(self, readers: Sequence[Reader]):
        self._reader: dict[str, Reader] = {key: reader for reader in readers for key in reader.shapes}
        self.shapes = {key: reader.shapes[key] for key, reader in self._reader.items()}
        self.dtypes = {key: reader.dtypes[key] for key, reader in self._reader.items()}

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        return self._reader[key].read(key, start, rows)


class OverlayReader:
    """Reads a checkpoint with some of its tensors changed by a second one, which replaces or is added to them."""

    def __init__(self, base: Reader, changes: Reader, *, add: bool = False):
        self._base, self._changes, self._add = base, changes, add
        self.shapes = {**base.shapes, **changes.shapes}
        self.dtypes = {**changes.dtypes, **base.dtypes} if add else {**base.dtypes, **changes.dtypes}

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        if key not in self._changes.shapes:
            return self._base.read(key, start, rows)
        change = self._changes.read(key, start, rows)
        if not self._add or key not in self._base.shapes:
            return change
        base = self._base.read(key, start, rows)
        return (base.astype(np.float32) + change.astype(np.float32)).astype(base.dtype)


class RenamedReader:
    """Reads some tensors of a reader under new names.

    Args:
        names: old name -> new name; tensors that are not listed are hidden.
    """

    def __init__(self, base: Reader, names: Mapping[str, str]):
        self._base, self._old_names = base, {new: old for old, new in names.items()}
        self.shapes = {new: base.shapes[old] for new, old in self._old_names.items()}
        self.dtypes = {new: base.dtypes[old] for new, old in self._old_names.items()}

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        return self._base.read(self._old_names[key], start, rows)


# ---------------------------------------------------------------------------------------------- writing
class SafetensorsWriter:
    """Writes safetensors files whose layout is fixed first and whose tensors are filled in any order.

    The safetensors library needs all arrays of a file in memory; this class writes the same format row by row.

    Args:
        tensors: name -> (shape, dtype), in the order of the files.
        shard_bytes: upper limit for the bytes of tensors in a file, as in transformers; a larger tensor gets a file
            to itself. None writes a single file.
        metadata: strings for the `__metadata__` entry of each file.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, tuple[Shape, np.dtype]], *, shard_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ):  # fmt: skip
        sizes = {key: _bytes(shape, dtype) for key, (shape, dtype) in tensors.items()}
        groups = _groups(sizes, shard_bytes)
        names = (
            ["model.safetensors"]
            if len(groups) == 1
            else [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
        )
        self._tensors, self._location, self._remaining = tensors, {}, dict(sizes)
        self._files: list[int] = []
        for name, keys in zip(names, groups, strict=True):
            header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
            offset = 0
            for key in keys:
                shape, dtype = tensors[key]
                end = offset + sizes[key]
                header[key] = {
                    "dtype": _DTYPE_NAMES[np.dtype(dtype)],
                    "shape": list(shape),
                    "data_offsets": [offset, end],
                }
                offset = end
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            file = os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            self._files.append(file)
            os.truncate(file, 8 + len(text) + offset)
            os.pwrite(file, struct.pack("<Q", len(text)) + text, 0)
            for key in keys:
                self._location[key] = (file, 8 + len(text) + header[key]["data_offsets"][0])
        if len(groups) > 1:
            weight_map = {key: name for name, keys in zip(names, groups, strict=True) for key in keys}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")

    def write(self, key: str, rows: np.ndarray, start: int = 0) -> None:
        """Write rows of a tensor from row `start`, cast to the tensor's dtype."""
        shape, dtype = self._tensors[key]
        expected = (rows.shape[0] if shape else 1, *shape[1:])
        if shape and (rows.shape != expected or start + rows.shape[0] > shape[0]):
            raise ValueError(f"{key}: rows {rows.shape} at {start} do not fit {shape}")
        file, offset = self._location[key]
        data = np.ascontiguousarray(rows.astype(dtype, copy=False)).reshape(-1).view(np.uint8)
        offset += start * (_bytes(shape[1:], dtype) if shape else 0)
        view = memoryview(data.data)
        while view:  # a single call writes at most 2 GiB
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written
        self._remaining[key] -= data.nbytes

    def close(self) -> None:
        """Close the files.

        Raises:
            ValueError: the bytes written to a tensor are more or fewer than its size.
        """
        for file in self._files:
            os.close(file)
        self._files = []
        if incomplete := [key for key, count in self._remaining.items() if count]:
            raise ValueError(f"tensors not written completely: {incomplete[:8]}")


def _bytes(shape: Shape, dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _groups(sizes: Mapping[str, int], shard_bytes: int | None) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    used = 0
    for key, size in sizes.items():
        if shard_bytes is not None and groups[-1] and used + size > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(key)
        used += size
    return groups
