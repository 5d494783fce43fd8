"""Tensors on disk, read and written by rows, so that a checkpoint of any size passes in bounded memory.

A `Reader` knows every tensor's shape without reading it and gives rows of one at a time; a `Writer` lays
its files out first and takes rows in any order. Both work on the leading axis, which is our layer axis and
the axis that foreign layouts fuse (qkv) and split (shards) along.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (teaches numpy, and with it safetensors, bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from earthgpt_jax.common.errors import EarthGPTError

Shape = tuple[int, ...]
INDEX = "model.safetensors.index.json"
# Files of this kind are mapped into memory; mapped anew after so many bytes, lest all pages stay resident.
_REMAP_BYTES = 256 << 20
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
    "BF16": np.dtype("bfloat16"), "I64": np.dtype("int64"), "I32": np.dtype("int32"), "I16": np.dtype("int16"),
    "I8": np.dtype("int8"), "U8": np.dtype("uint8"), "BOOL": np.dtype("bool"),
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Reader(Protocol):
    """Tensors by name."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    @property
    def dtypes(self) -> Mapping[str, np.dtype]: ...

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        """Rows `start:start+rows` of a tensor, all from `start` on if `rows` is None."""
        ...


def _rows(start: int, rows: int | None) -> slice:
    return slice(start, None if rows is None else start + rows)


# ---------------------------------------------------------------------------------------------- reading
class Safetensors:
    """One or several safetensors files as one namespace."""

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
                raise EarthGPTError(f"{file}: tensors of type {error} are not supported") from error
            except (SafetensorError, OSError, ValueError) as error:
                raise EarthGPTError(
                    f"{file}: expected a complete safetensors file ({error}); it may be truncated, take it anew"
                ) from error

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        # Opened for this one tensor: what was mapped leaves the resident set when it is closed.
        with safe_open(self._file[key], framework="numpy") as tensors:
            if not self.shapes[key]:
                return np.array(tensors.get_tensor(key))
            return np.array(tensors.get_slice(key)[_rows(start, rows)])


class TorchFile:
    """A file that torch wrote, tensors only: `{"key": tensor}` or `{"model": {"key": tensor}}`."""

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
                f"{self.file}: reading it needs PyTorch; pip install 'earthgpt-jax[convert]', or save it as safetensors"
            ) from error
        try:
            values: Any = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise EarthGPTError(
                f"{self.file}: it holds more than tensors, and loading that would run code of whoever made it; "
                "expected a plain state dict, save `model.state_dict()`"
            ) from error
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            raise EarthGPTError(
                f"{self.file}: expected a complete file of torch.save ({str(error).splitlines()[0]}); "
                "it may be truncated, take it anew"
            ) from error
        values = values.get("model", values) if isinstance(values, dict) else values
        if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
            raise EarthGPTError(f"{self.file}: expected a dict of tensors, got {_describe(values)}")
        self._tensors, self._touched = values, 0

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        if self._touched > _REMAP_BYTES:
            self._open()
        value = self._tensors[key]
        value = value[_rows(start, rows)].clone() if value.ndim else value.clone()
        self._touched += value.nbytes
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return value.view(torch.int16).numpy().view(self.dtypes[key])
        return value.numpy()


def _torch_dtype(value: Any, file: Path) -> np.dtype:
    name = str(value.dtype).removeprefix("torch.")
    try:
        return np.dtype(name)
    except TypeError as error:
        raise EarthGPTError(f"{file}: tensors of type {name} are not supported") from error


def _describe(values: Any) -> str:
    if not isinstance(values, dict):
        return type(values).__name__
    odd = [f"{key}: {type(value).__name__}" for key, value in values.items() if not hasattr(value, "dtype")]
    return "{" + ", ".join(odd[:4]) + ("}" if len(odd) <= 4 else ", ...}")


class Joined:
    """Model-parallel shards as the full tensors.

    Args:
        dims: regex -> the axis along which a tensor is split; what no row covers is in full in every shard.
    """

    def __init__(self, shards: Sequence[Reader], dims: Sequence[tuple[str, int]]):
        self._shards, self._dims = shards, dims
        first = shards[0]
        for number, shard in enumerate(shards[1:], 1):
            if odd := sorted(first.shapes.keys() ^ shard.shapes.keys()):
                raise EarthGPTError(
                    f"shards 0 and {number} hold different tensors ({', '.join(odd[:6])}): not of one checkpoint"
                )
        self.dtypes = first.dtypes
        self.shapes = {}
        for key, shape in first.shapes.items():
            dim = self.dim(key)
            if dim is not None:
                total = sum(shard.shapes[key][dim] for shard in shards)
                shape = (*shape[:dim], total, *shape[dim + 1 :])
            self.shapes[key] = tuple(shape)

    def dim(self, key: str) -> int | None:
        return self.dim_of(key, self._dims)

    @staticmethod
    def dim_of(key: str, dims: Sequence[tuple[str, int]]) -> int | None:
        """The axis along which a tensor is split; None: every shard has all of it."""
        return next((dim for pattern, dim in dims if re.fullmatch(pattern, key)), None)

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        match self.dim(key):
            case None:
                return self._shards[0].read(key, start, rows)
            case 0:
                # Whole shards: their number is small, and rows of one may straddle two.
                return np.concatenate([shard.read(key) for shard in self._shards])[_rows(start, rows)]
            case dim:
                return np.concatenate([shard.read(key, start, rows) for shard in self._shards], axis=dim)


class Union:
    """Readers of different tensors as one namespace."""

    def __init__(self, parts: Sequence[Reader]):
        self._of: dict[str, Reader] = {key: part for part in parts for key in part.shapes}
        self.shapes = {key: part.shapes[key] for key, part in self._of.items()}
        self.dtypes = {key: part.dtypes[key] for key, part in self._of.items()}

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        return self._of[key].read(key, start, rows)


class Overlay:
    """A checkpoint and, on top of it, one that changes some of its tensors: replaces them, or is added to them."""

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


class Renamed:
    """The tensors whose names a function keeps, under the names that it gives them."""

    def __init__(self, base: Reader, names: Mapping[str, str]):
        self._base, self._theirs = base, {new: old for old, new in names.items()}
        self.shapes = {new: base.shapes[old] for new, old in self._theirs.items()}
        self.dtypes = {new: base.dtypes[old] for new, old in self._theirs.items()}

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        return self._base.read(self._theirs[key], start, rows)


# ---------------------------------------------------------------------------------------------- writing
class Folder:
    """A folder that appears under its name only once everything in it is complete.

    Use as a context manager; the body writes to `path`. An exception, or a killed process, leaves
    at most `NAME.partial`, which the next attempt removes.
    """

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(target.name + ".partial")

    def __enter__(self) -> Path:
        if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            raise EarthGPTError(f"{self.target}: exists already; name a folder that does not, or remove it")
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        return self.path

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        if self.target.exists():
            self.target.rmdir()
        os.replace(self.path, self.target)


class SafetensorsWriter:
    """Safetensors files, laid out at once and filled in any order.

    The library writes a file from arrays that are all in memory; this writes the same format tensor by tensor.

    Args:
        tensors: name -> (shape, dtype).
        shard_bytes: least upper bound of a file's tensors, as in transformers; None for a single file.
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
        self._tensors, self._place, self._left = tensors, {}, dict(sizes)
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
                self._place[key] = (file, 8 + len(text) + header[key]["data_offsets"][0])
        if len(groups) > 1:
            weight_map = {key: name for name, keys in zip(names, groups, strict=True) for key in keys}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")

    def write(self, key: str, rows: np.ndarray, start: int = 0) -> None:
        """Puts rows at `start` of a tensor; in the tensor's dtype."""
        shape, dtype = self._tensors[key]
        expected = (rows.shape[0] if shape else 1, *shape[1:])
        if shape and (rows.shape != expected or start + rows.shape[0] > shape[0]):
            raise ValueError(f"{key}: rows {rows.shape} at {start} do not fit {shape}")
        file, offset = self._place[key]
        data = np.ascontiguousarray(rows.astype(dtype, copy=False)).reshape(-1).view(np.uint8)
        offset += start * (_bytes(shape[1:], dtype) if shape else 0)
        view = memoryview(data.data)
        while view:  # one call writes at most 2 GiB
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written
        self._left[key] -= data.nbytes

    def close(self) -> None:
        """Raises unless every byte was written once."""
        for file in self._files:
            os.close(file)
        self._files = []
        if odd := [key for key, left in self._left.items() if left]:
            raise ValueError(f"tensors not written, or not in full: {odd[:8]}")


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
