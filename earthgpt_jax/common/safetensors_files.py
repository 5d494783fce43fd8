"""Read and write safetensors files by rows, so that a tensor of any size needs little memory.

A `Reader` knows the shape of every tensor without reading it and returns rows of one tensor at a time.
`SafetensorsWriter` lays out its files first and then accepts rows in any order. Rows are indices into the leading
axis: our layer axis, and the axis along which other layouts fuse tensors (qkv) and split them (shards).

The tensors of a model are in `model.safetensors`, or in several files that `model.safetensors.index.json` lists, as
transformers writes them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors relies on)
import numpy as np
from safetensors import SafetensorError, safe_open

from earthgpt_jax.common import typed
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.common.safetensors_ranges import RangeFile
from earthgpt_jax.common.tensor_digests import TensorDigests

Shape = tuple[int, ...]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
    "BF16": np.dtype("bfloat16"), "I64": np.dtype("int64"), "I32": np.dtype("int32"), "I16": np.dtype("int16"),
    "I8": np.dtype("int8"), "U8": np.dtype("uint8"), "BOOL": np.dtype("bool"),
    "F8_E4M3": np.dtype("float8_e4m3fn"), "F8_E5M2": np.dtype("float8_e5m2"),
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@runtime_checkable
class Reader(Protocol):
    """Named tensors whose shapes are known before they are read."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    @property
    def dtypes(self) -> Mapping[str, np.dtype]: ...

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        """Return rows `start:start+rows` of a tensor, or all rows from `start` if `rows` is None."""
        ...


@runtime_checkable
class SlicingReader(Reader, Protocol):
    """A reader that can read a part of each row alone."""

    def read_slice(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of a tensor, given by one slice per axis."""
        ...


def read_part(reader: Reader, key: str, index: tuple[slice, ...]) -> np.ndarray:
    """Return a part of a tensor, given by one slice per axis; only its rows are read, or less (`SlicingReader`)."""
    if isinstance(reader, SlicingReader):
        return reader.read_slice(key, index)
    if not index:
        return reader.read(key)
    start, stop, _ = index[0].indices(reader.shapes[key][0])
    return reader.read(key, start, stop - start)[(slice(None), *index[1:])]


def row_slice(start: int, rows: int | None) -> slice:
    """Return the slice of `rows` rows from `start`; None: all rows from there."""
    return slice(start, None if rows is None else start + rows)


def row_pieces(shape: Shape, dtype: np.dtype, *, limit: int = 64 << 20) -> Iterator[tuple[int, int | None]]:
    """Yield `(start, rows)` of consecutive pieces of a tensor of at most `limit` bytes each, or one row."""
    if not shape:
        yield 0, None
        return
    step = max(1, limit // max(1, _bytes(shape[1:], dtype)))
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)


# ---------------------------------------------------------------------------------------------- reading
class _Index(TypedDict):
    weight_map: dict[str, str]


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {"/", "\0"} and len(name) < 256


def indexed_files(index: Path) -> dict[str, Path]:
    """Return the file of every tensor that an index lists, in the order of the files.

    Raises:
        EarthGPTError: it is not an index, or a file that it lists is missing.
    """
    values = parse_json(index.read_bytes(), where=str(index), advice="download it again")
    where = f"{index}: not an index of safetensors files"
    weight_map = typed.check(_Index, values, where=where, further=True)["weight_map"]
    if wrong := [name for name in weight_map.values() if not _is_file_name(name)]:
        raise EarthGPTError(f"{index}: expected names of files next to it, got {typed.show(wrong[0])}")
    files = {key: index.parent / name for key, name in sorted(weight_map.items(), key=lambda item: item[1])}
    if missing := [file.name for file in dict.fromkeys(files.values()) if not file.is_file()]:
        raise EarthGPTError(
            f"{index.parent}: shards are missing: {', '.join(missing)}; the index lists {len(set(files.values()))}, "
            "download the rest"
        )
    return files


def check_indexed(index: Path, files: Mapping[str, Path], reader: Reader) -> None:
    """Raise if a tensor that `index` lists is in none of its files."""
    if lost := sorted(files.keys() - reader.shapes.keys()):
        raise EarthGPTError(
            f"{index}: tensors in the index are in none of its files: {', '.join(lost[:6])}; download the files again"
        )


def model_files(folder: Path) -> list[Path]:
    """Return the files with the tensors of a model: `model.safetensors`, or those of its index.

    Raises:
        EarthGPTError: see `indexed_files`.
    """
    index = folder / INDEX
    return list(dict.fromkeys(indexed_files(index).values())) if index.is_file() else [folder / SINGLE]


def open_model_files(folder: Path) -> SafetensorsReader:
    """Return a reader of the tensors of a model in one file or in several with an index.

    Raises:
        EarthGPTError: a file is missing or damaged.
    """
    reader = SafetensorsReader(model_files(folder))
    if (folder / INDEX).is_file():
        check_indexed(folder / INDEX, indexed_files(folder / INDEX), reader)
    return reader


class SafetensorsReader:
    """Reads one or several safetensors files, on a disk or in a bucket, as one namespace."""

    def __init__(self, files: Iterable[Path]):
        self._file: dict[str, RangeFile] = {}
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for file in files:
            try:
                if not isinstance(file, BucketPath):
                    with safe_open(file, framework="numpy"):  # checks the header completely
                        pass
                ranges = RangeFile(file)
                self.shapes |= ranges.shapes
                self.dtypes |= {key: _DTYPES[dtype] for key, dtype in ranges.dtypes.items()}
                self._file |= dict.fromkeys(ranges.shapes, ranges)
            except KeyError as error:
                raise EarthGPTError(f"{file}: unsupported tensor type {error}") from error
            except (SafetensorError, OSError, ValueError, EarthGPTError) as error:
                raise EarthGPTError(
                    f"{file}: expected a complete safetensors file ({error}); it may be truncated: download it again"
                ) from error

    def read(self, key: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        return self.read_slice(key, (row_slice(start, rows),) if self.shapes[key] else ())

    def read_slice(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of a tensor, given by one slice per axis; little more than this part is read.

        Several threads can read at the same time. The safetensors library's own slices hold the interpreter's lock.

        Raises:
            EarthGPTError: the file cannot be read.
        """
        file = self._file[key]
        try:
            return file.read(key, index, self.dtypes[key])
        except OSError as error:
            raise EarthGPTError(f"{file.path}: cannot be read ({error}); it may be truncated, copy it again") from error


# ---------------------------------------------------------------------------------------------- writing
class SafetensorsWriter:
    """Writes safetensors files whose layout is fixed first and whose tensors are filled in any order.

    The safetensors library needs all arrays of a file in memory; this class writes the same format row by row.

    Args:
        tensors: name -> (shape, dtype), in the order of the files.
        shard_bytes: upper limit for the bytes of tensors in a file, as in transformers; a larger tensor gets a file
            to itself. None writes a single file.
        groups: names of the tensors of each file, instead of `shard_bytes`.
        only: number of the group to write, from 0, if other processes write the other files; the writer of group 0
            also writes the index. None: all.
        metadata: strings for the `__metadata__` entry of each file.
        digests: receives all rows that are written.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, tuple[Shape, np.dtype]], *, shard_bytes: int | None = None,
        groups: Sequence[Sequence[str]] | None = None, only: int | None = None,
        metadata: Mapping[str, str] | None = None, digests: TensorDigests | None = None,
    ):  # fmt: skip
        sizes = {key: _bytes(shape, dtype) for key, (shape, dtype) in tensors.items()}
        groups = groups or _groups(sizes, shard_bytes)
        names = (
            [SINGLE]
            if len(groups) == 1
            else [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
        )
        self._tensors, self._location, self._digests = tensors, {}, digests
        self._remaining = {key: sizes[key] for i, keys in enumerate(groups) if only in (None, i) for key in keys}
        self._files: list[int] = []
        for number, (name, keys) in enumerate(zip(names, groups, strict=True)):
            if only not in (None, number):
                continue
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
            file = os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
            self._files.append(file)
            os.truncate(file, 8 + len(text) + offset)
            os.pwrite(file, struct.pack("<Q", len(text)) + text, 0)
            for key in keys:
                self._location[key] = (file, 8 + len(text) + header[key]["data_offsets"][0])
        if len(groups) > 1 and only in (None, 0):
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
        rows = np.ascontiguousarray(rows.astype(dtype, copy=False))
        if self._digests is not None:
            self._digests.add(key, rows.reshape(expected if shape else ()), start)
        data = rows.reshape(-1).view(np.uint8)
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
