"""Read checkpoints of other projects by rows, so that converting a checkpoint of any size needs little memory.

Each class is a `Reader` (common/safetensors_files.py): it knows the shape of every tensor without reading it, and
returns rows of one tensor at a time. Rows are indices into the leading axis: our layer axis, and the axis along which
other layouts fuse tensors (qkv) and split them (shards).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.file_cache import open_copy
from earthgpt_jax.common.safetensors_files import Reader, row_slice

# torch.load maps files into memory. They are mapped again after this many bytes, which releases the pages read.
_REMAP_BYTES = 256 << 20


class TorchReader:
    """Reads a file written by `torch.save` that holds `{"key": tensor}` or `{"model": {"key": tensor}}`."""

    def __init__(self, file: Path):
        self.file = file
        self._copy = open_copy(file) if isinstance(file, BucketPath) else None  # PyTorch reads local files only
        self._local = self._copy.path if self._copy else file
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
            values: Any = torch.load(self._local, map_location="cpu", weights_only=True, mmap=True)
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
        value = value[row_slice(start, rows)].clone() if value.ndim else value.clone()
        self._bytes_read += value.nbytes
        if self.dtypes[key].type.__module__ == "ml_dtypes":  # PyTorch makes no NumPy array of these
            import torch

            raw = value.view({1: torch.uint8, 2: torch.int16}[value.itemsize])
            return raw.numpy().view(self.dtypes[key])
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
                return np.concatenate([shard.read(key) for shard in self._shards])[row_slice(start, rows)]
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
