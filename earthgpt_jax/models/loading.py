"""Load the parameters that a run starts from straight into their shards, in their final dtypes.

A large parameter is allocated on the devices and filled piece by piece. A piece is a range of rows (of layers, for a
stacked parameter), of which a process reads what its own devices hold; a kernel is quantized piece by piece, too.
Beyond its shards, a device holds its share of one piece at a time, and a host `READERS` pieces, which it reads in
parallel.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from earthgpt_jax import distributed
from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.safetensors_files import Reader, read_part
from earthgpt_jax.config import FrozenDType, ModelConfig
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.quantized import Int8, cast_frozen, frozen_array_dtype, is_quantized, quantize
from earthgpt_jax.sharding.mesh import Placement

PIECE_BYTES = 64 << 20  # of a process's share of a piece in host memory; at least one row
READERS = 4
_READ_ERRORS = (EarthGPTError, OSError, ValueError)
_Box = tuple[tuple[int, int], ...]  # start and stop along each axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Initial parameters that are not read yet.

    Attributes:
        reader: parameters that are stored.
        fresh: paths of those that are initialized.
    """

    reader: Reader | None
    fresh: Collection[str]

    @property
    def paths(self) -> set[str]:
        """Paths of all parameters."""
        return {*self.fresh, *(() if self.reader is None else self.reader.shapes)}


class _Target(NamedTuple):
    """A stored parameter and how it is placed.

    Attributes:
        like: shape, and dtype in which it is put on the devices.
        bytes: its size in the files.
        quantize: whether it is quantized on the devices.
        rows: number of rows of a piece.
    """

    path: str
    like: jax.ShapeDtypeStruct
    sharding: NamedSharding
    boxes: Mapping[jax.Device, _Box]
    bytes: int
    quantize: bool
    rows: int

    @property
    def starts(self) -> list[int]:
        """First row of each piece; the last one overlaps its predecessor, so that all have the same shape."""
        length = self.like.shape[0] if self.like.shape else 1
        return [min(start, length - self.rows) for start in range(0, length, self.rows)]

    @property
    def is_whole(self) -> bool:
        """Whether a single piece is the whole parameter."""
        return len(self.starts) == 1

    def boxes_of(self, start: int) -> dict[jax.Device, _Box]:
        """Return the box of the parameter that each device of this process holds of the piece from row `start`."""
        if self.is_whole:
            return dict(self.boxes)
        return {device: ((start, start + self.rows), *box[1:]) for device, box in self.boxes.items()}


def load(
    source: Source, model: ModelConfig, *, seed: int, placement: Placement, trainable: Collection[str],
    frozen_dtype: FrozenDType, paths: Collection[str] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:  # fmt: skip
    """Return the trainable parameters in fp32 and the frozen ones in `frozen_dtype`. All processes must call it.

    Args:
        source: where they come from.
        model: config of the model.
        seed: seed of initialized parameters.
        placement: their placement.
        trainable: paths of trainable parameters.
        frozen_dtype: see `quantized.cast_frozen`.
        paths: which parameters; None: all.

    Raises:
        EarthGPTError: a file cannot be read, on any of the processes.
    """
    paths = source.paths if paths is None else paths
    params: dict[str, Any] = {}
    fresh = sorted(set(source.fresh) & set(paths))
    if fresh:
        params = _initialize(fresh, model, seed=seed, placement=placement, trainable=trainable, dtype=frozen_dtype)
    failure = None
    if source.reader is not None:
        stored = sorted(source.reader.shapes.keys() & set(paths))
        targets = [_target(source.reader, path, placement, trainable, frozen_dtype) for path in stored]
        read, failure = _read(source.reader, targets, placement)
        params |= read
    with distributed.fail_together("reading the weights"):
        if failure is not None:
            raise failure
    return params_lib.split(dict(sorted(params.items())), trainable)


def _initialize(
    paths: Collection[str], model: ModelConfig, *, seed: int, placement: Placement, trainable: Collection[str],
    dtype: FrozenDType,
) -> dict[str, Any]:  # fmt: skip
    """Return freshly initialized parameters; the program computes no others."""

    def initialize() -> dict[str, Any]:
        _, params = earthgpt.init(model, seed=seed)
        chosen, frozen = params_lib.split({path: params[path] for path in sorted(paths)}, trainable)
        return params_lib.merge(chosen, cast_frozen(frozen, dtype))

    return jax.jit(initialize, out_shardings=placement.shardings(jax.eval_shape(initialize)))()


# ------------------------------------------------------------------------------------------------------------- reading


def _target(
    reader: Reader, path: str, placement: Placement, trainable: Collection[str], frozen_dtype: FrozenDType
) -> _Target:
    quantize = path not in trainable and is_quantized(path, frozen_dtype)
    dtype = np.dtype("float32") if path in trainable or quantize else frozen_array_dtype(frozen_dtype)
    shape = reader.shapes[path]
    like = jax.ShapeDtypeStruct(shape, dtype)
    sharding = placement.shardings({path: like})[path]
    indices = sharding.addressable_devices_indices_map(shape)
    boxes = {device: _box(index, shape) for device, index in indices.items() if index is not None}
    row = sum(math.prod(stop - start for start, stop in box[1:]) for box in set(boxes.values()))
    rows = rows_per_piece(shape, sharding, row_bytes=row * dtype.itemsize)
    size = math.prod(shape) * reader.dtypes[path].itemsize
    return _Target(path, like, sharding, boxes, size, quantize, rows)


def rows_per_piece(shape: Sequence[int], sharding: NamedSharding, *, row_bytes: int) -> int:
    """Return how many rows of a parameter are brought to the devices at a time.

    Args:
        row_bytes: size of the part of a row that this process holds.
    """
    rows = shape[0] if shape else 1
    if not shape or (sharding.spec and sharding.spec[0]):  # a parameter whose rows are sharded is a single piece
        return rows
    return min(rows, max(1, PIECE_BYTES // max(1, row_bytes)))


def _read(reader: Reader, targets: Sequence[_Target], placement: Placement) -> tuple[dict[str, Any], Exception | None]:
    """Return the stored parameters, and the error if one could not be read.

    After an error the rest is zeros: to quantize kernels, the other processes wait for this one.
    """
    params: dict[str, Any] = {}
    failure: Exception | None = None
    total = sum(target.bytes for target in targets)
    with (
        ThreadPoolExecutor(READERS) as pool,
        Bar(
            total=total, desc="weights", unit="B", unit_scale=True, leave=False, disable=jax.process_index() != 0
        ) as bar,
    ):
        for target, start, shards in _read_ahead(reader, targets, pool):
            try:
                piece: Any = _put(target, start, shards.result())
            except _READ_ERRORS as error:
                failure = failure or error
                piece = _put(target, start, _empty_shards(target, start))
            del shards
            if target.quantize:
                piece = _quantize(target, piece, placement)
            params[target.path] = piece if target.is_whole else _write(target, params.get(target.path), piece, start)
            del piece
            bar.update(target.bytes / len(target.starts))
    return params, failure


def _read_ahead(
    reader: Reader, targets: Sequence[_Target], pool: ThreadPoolExecutor
) -> Iterator[tuple[_Target, int, Future[dict[_Box, np.ndarray]]]]:
    """Yield every piece while the threads read the next ones."""
    pending: collections.deque[tuple[_Target, int, Future[dict[_Box, np.ndarray]]]] = collections.deque()
    for target in targets:
        for start in target.starts:
            pending.append((target, start, pool.submit(_read_piece, reader, target, start)))
            if len(pending) == READERS:
                yield pending.popleft()
    while pending:
        yield pending.popleft()


def _empty_shards(target: _Target, start: int) -> dict[_Box, np.ndarray]:
    """Return zeros for the shards of a piece on this process's devices, by their boxes in the parameter."""
    boxes = set(target.boxes_of(start).values())
    return {box: np.zeros([upper - lower for lower, upper in box], target.like.dtype) for box in boxes}


def _read_piece(reader: Reader, target: _Target, first: int) -> dict[_Box, np.ndarray]:
    shards = _empty_shards(target, first)
    if not target.like.shape:
        for shard in shards.values():
            shard[...] = reader.read(target.path)
        return shards
    # The smallest box around all shards.
    ndim = len(target.like.shape)
    around = [(min(box[axis][0] for box in shards), max(box[axis][1] for box in shards)) for axis in range(ndim)]
    columns = tuple(slice(*bounds) for bounds in around[1:])
    row = math.prod(target.like.shape[1:]) * reader.dtypes[target.path].itemsize
    step = max(1, PIECE_BYTES // max(1, row))
    for start in range(*around[0], step):
        stop = min(start + step, around[0][1])
        rows = read_part(reader, target.path, (slice(start, stop), *columns))
        for box, shard in shards.items():
            lower, upper = max(start, box[0][0]), min(stop, box[0][1])
            if lower < upper:
                pairs = zip(box[1:], around[1:], strict=True)
                inner = (slice(low - origin, high - origin) for (low, high), (origin, _) in pairs)
                shard[lower - box[0][0] : upper - box[0][0]] = rows[(slice(lower - start, upper - start), *inner)]
    return shards


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Box:
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)


# ---------------------------------------------------------------------------------------------------------- on devices


def _put(target: _Target, start: int, shards: Mapping[_Box, np.ndarray]) -> jax.Array:
    """Return the piece from row `start` on the devices."""
    shape = target.like.shape if target.is_whole else (target.rows, *target.like.shape[1:])
    boxes = target.boxes_of(start).items()
    arrays = [jax.device_put(shards[box], device, may_alias=False) for device, box in boxes]
    return jax.make_array_from_single_device_arrays(shape, target.sharding, jax.block_until_ready(arrays))


def _quantize(target: _Target, piece: jax.Array, placement: Placement) -> Int8:
    shardings = placement.shardings({target.path: jax.eval_shape(quantize, piece)})[target.path]
    return jax.block_until_ready(_quantizer(shardings)(piece))  # not two pieces on a device


def _write(target: _Target, whole: Any, piece: Any, start: int) -> Any:
    """Return the parameter with the rows of `piece` from `start`; None: nothing of it has been written before."""
    if whole is None:
        rows = target.like.shape[0]
        whole = jax.tree.map(lambda x: _allocator((rows, *x.shape[1:]), x.dtype, x.sharding)(), piece)
    written = jax.tree.map(lambda x, y: _writer(x.sharding)(x, y, np.int32(start)), whole, piece)
    return jax.block_until_ready(written)


@functools.cache
def _quantizer(shardings: Int8) -> Callable[[jax.Array], Int8]:
    return jax.jit(quantize, out_shardings=shardings)


@functools.cache
def _allocator(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _writer(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, np.int32], jax.Array]:
    """Return a program that writes a piece into a parameter at a row; rows are not sharded: nothing is communicated."""

    def write(whole: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
