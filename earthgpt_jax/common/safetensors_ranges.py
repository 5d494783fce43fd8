"""Read parts of the tensors of a safetensors file, on a disk or in a bucket, by ranges of bytes."""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import numpy as np

from earthgpt_jax.common import typed
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.parsing import parse_json

_PIECE_BYTES = 8 << 20  # of a request to a bucket
_RUN_BYTES = 256 << 10  # of the shortest run that is worth a request of its own
_REQUESTS = 16  # at a time
_HEADER_LIMIT = 100 << 20  # of the safetensors library


class _Tensor(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: list[int]


def _is_valid(entry: _Tensor) -> bool:
    offsets = entry["data_offsets"]
    return min(entry["shape"], default=0) >= 0 and len(offsets) == 2 and 0 <= offsets[0] <= offsets[1]


class RangeFile:
    """A safetensors file.

    Attributes:
        path: the file.
        shapes, dtypes: shape of each tensor, and its dtype as the file names it, such as `BF16`.

    Raises:
        ValueError: the file is truncated, or not a safetensors file.
        EarthGPTError: its header is not that of a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        length = struct.unpack("<Q", self._range(0, 8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise ValueError("invalid header")
        header = parse_json(bytes(self._range(8, 8 + length)), where="header")
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        header = typed.check(dict[str, _Tensor], header, where="header")
        if wrong := [key for key, entry in header.items() if not _is_valid(entry)]:
            raise ValueError(f"{typed.show(wrong[0])} has an invalid shape or position")
        self.shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
        self.dtypes: dict[str, str] = {key: entry["dtype"] for key, entry in header.items()}
        self._start = {key: 8 + length + entry["data_offsets"][0] for key, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"expected {8 + length + end} bytes, got {size}")

    def read(self, key: str, index: Sequence[slice], dtype: np.dtype) -> np.ndarray:
        """Return a part of a tensor, given by one slice per axis; missing slices mean the whole axis."""
        shape = self.shapes[key]
        wanted = [part.indices(size)[:2] for part, size in zip(index, shape, strict=False)]
        wanted += [(0, size) for size in shape[len(wanted) :]]
        axis = _run_axis(shape, wanted, dtype.itemsize)
        read = [*wanted[: axis + 1], *((0, size) for size in shape[axis + 1 :])]
        result = np.empty([max(0, stop - start) for start, stop in read], dtype)
        if not result.size:
            return np.empty([max(0, stop - start) for start, stop in wanted], dtype)
        runs = result.reshape(math.prod(result.shape[:axis]), -1).view(np.uint8)
        strides = [math.prod(shape[i + 1 :]) * dtype.itemsize for i in range(len(shape))]
        pieces: list[tuple[np.ndarray, int]] = []
        for run, outer in zip(runs, np.ndindex(*result.shape[:axis]), strict=True):
            position = [start + i for (start, _), i in zip(read, (*outer, 0), strict=False)]
            offset = self._start[key] + sum(i * stride for i, stride in zip(position, strides, strict=False))
            pieces += [(run[i : i + _PIECE_BYTES], offset + i) for i in range(0, len(run), _PIECE_BYTES)]
        self._fill(pieces)
        inner = (slice(start - first, stop - first) for (start, stop), (first, _) in zip(wanted, read, strict=True))
        return result[tuple(inner)]

    def _range(self, start: int, stop: int) -> bytes:
        data = np.empty(stop - start, np.uint8)
        self._fill([(data, start)])
        return data.tobytes()

    def _fill(self, pieces: Sequence[tuple[np.ndarray, int]]) -> None:
        """Read bytes into arrays u8[n] from offsets; in a bucket, many requests at a time."""
        if isinstance(self.path, BucketPath):
            with ThreadPoolExecutor(_REQUESTS) as threads:
                list(threads.map(functools.partial(_request, self.path), pieces))
            return
        with self.path.open("rb", buffering=0) as file:
            for target, offset in pieces:
                _read_into(file.fileno(), target, offset)


def _request(path: BucketPath, piece: tuple[np.ndarray, int]) -> None:
    target, offset = piece
    target[:] = np.frombuffer(path.read_range(offset, offset + len(target)), np.uint8)


def _read_into(file: int, target: np.ndarray, offset: int) -> None:
    view = memoryview(target.data)
    while view:  # a call may read less
        count = os.preadv(file, [view], offset)
        if not count:
            raise OSError("unexpected end of the file")
        view, offset = view[count:], offset + count


def _run_axis(shape: Sequence[int], wanted: Sequence[tuple[int, int]], itemsize: int) -> int:
    """Return the axis along which bytes are read in runs; later axes are read whole, and earlier ones run by run.

    It is the last axis of which a part is wanted, unless runs would be short: then the tensor is read along an earlier
    axis, which reads more bytes with fewer requests.
    """
    partial = [i for i, (size, part) in enumerate(zip(shape, wanted, strict=True)) if part != (0, size)]
    for axis in reversed(partial):
        start, stop = wanted[axis]
        if (stop - start) * math.prod(shape[axis + 1 :]) * itemsize >= _RUN_BYTES:
            return axis
    return 0
