"""Load the parameters that a run starts from straight into their shards, in their final dtypes.

A process reads the part of each parameter that its own devices hold, a few rows at a time. Beyond its shards, a device
holds at most its share of one parameter in fp32, before that is quantized.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from earthgpt_jax import distributed
from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.safetensors_files import Reader, read_part
from earthgpt_jax.config import FrozenDType, ModelConfig
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.quantized import cast_frozen, frozen_array_dtype, is_quantized
from earthgpt_jax.sharding.mesh import Placement

_READ_BYTES = 64 << 20  # read at a time; at least one row
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


def load(
    source: Source, model: ModelConfig, *, seed: int, placement: Placement, trainable: Collection[str],
    frozen_dtype: FrozenDType,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:  # fmt: skip
    """Return the trainable parameters in fp32 and the frozen ones in `frozen_dtype`. All processes must call it.

    Args:
        source: where they come from.
        model: config of the model.
        seed: seed of initialized parameters.
        placement: their placement.
        trainable: paths of trainable parameters.
        frozen_dtype: see `quantized.cast_frozen`.

    Raises:
        EarthGPTError: a file cannot be read, on any of the processes.
    """
    params: dict[str, Any] = {}
    if source.fresh:
        params = _initialize(
            source.fresh, model, seed=seed, placement=placement, trainable=trainable, dtype=frozen_dtype
        )
    failure = None
    if source.reader is not None:
        stored, failure = _read(source.reader, placement=placement, trainable=trainable, frozen_dtype=frozen_dtype)
        params |= stored
    with distributed.fail_together("reading the weights"):
        if failure is not None:
            raise failure
    return params_lib.split(dict(sorted(params.items())), trainable)


def _read(
    reader: Reader, *, placement: Placement, trainable: Collection[str], frozen_dtype: FrozenDType
) -> tuple[dict[str, Any], Exception | None]:
    """Return the stored parameters, and the error if one could not be read.

    After an error the remaining parameters are zeros: to quantize them, the other processes wait for this one.
    """
    sizes = {path: math.prod(shape) * reader.dtypes[path].itemsize for path, shape in reader.shapes.items()}
    params: dict[str, Any] = {}
    failure: Exception | None = None
    with Bar(
        total=sum(sizes.values()), desc="weights", unit="B", unit_scale=True, leave=False,
        disable=jax.process_index() != 0,
    ) as bar:  # fmt: skip
        for path in sorted(sizes):
            quantize = path not in trainable and is_quantized(path, frozen_dtype)
            fp32 = path in trainable or quantize
            dtype = np.dtype("float32") if fp32 else frozen_array_dtype(frozen_dtype)
            shape = jax.ShapeDtypeStruct(reader.shapes[path], dtype)
            sharding = placement.shardings({path: shape})[path]
            try:
                array = _place(reader if failure is None else None, path, shape, sharding)
            except _READ_ERRORS as error:
                failure = error
                array = _place(None, path, shape, sharding)
            params[path] = _quantize(path, array, placement) if quantize else array
            del array
            bar.update(sizes[path])
    return params, failure


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


def _quantize(path: str, array: jax.Array, placement: Placement) -> Any:
    def quantize(kernel: jax.Array) -> dict[str, Any]:
        return cast_frozen({path: kernel}, FrozenDType.INT8)

    shardings = placement.shardings(jax.eval_shape(quantize, array))
    result = jax.jit(quantize, out_shardings=shardings)(array)[path]
    return jax.block_until_ready(result)  # not two parameters in fp32 on a device


def _place(reader: Reader | None, path: str, like: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
    """Read the shards of this process's devices; without a reader, they are zeros."""
    shape = like.shape
    indices = sharding.addressable_devices_indices_map(shape)
    boxes = {device: _box(index, shape) for device, index in indices.items() if index is not None}
    shards = {box: np.zeros([stop - start for start, stop in box], like.dtype) for box in set(boxes.values())}
    if reader is not None:
        _fill(reader, path, shape, shards)
    arrays = [jax.device_put(shards[box], device, may_alias=False) for device, box in boxes.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, jax.block_until_ready(arrays))


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Box:
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)


def _fill(reader: Reader, path: str, shape: tuple[int, ...], shards: Mapping[_Box, np.ndarray]) -> None:
    """Read the parts of a parameter that `shards` hold into them."""
    if not shape:
        for shard in shards.values():
            shard[...] = reader.read(path)
        return
    # The smallest box around all shards.
    around = [(min(box[axis][0] for box in shards), max(box[axis][1] for box in shards)) for axis in range(len(shape))]
    columns = tuple(slice(start, stop) for start, stop in around[1:])
    row = max(1, math.prod(shape[1:]) * reader.dtypes[path].itemsize)
    step = max(1, _READ_BYTES // row)
    for first in range(*around[0], step):
        last = min(first + step, around[0][1])
        rows = read_part(reader, path, (slice(first, last), *columns)).astype(np.float32, copy=False)
        for box, shard in shards.items():
            start, stop = max(first, box[0][0]), min(last, box[0][1])
            if start < stop:
                pairs = zip(box[1:], around[1:], strict=True)
                inner = (slice(lower - origin, upper - origin) for (lower, upper), (origin, _) in pairs)
                shard[start - box[0][0] : stop - box[0][0]] = rows[(slice(start - first, stop - first), *inner)]
