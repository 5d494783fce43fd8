"""A build in pieces: a batch of native units, a file, becomes a chunk of finished examples, a file.

A job's name holds a digest of all that its chunk depends on (units, card, the stamps of the image files,
versions), so that a build that goes on takes what is finished and does anew what has changed. A chunk is two
files, `.examples` and `.index`; the index is put under its name last, and only then is the chunk finished.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.files import atomic_open, write_bytes
from earthgpt_jax.datasets import image_digests
from earthgpt_jax.datasets.build import tiling
from earthgpt_jax.datasets.build.counts import COUNTED_KINDS, BuildCounts, RecordCounts, count_items
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.examples import serialize_record
from earthgpt_jax.datasets.readers import Event, Native, PairedEntry, Rejected, validate_entry
from earthgpt_jax.records import Record
from earthgpt_jax.synthetic import SyntheticSource

Read = Callable[[Path], bytes]
FileState = tuple[int, int, int]


class Job(Protocol):
    """Work that gives the same result in any process."""

    def events(self, read: Read, tally: BuildCounts) -> Iterator[tuple[Event, Iterable[Record]]]:
        """Every event, counted in `tally`, and the records that are stored for it."""

    def __len__(self) -> int:
        """How many units it has, more or less."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeJob:
    """Some of the items of `readers.plan`, in their order.

    Attributes:
        stamps: of all images, as `stamp` gives them; only to tell whether one has changed.
    """

    card: Card
    items: tuple[PairedEntry | Event, ...]
    stamps: tuple[FileState, ...] = ()

    def events(self, read: Read, tally: BuildCounts) -> Iterator[tuple[Event, Iterable[Record]]]:
        for item in self.items:
            if not isinstance(item, PairedEntry):
                tally.add(item)
                yield item, ()
                continue
            for event in validate_entry(item, self.card, read=read):
                tally.add(event)
                yield event, self._stored(event, tally) if isinstance(event, Record) else ()

    def __len__(self) -> int:
        return len(self.items)

    def _stored(self, record: Record, tally: BuildCounts) -> Iterable[Record]:
        return tiling.cut_into_tiles(record, self.card.tile, counter=tally.tiles) if self.card.tile else (record,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticJob:
    """The records `start` to `stop` of a split of the synthetic source."""

    source: SyntheticSource
    start: int
    stop: int

    def events(self, read: Read, tally: BuildCounts) -> Iterator[tuple[Event, Iterable[Record]]]:
        for index in range(self.start, self.stop):
            record = self.source[index]
            for kind, count in zip(COUNTED_KINDS, count_items(record), strict=True):
                tally.add(Native(item_type=kind, count=count))
            tally.add(record)
            yield record, (record,)

    def __len__(self) -> int:
        return self.stop - self.start


def file_state(path: Path) -> FileState:
    """(bytes, time of change, time of change of its rights or name) of a file; zeros if it cannot be asked."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def write_job(folder: Path, index: int, batch: Job, *, salt: str) -> Path:
    """Writes a batch as `folder/<index>-<digest>.job`; the name sorts by index."""
    data = pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL)
    path = folder / f"{index:07d}-{sha256(salt, data)[:20]}.job"
    write_bytes(path, data, durable=True)
    return path


@dataclasses.dataclass
class ChunkSplit:
    """What a chunk holds of one split: where its examples lie, the digests of their images, what is in them."""

    starts: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    sizes: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    digests: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    holdings: RecordCounts = dataclasses.field(default_factory=RecordCounts)


@dataclasses.dataclass
class ChunkIndex:
    """All that is known of a chunk beside its examples.

    Attributes:
        size: bytes of the file of examples.
        parts: by split.
        rejected: rows of the quarantine file.
        inputs: image file -> sha256 of its bytes, as they were read.
    """

    size: int = 0
    parts: dict[str, ChunkSplit] = dataclasses.field(default_factory=lambda: collections.defaultdict(ChunkSplit))
    tally: BuildCounts = dataclasses.field(default_factory=BuildCounts)
    rejected: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    inputs: dict[Path, str] = dataclasses.field(default_factory=dict)


def examples_file(job: Path) -> Path:
    return job.with_suffix(".examples")


def read_index(job: Path) -> ChunkIndex | None:
    """Of a job's chunk; None if the chunk is not finished."""
    try:
        found = pickle.loads(job.with_suffix(".index").read_bytes())
        return found if examples_file(job).stat().st_size == found.size else None
    except FileNotFoundError:
        return None


def run_job(job: Path) -> None:
    """Makes a job's chunk; does nothing if it is finished.

    Raises:
        OSError: it cannot be written.
        EarthGPTError: the card does not fit what was read.
    """
    if read_index(job) is not None:
        return
    batch: Job = pickle.loads(job.read_bytes())
    hasher = _Hasher()
    with atomic_open(examples_file(job), durable=True) as file:
        made = _write(batch, hasher, file.write)
    made.inputs = hasher.sums
    write_bytes(job.with_suffix(".index"), pickle.dumps(made, protocol=pickle.HIGHEST_PROTOCOL), durable=True)


def _write(batch: Job, hasher: _Hasher, write: Callable[[bytes], Any]) -> ChunkIndex:
    made = ChunkIndex()
    for event, records in batch.events(hasher.read, made.tally):
        if isinstance(event, Rejected):
            made.rejected.append({**dataclasses.asdict(event), "item_type": event.item_type.value})
        # Of the native image, also for its tiles: whoever has the image has what is in them.
        digest = hasher.digest(event.image) if isinstance(event, Record) else image_digests.NO_IMAGE
        for record in records:
            append_record(made, record, split=record.split, digest=digest, write=write)
    made.parts = dict(made.parts)
    return made


def append_record(made: ChunkIndex, record: Record, *, split: str, digest: int, write: Callable[[bytes], Any]) -> None:
    """Writes a record behind the others of a chunk."""
    data = serialize_record(record)
    write(data)
    part = made.parts[split]
    part.starts.append(made.size)
    part.sizes.append(len(data))
    part.digests.append(digest)
    part.holdings.add(record)
    made.size += len(data)


class _Hasher:
    """Hashes files as they are read, so that nothing is read twice for it."""

    def __init__(self) -> None:
        self.sums: dict[Path, str] = {}
        self._last: tuple[bytes, str] = (b"", "")

    def read(self, path: Path) -> bytes:
        data = path.read_bytes()
        self.sums[path] = sha256(data)
        self._last = data, self.sums[path]
        return data

    def digest(self, image: bytes) -> int:
        """As `digests.digest`; of an image that was just read it is known already."""
        data, known = self._last
        return (
            image_digests.truncate_sha256(bytes.fromhex(known))
            if data and image is data
            else image_digests.image_digest(image)
        )
