"""Read one split of a dataset directory, with random access and without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.decode import DeserializeMethod

from earthgpt_jax.common import files
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import DamagedRecordError, EarthGPTError
from earthgpt_jax.datasets.examples import to_record
from earthgpt_jax.datasets.manifest import MANIFEST, annotated_classes, read_manifest, record_counts, shard_names
from earthgpt_jax.datasets.remote_shards import RemoteExamples
from earthgpt_jax.records import AnnotatedClasses, Record

_MAX_LISTED = 5  # shards that an error message lists


class RecordSource(Sequence[Record]):
    """Random access to the records of one split. Can be pickled, so that worker processes can use it.

    The shards are opened at the first access. A process that has read a record must not fork worker processes:
    reading in a forked child crashes or hangs (array_record 0.8.6). Spawn them.

    Attributes:
        directory, split: the arguments.
        name: the dataset's name.
        fingerprint: identifies the dataset's records and the split.

    Raises:
        EarthGPTError: `directory` is not a dataset directory, it has no such split, or a shard of the split is missing
            or has another size than when it was built.
        DamagedRecordError: on access, a record cannot be read from its shard. ArrayRecord's checksums detect this
            (they cover each record, its header and the shard's index). A shard that was replaced by another valid
            file is only noticed by `earthgpt data check`.
    """

    def __init__(self, directory: Path, split: str):
        self.directory, self.split = files.path(directory), split
        values = read_manifest(self.directory)
        if split not in values["counts"]:
            raise EarthGPTError(f"data {directory}: no split {split!r}; it has {', '.join(values['counts']) or 'none'}")
        self.name: str = values["name"]
        self.fingerprint: str = f"{values['fingerprint']}/{split}"
        self._length: int = record_counts(values)[split]
        self._shards = shard_names(values, split)
        self._opened: _OpenShards | None = None
        self._sizes = _check_files(self.directory, self._shards, values.get("sizes", {}))

    @functools.cached_property
    def annotated(self) -> AnnotatedClasses:
        """The classes that the dataset annotates, and how common each is."""
        return annotated_classes(read_manifest(self.directory))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        if self._opened is None:
            self._opened = self._open()
        number = int(index) % self._length
        try:
            data = self._opened.examples[number]
        except (RuntimeError, ValueError, IndexError, OSError) as error:  # an IndexError would silently end a for loop
            raise self._damaged(number, " ".join(str(error).split())) from error
        if not data:  # ArrayRecord returns this, not an error, for some truncated shards
            raise self._damaged(number, "the record is empty; the shard is truncated")
        return to_record(data)

    def _open(self) -> _OpenShards:
        try:
            with _local_description(self.directory) as folder:
                builder = tfds.builder_from_directory(str(folder))
            lengths = list(builder.info.splits[self.split].shard_lengths)
            if isinstance(self.directory, BucketPath):
                shards = [self.directory / name for name in self._shards]
                examples: Sequence[bytes] = RemoteExamples(shards, lengths=lengths, sizes=self._sizes)
            else:
                examples = builder.as_data_source(self.split, deserialize_method=DeserializeMethod.RAW_BYTES)
        except EarthGPTError:
            raise
        except Exception as error:  # TFDS, json and protobuf raise many types for a damaged description
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise EarthGPTError(
                f"data {self.directory}: TFDS cannot open it ({text}); build the dataset again"
            ) from error
        if sum(lengths) != self._length or len(lengths) != len(self._shards):
            raise EarthGPTError(
                f"data {self.directory}, split {self.split!r}: {MANIFEST} says {self._length} records in "
                f"{len(self._shards)} shards, dataset_info.json {sum(lengths)} in {len(lengths)}; build it again"
            )
        return _OpenShards(examples, np.cumsum(lengths))

    def _damaged(self, number: int, reason: str) -> DamagedRecordError:
        assert self._opened is not None
        shard = self._shards[int(np.searchsorted(self._opened.ends, number, side="right"))]
        return DamagedRecordError(
            f"{self.directory / shard}: record {number} of split {self.split!r} cannot be read: {reason}. "
            f"`earthgpt data check {self.directory}` lists every damaged shard. Copy or build the dataset again, or "
            "skip damaged records with --config.data.on_damaged=skip"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


class _OpenShards(NamedTuple):
    """The serialised examples of a split, and for each shard the index after its last record, i64[shards]."""

    examples: Sequence[bytes]
    ends: np.ndarray


@contextlib.contextmanager
def _local_description(directory: Path) -> Iterator[Path]:
    """Yield a local folder with TFDS's description of a dataset: the directory itself, or copies from a bucket."""
    if not isinstance(directory, BucketPath):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
        for name in ("dataset_info.json", "features.json"):
            files.copy(directory / name, Path(scratch, name))
        yield Path(scratch)


def _check_files(directory: Path, names: Iterable[str], sizes: Mapping[str, int]) -> list[int]:
    """Return the sizes of shards in bytes.

    Raises:
        EarthGPTError: a shard is missing or has another size than the manifest says.
    """
    wrong, found = [], []
    present = files.file_sizes(directory)
    for name in names:
        size = present.get(name)
        found.append(size or 0)
        if size is None:
            wrong.append(f"{name}: expected a file, got none")
        elif size != sizes.get(name, size):
            wrong.append(f"{name}: expected {sizes[name]} bytes, got {size}")
    if wrong:
        shown = "; ".join(wrong[:_MAX_LISTED]) + (
            f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        )
        raise EarthGPTError(
            f"data {directory}: {shown}. `earthgpt data check {directory}` checks all shards; copy or build it again"
        )
    return found
