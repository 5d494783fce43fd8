"""The length index of a dataset directory's split: computed in parallel, kept beside the shards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from earthgpt_jax.common import files
from earthgpt_jax.common.digests import fingerprint_json
from earthgpt_jax.common.errors import DamagedRecordError, EarthGPTError
from earthgpt_jax.common.parallel import parallel_map
from earthgpt_jax.config import OnDamaged
from earthgpt_jax.datasets import store
from earthgpt_jax.input.packing.lengths import (
    LengthIndex,
    PromptConfig,
    concatenate_indexes,
    measure_lengths,
)
from earthgpt_jax.records import Record

KEPT = 4  # files of a split, the newest: one a way of asking
_CHUNK = 64  # records a task of a worker process
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedIndex:
    """A length index, and everything it depends on."""

    index: LengthIndex
    identity: Mapping[str, Any]


def load_length_index(
    source: store.RecordSource,
    *,
    prompt_config: PromptConfig,
    workers: int | None = None,
    on_damaged: OnDamaged = OnDamaged.REFUSE,
) -> CachedIndex:
    """The length index of a split, read from its file if there is one of the same identity.

    Where the dataset's folder cannot be written to, the file is in `$XDG_CACHE_HOME/earthgpt`; where that cannot
    either, it is computed each time. A damaged file is computed anew, with a warning.

    Args:
        workers: processes; None: one a core.
        on_damaged: whether records that cannot be read are left out, which is not kept for when they can be again.

    Raises:
        EarthGPTError: a question that an index cannot hold; a worker was killed; a record cannot be read.
    """
    shares = source.annotated.shares
    identity = {"dataset": source.fingerprint, "classes": fingerprint_json(dict(shares)), **prompt_config.identity()}
    name = f"lengths-{source.split}-{fingerprint_json(identity)}.npz"
    places = (source.directory, _user_cache() / fingerprint_json(source.fingerprint))
    for place in places:
        index = _read(place / name, identity, records=len(source))
        if index is not None:
            return CachedIndex(index=index, identity=identity)
    index, missing = _measured(source, prompt_config, workers, on_damaged)
    if missing:
        _log.warning("data %s: nothing is asked about %d records that cannot be read", source.directory, missing)
    else:
        _write(places, name, index, identity)
    return CachedIndex(index=index, identity=identity)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "earthgpt")


def _measured(
    source: store.RecordSource, prompt_config: PromptConfig, workers: int | None, on_damaged: OnDamaged
) -> tuple[LengthIndex, int]:
    """The index, and how many records are missing in it."""
    starts = range(0, len(source), _CHUNK)
    parts, missing = [], 0
    with tqdm(total=len(source), desc=f"{source.name}: lengths", unit="record", leave=False) as bar:
        task = functools.partial(_chunk, source.directory, source.split, prompt_config, on_damaged)
        for part, lost in parallel_map(task, starts, workers=workers):
            parts.append(part)
            missing += lost
            bar.update(len(part.digests))
    return concatenate_indexes(parts or [measure_lengths([], prompt_config=prompt_config)]), missing


@functools.lru_cache(maxsize=2)
def _source(directory: Path, split: str) -> store.RecordSource:
    """Once a process, since opening shards takes longer than reading a chunk."""
    return store.RecordSource(directory, split)


def _chunk(
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
    return measure_lengths(
        records, prompt_config=prompt_config, annotated=source.annotated, start=start
    ), records.count(None)


def _read(path: Path, identity: Mapping[str, Any], *, records: int) -> LengthIndex | None:
    """None where there is no such file, or it is not what its name says."""
    try:
        with np.load(path) as file:
            found = dict(file)
        if json.loads(str(found.pop("identity"))) != identity:
            raise ValueError("it is of other questions")
        index = LengthIndex(kinds=tuple(identity["kinds"]), **found)
        by_record, by_question = ("digests", "sensors"), ("kind", "index", "tokens")
        if any(len(getattr(index, column)) != records for column in by_record) or any(
            len(getattr(index, column)) != len(index) for column in by_question
        ):
            raise ValueError("it is of other records")
        return index
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("%s is damaged (%s); computing it anew", path, error)
        return None


def _write(places: tuple[Path, ...], name: str, index: LengthIndex, identity: Mapping[str, Any]) -> None:
    """In the first place that takes it."""
    arrays: dict[str, Any] = {"identity": np.array(json.dumps(identity)), **index.arrays()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    reasons = []
    for place in places:
        try:
            with files.explain_write_errors(place):
                place.mkdir(parents=True, exist_ok=True)
            files.write_output(place / name, buffer.getvalue())
        except EarthGPTError as error:
            reasons.append(str(error))
        else:
            _prune(place, name)
            return
    _log.warning("lengths of questions are not kept, and will be computed again: %s", "; ".join(reasons))


def _prune(place: Path, name: str) -> None:
    """Deletes the oldest files of the same split above `KEPT`."""
    split = name.rpartition("-")[0]
    with contextlib.suppress(FileNotFoundError):  # another process does so, too
        files = [path for path in place.iterdir() if re.fullmatch(re.escape(split) + r"-[0-9a-f]{16}\.npz", path.name)]
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            path.unlink()
