"""The length index of a dataset's split: measured in parallel, and cached next to the shards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common import files
from earthgpt_jax.common.digests import fingerprint_json
from earthgpt_jax.common.errors import DamagedRecordError, EarthGPTError
from earthgpt_jax.common.parallel import parallel_map
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.config import OnDamaged
from earthgpt_jax.datasets import store
from earthgpt_jax.input.packing.lengths import LengthIndex, concatenate_indexes, measure_lengths
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.records import Record

MAX_FILES = 4  # most recent files to keep per split, one per prompt config
_CHUNK = 64  # records per task of a worker process
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedIndex:
    """A length index, and everything that it depends on."""

    index: LengthIndex
    identity: Mapping[str, Any]


def load_length_index(
    source: store.RecordSource,
    *,
    prompt_config: PromptConfig,
    workers: int | None = None,
    on_damaged: OnDamaged = OnDamaged.REFUSE,
) -> CachedIndex:
    """Return the length index of a split from its cache file, or measure it and write that file.

    The file is in the dataset's directory, or in `$XDG_CACHE_HOME/earthgpt` if that directory is read-only. If neither
    can be written, the index is measured each time. A damaged file is replaced, with a warning.

    Args:
        workers: Processes; None for one per core.
        on_damaged: Whether to leave out records that cannot be read. An index that lacks records is not cached.

    Raises:
        EarthGPTError: A question does not fit into an index, a worker was killed, or a record cannot be read.
    """
    shares = source.annotated.shares
    identity = {"dataset": source.fingerprint, "classes": fingerprint_json(dict(shares)), **prompt_config.identity()}
    name = f"lengths-{source.split}-{fingerprint_json(identity)}.npz"
    folders = (source.directory, files.cache_folder() / fingerprint_json(source.fingerprint))
    for folder in folders:
        index = _read(folder / name, identity, records=len(source))
        if index is not None:
            return CachedIndex(index=index, identity=identity)
    index, damaged = _measure(source, prompt_config, workers, on_damaged)
    if damaged:
        _log.warning("data %s: no questions about %d records that cannot be read", source.directory, damaged)
    else:
        _write(folders, name, index, identity)
    return CachedIndex(index=index, identity=identity)


def _measure(
    source: store.RecordSource, prompt_config: PromptConfig, workers: int | None, on_damaged: OnDamaged
) -> tuple[LengthIndex, int]:
    """Return the index, and the number of damaged records that it lacks."""
    starts = range(0, len(source), _CHUNK)
    parts, damaged = [], 0
    with Bar(total=len(source), desc=f"{source.name}: lengths", unit="record", leave=False) as bar:
        task = functools.partial(_measure_chunk, source.directory, source.split, prompt_config, on_damaged)
        for part, damaged_in_part in parallel_map(task, starts, workers=workers):
            parts.append(part)
            damaged += damaged_in_part
            bar.update(len(part.digests))
    return concatenate_indexes(parts or [measure_lengths([], prompt_config=prompt_config)]), damaged


@functools.lru_cache(maxsize=2)
def _source(directory: Path, split: str) -> store.RecordSource:
    """Open a split once per process, because opening shards takes longer than reading a chunk."""
    return store.RecordSource(directory, split)


def _measure_chunk(
    directory: Path, split: str, prompt_config: PromptConfig, on_damaged: OnDamaged, start: int
) -> tuple[LengthIndex, int]:
    source = _source(directory, split)
    records: list[Record | None] = []
    for number in range(start, min(start + _CHUNK, len(source))):
        try:
            records.append(source[number])
        except DamagedRecordError:
            if on_damaged is OnDamaged.REFUSE:
                raise
            records.append(None)
    index = measure_lengths(records, prompt_config=prompt_config, annotated=source.annotated, start=start)
    return index, records.count(None)


def _read(path: Path, identity: Mapping[str, Any], *, records: int) -> LengthIndex | None:
    """Return the index in a file; None if there is no such file or it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            arrays = dict(file)
        if json.loads(str(arrays.pop("identity"))) != identity:
            raise ValueError("its identity is not the one in its name")
        index = LengthIndex(tasks=tuple(identity["tasks"]), **arrays)
        by_record, by_question = ("digests", "sensors"), ("task", "index", "tokens")
        if any(len(getattr(index, column)) != records for column in by_record) or any(
            len(getattr(index, column)) != len(index) for column in by_question
        ):
            raise ValueError("its columns have unexpected lengths")
        return index
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("%s is damaged (%s); measuring the lengths again", path, error)
        return None


def _write(folders: tuple[Path, ...], name: str, index: LengthIndex, identity: Mapping[str, Any]) -> None:
    """Write the file to the first folder that is writable."""
    arrays: dict[str, Any] = {"identity": np.array(json.dumps(identity)), **index.arrays()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    reasons = []
    for folder in folders:
        try:
            with files.explain_write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            files.write_output(folder / name, buffer.getvalue())
        except EarthGPTError as error:
            reasons.append(str(error))
        else:
            _prune(folder, name)
            return
    _log.warning("lengths of questions cannot be cached and will be measured again: %s", "; ".join(reasons))


def _prune(folder: Path, name: str) -> None:
    """Delete all but the most recent `MAX_FILES` files of the same split."""
    split = name.rpartition("-")[0]
    with contextlib.suppress(FileNotFoundError):  # another process is pruning too
        files = [path for path in folder.iterdir() if re.fullmatch(re.escape(split) + r"-[0-9a-f]{16}\.npz", path.name)]
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-MAX_FILES]:
            path.unlink()
