"""Write a model directory from arrays on the devices of one or several processes, which hold no whole model.

Every parameter is assigned to one process, which writes it into its own file. Its values are brought there in pieces of
about `PIECE_BYTES`: a range of rows (of layers, for a stacked parameter) is replicated on all devices by a small
program, the assigned process copies it to its host and writes it while the next piece, of another process, is on its
way. A device therefore holds one piece in addition to its shards, a host two. A parameter whose first axis is sharded
is one piece.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from earthgpt_jax import distributed
from earthgpt_jax.common.files import IfExists, atomic_folder, explain_write_errors, folder_part
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.safetensors_files import SafetensorsWriter
from earthgpt_jax.common.tensor_digests import TensorDigests
from earthgpt_jax.config import DType, FrozenDType, ModelConfig
from earthgpt_jax.models import model_dir
from earthgpt_jax.models.quantized import Int8, dequantize

PIECE_BYTES = 64 << 20  # at least one row is brought at a time, even if it is larger
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}  # bytes per element -> dtype of the same width


class _Piece(NamedTuple):
    """Rows of one parameter.

    Attributes:
        path: the parameter.
        start: first row.
        rows: number of rows; None: the whole parameter, which the assigned process holds completely.
    """

    path: str
    start: int
    rows: int | None


def write(
    path: Path, params: Mapping[str, jax.Array | Int8], *, compute_dtype: DType, model: ModelConfig, decimals: int,
    chat_template: str, tokenizer: Path, provenance: dict, parent: model_dir.ModelDir | None = None,
    frozen_dtype: FrozenDType = FrozenDType.FLOAT32, piece_bytes: int = PIECE_BYTES,
) -> None:  # fmt: skip
    """Write a model directory, replacing one at `path`. All processes must call it.

    The directory has one file of arrays if process 0 holds all of them, and otherwise one file per process. It appears
    under its name once all processes have written their files.

    Args:
        path: the directory, in a bucket or on a disk that all processes share.
        params: parameters, sharded over the devices of all processes: those of the model, or its adapters alone.
        compute_dtype: dtype in which quantized kernels are written; all others keep theirs.
        model, decimals, chat_template, tokenizer, provenance: see `model_dir.ModelDir`.
        parent, frozen_dtype: see `model_dir.write_config`.
        piece_bytes: size of a piece.

    Raises:
        EarthGPTError: a file could not be written, on any of the processes.
    """
    process, activity = jax.process_index(), f"writing {path}"
    tensors = {key: (tuple(params[key].shape), _stored_dtype(params[key], compute_dtype)) for key in sorted(params)}
    sizes = {key: math.prod(shape) * dtype.itemsize for key, (shape, dtype) in tensors.items()}
    whole = all(_is_held_completely(params[key]) for key in params)
    groups = assign(sizes, processes=1 if whole else jax.process_count())
    with contextlib.ExitStack() as stack:
        with distributed.fail_together(activity), explain_write_errors(path):
            if process == 0:
                folder = stack.enter_context(atomic_folder(path, key_file="config.json", if_exists=IfExists.REPLACE))
        if process != 0:
            folder = stack.enter_context(folder_part(path))
        failure: Exception | None = None
        digests = TensorDigests()
        try:
            with explain_write_errors(path):
                _write_arrays(params, tensors, groups, folder=folder, piece_bytes=piece_bytes, digests=digests)
        except jax.errors.JaxRuntimeError:
            raise  # a process or a device is lost, and JAX ends the others
        except Exception as error:
            failure = error
        all_digests: dict[str, Any] = {}
        for text in distributed.gather_texts(json.dumps(digests.values())):
            all_digests |= json.loads(text)
        with distributed.fail_together(activity), explain_write_errors(path):
            if failure is not None:
                raise failure
            if process == 0:
                model_dir.write_config(
                    folder, path, model=model, decimals=decimals, chat_template=chat_template,
                    tokenizer=tokenizer, provenance=provenance, digests=all_digests, parent=parent,
                    frozen_dtype=frozen_dtype,
                )  # fmt: skip
            else:
                stack.close()  # in a bucket, uploads what this process wrote
        with distributed.fail_together(activity), explain_write_errors(path):
            stack.close()  # of process 0: the folder appears under its name


def assign(sizes: Mapping[str, int], *, processes: int) -> list[list[str]]:
    """Return the parameters that each process writes, in the order of `sizes`; empty processes are left out.

    The largest parameters are assigned first, each to the process with the fewest bytes so far.

    Args:
        sizes: path -> bytes.
        processes: number of processes.
    """
    loads, owner = [0] * processes, {}
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        owner[key] = min(range(processes), key=loads.__getitem__)
        loads[owner[key]] += sizes[key]
    groups = [[key for key in sizes if owner[key] == process] for process in range(processes)]
    return [group for group in groups if group]


def _write_arrays(
    params: Mapping[str, jax.Array | Int8], tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    groups: Sequence[Sequence[str]], *, folder: Path, piece_bytes: int, digests: TensorDigests,
) -> None:  # fmt: skip
    """Write the files of this process, and take part in bringing the arrays of the others to them."""
    process = jax.process_index()
    batches = [list(_batches(params, tensors, keys, piece_bytes=piece_bytes)) for keys in groups]
    # Alternate between the processes, so that each writes a piece while the others receive theirs.
    rounds = [(i, batch) for turn in itertools.zip_longest(*batches) for i, batch in enumerate(turn) if batch]
    dtypes = {key: dtype for key, (_, dtype) in tensors.items()}
    failure: Exception | None = None
    total = sum(_bytes(tensors[piece.path], piece) for _, batch in rounds for piece in batch)
    bar = Bar(total=total, desc="model", unit="B", unit_scale=True, leave=False, disable=process != 0)
    with bar, ThreadPoolExecutor(1) as thread:
        writer: SafetensorsWriter | None = None
        pending: Future[None] | None = None
        try:
            writer = SafetensorsWriter(folder, tensors, groups=groups, only=process, digests=digests)
        except OSError as error:
            failure = error
        for owner, batch in rounds:
            arrays = _bring(params, batch, dtypes=dtypes, local=owner == process)
            if writer is not None and owner == process and failure is None:
                # After a failure keep bringing pieces: the other processes would wait for this one forever.
                try:
                    if pending is not None:
                        pending.result()
                    pending = thread.submit(_write_pieces, writer, batch, arrays)
                except OSError as error:
                    failure = error
            del arrays
            bar.update(sum(_bytes(tensors[piece.path], piece) for piece in batch))
        try:
            if pending is not None and failure is None:
                pending.result()
        except OSError as error:
            failure = error
        if writer is not None:
            with contextlib.suppress(ValueError) if failure else contextlib.nullcontext():
                writer.close()
    if failure is not None:
        raise failure


def _write_pieces(writer: SafetensorsWriter, batch: Sequence[_Piece], arrays: Sequence[np.ndarray]) -> None:
    for piece, array in zip(batch, arrays, strict=True):
        writer.write(piece.path, array, piece.start)


def _batches(
    params: Mapping[str, jax.Array | Int8], tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    keys: Sequence[str], *, piece_bytes: int,
) -> Iterator[list[_Piece]]:  # fmt: skip
    """Yield lists of pieces of at most `piece_bytes` together, which are brought to their process by one program.

    Only small parameters share a program, so that few programs serve all layers and all parameters of the same shape.
    """
    batch: list[_Piece] = []
    used = 0
    for key in keys:
        pieces = _pieces(key, params[key], *tensors[key], piece_bytes=piece_bytes)
        size = _bytes(tensors[key], pieces[0])
        if len(pieces) > 1 or size > piece_bytes // 4:
            yield from ([piece] for piece in pieces)
            continue
        if batch and used + size > piece_bytes:
            yield batch
            batch, used = [], 0
        batch += pieces
        used += size
    if batch:
        yield batch


def _pieces(
    key: str, value: jax.Array | Int8, shape: tuple[int, ...], dtype: np.dtype, *, piece_bytes: int
) -> list[_Piece]:
    row = math.prod(shape[1:]) * dtype.itemsize
    if _is_held_completely(value) and not isinstance(value, Int8) and row * math.prod(shape[:1]) <= piece_bytes:
        return [_Piece(key, 0, None)]
    most = shape[0] if _shards_rows(value) else max(1, piece_bytes // max(1, row))
    count = -(-shape[0] // most)
    step = -(-shape[0] // count)
    return [_Piece(key, start, min(step, shape[0] - start)) for start in range(0, shape[0], step)]


def _bytes(tensor: tuple[tuple[int, ...], np.dtype], piece: _Piece) -> int:
    shape, dtype = tensor
    return math.prod(shape if piece.rows is None else (piece.rows, *shape[1:])) * dtype.itemsize


def _shards_rows(value: jax.Array | Int8) -> bool:
    """Return whether devices hold different rows; rows of such a parameter cannot be brought without all others."""
    shape = _leaf(value).sharding.shard_shape(value.shape)
    return shape[:1] != value.shape[:1]


def _bring(
    params: Mapping[str, jax.Array | Int8], batch: Sequence[_Piece], *, dtypes: Mapping[str, np.dtype], local: bool
) -> list[np.ndarray]:
    """Return the pieces as host arrays if `local`, and an empty list otherwise."""
    sharded = [piece for piece in batch if piece.rows is not None]
    brought: Sequence[jax.Array] = ()
    if sharded:
        values = [params[piece.path] for piece in sharded]
        brought = _rows(
            values,
            np.asarray([piece.start for piece in sharded], np.int32),
            rows=tuple(piece.rows for piece in sharded),
            dtypes=tuple(dtypes[piece.path] for piece in sharded),
            replicated=_replicated(values[0]),
        )
        jax.block_until_ready(brought)  # not two pieces on a device
    if not local:
        return []
    by_piece = dict(zip(sharded, brought, strict=True))
    return [
        np.asarray(by_piece[piece].addressable_data(0)).view(dtypes[piece.path])
        if piece in by_piece
        else _host(params[piece.path])
        for piece in batch
    ]


@functools.partial(jax.jit, static_argnames=("rows", "dtypes", "replicated"))
def _rows(
    values: Sequence[jax.Array | Int8], starts: jax.Array, *, rows: tuple[int, ...], dtypes: tuple[np.dtype, ...],
    replicated: NamedSharding | None,
) -> list[jax.Array]:  # fmt: skip
    """Return the bits of rows of each array, dequantized and replicated on all devices.

    As bits, because the compiler gathers bfloat16 as float32 on CPUs: twice the bytes.
    """
    results = []
    for i, (value, count, dtype) in enumerate(zip(values, rows, dtypes, strict=True)):
        part = jax.tree.map(lambda x, i=i, n=count: jax.lax.dynamic_slice_in_dim(x, starts[i], n), value)
        result = dequantize({"": part}, DType(dtype.name))[""] if isinstance(part, Int8) else part
        result = jax.lax.bitcast_convert_type(result, _UNSIGNED[dtype.itemsize])
        results.append(result if replicated is None else jax.lax.with_sharding_constraint(result, replicated))
    return results


def _leaf(value: jax.Array | Int8) -> jax.Array:
    return value.values if isinstance(value, Int8) else value


def _replicated(value: jax.Array | Int8) -> NamedSharding | None:
    sharding = _leaf(value).sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


def _is_held_completely(value: Any) -> bool:
    """Return whether every process that has a part of a parameter has all of it."""
    leaf = _leaf(value)
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def _host(value: Any) -> np.ndarray:
    return np.asarray(_leaf(value))


def _stored_dtype(value: jax.Array | Int8, compute_dtype: DType) -> np.dtype:
    return jnp.dtype(compute_dtype) if isinstance(value, Int8) else np.dtype(value.dtype)
