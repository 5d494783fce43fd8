"""The first half of a build: turn a job (a batch of native entries) into a chunk (a file of serialised records).

Jobs and chunks are files in the work folder of a build, so that any process, here or on a cluster, can run a job:

    0000003-5d41402abc4b2a76b971.job        the pickled job
    0000003-5d41402abc4b2a76b971.examples   its records, one after the other
    0000003-5d41402abc4b2a76b971.index      where each record begins, counts, rejected items

The name of a job contains a digest of everything that its chunk depends on: the entries, the card, the state of the
image files, versions. A build that resumes therefore keeps the chunks that are still valid and makes the others again.
The index is written last; a chunk without an index is not finished.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import atomic_open, write_bytes
from earthgpt_jax.common.parallel import Engine
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.datasets import image_digests
from earthgpt_jax.datasets.build import tiling
from earthgpt_jax.datasets.build.counts import COUNTED_TYPES, BuildCounts, RecordCounts, count_items
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.examples import serialize_record
from earthgpt_jax.datasets.readers import Event, Native, PairedEntry, Rejected, validate_entry
from earthgpt_jax.records import Record
from earthgpt_jax.synthetic import SyntheticSource

ReadFile = Callable[[Path], bytes]
FileState = tuple[int, int, int]


class Job(Protocol):
    """A part of a dataset. It gives the same records in any process."""

    def events(self, read_file: ReadFile, counts: BuildCounts) -> Iterator[tuple[Event, Iterable[Record]]]:
        """Yield each event, after counting it in `counts`, with the records to store for it."""

    def __len__(self) -> int:
        """Return the approximate number of images, for a progress bar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeJob:
    """Consecutive items of `readers.pair_entries`.

    Attributes:
        items: the entries, and the events that were already known without looking at the images.
        image_states: `file_state` of all images; a job with a changed image has another digest.
    """

    card: Card
    items: tuple[PairedEntry | Event, ...]
    image_states: tuple[FileState, ...] = ()

    def events(self, read_file: ReadFile, counts: BuildCounts) -> Iterator[tuple[Event, Iterable[Record]]]:
        for item in self.items:
            if not isinstance(item, PairedEntry):
                counts.add(item)
                yield item, ()
                continue
            for event in validate_entry(item, self.card, read=read_file):
                counts.add(event)
                yield event, self._stored(event, counts) if isinstance(event, Record) else ()

    def __len__(self) -> int:
        return len(self.items)

    def _stored(self, record: Record, counts: BuildCounts) -> Iterable[Record]:
        return tiling.cut_into_tiles(record, self.card.tile, counter=counts.tiles) if self.card.tile else (record,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticJob:
    """Records `start` to `stop` (exclusive) of one split of the synthetic dataset."""

    source: SyntheticSource
    start: int
    stop: int

    def events(self, read_file: ReadFile, counts: BuildCounts) -> Iterator[tuple[Event, Iterable[Record]]]:
        for index in range(self.start, self.stop):
            record = self.source[index]
            for item_type, count in zip(COUNTED_TYPES, count_items(record), strict=True):
                counts.add(Native(item_type=item_type, count=count))
            counts.add(record)
            yield record, (record,)

    def __len__(self) -> int:
        return self.stop - self.start


def file_state(path: Path) -> FileState:
    """Return size, modification time and status change time (both in ns) of a file, zeros if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def write_job(folder: Path, index: int, job: Job, *, settings: str) -> Path:
    """Write a job as `folder/<index>-<digest>.job` and return that path; the names sort by index.

    Args:
        settings: digest of what else the chunk depends on, such as the card and the versions of libraries.
    """
    data = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
    path = folder / f"{index:07d}-{sha256(settings, data)[:20]}.job"
    write_bytes(path, data, durable=True)
    return path


@dataclasses.dataclass
class ChunkSplit:
    """The records of one split in a chunk.

    Attributes:
        starts, sizes: position of each record in the file of examples, and its size, in bytes.
        digests: the image digest of each record.
        counts: counts of the records.
    """

    starts: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    sizes: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    digests: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    counts: RecordCounts = dataclasses.field(default_factory=RecordCounts)


@dataclasses.dataclass
class ChunkIndex:
    """What a chunk contains, apart from the records themselves.

    Attributes:
        size: size of the file of examples in bytes.
        splits: the chunk's records by split.
        counts: counts of the native items.
        rejected: lines of quarantine.jsonl.
        image_sums: sha256 of each image file that was read.
    """

    size: int = 0
    splits: dict[str, ChunkSplit] = dataclasses.field(default_factory=lambda: collections.defaultdict(ChunkSplit))
    counts: BuildCounts = dataclasses.field(default_factory=BuildCounts)
    rejected: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    image_sums: dict[Path, str] = dataclasses.field(default_factory=dict)

    def append(self, record: Record, *, split: str, digest: int, file: BinaryIO) -> None:
        """Write a record to the end of the file of examples and add it to the index.

        Args:
            digest: the image digest to store for the record.
        """
        data = serialize_record(record)
        file.write(data)
        part = self.splits[split]
        part.starts.append(self.size)
        part.sizes.append(len(data))
        part.digests.append(digest)
        part.counts.add(record)
        self.size += len(data)


def examples_path(job: Path) -> Path:
    """Return the path of the serialised records of a job."""
    return job.with_suffix(".examples")


def read_index(job: Path) -> ChunkIndex | None:
    """Return the index of a job's chunk, or None if the chunk is not finished."""
    try:
        index = pickle.loads(job.with_suffix(".index").read_bytes())
        return index if examples_path(job).stat().st_size == index.size else None
    except FileNotFoundError:
        return None


def run_job(job: Path) -> None:
    """Make the chunk of a job, unless it is finished.

    Raises:
        OSError: the chunk cannot be written.
        EarthGPTError: the card contradicts the native files.
    """
    if read_index(job) is not None:
        return
    content: Job = pickle.loads(job.read_bytes())
    hasher = _ImageHasher()
    with atomic_open(examples_path(job), durable=True) as file:
        index = _write_examples(content, hasher, file)
    index.image_sums = hasher.sums
    write_bytes(job.with_suffix(".index"), pickle.dumps(index, protocol=pickle.HIGHEST_PROTOCOL), durable=True)


def _write_examples(job: Job, hasher: _ImageHasher, file: BinaryIO) -> ChunkIndex:
    index = ChunkIndex()
    for event, records in job.events(hasher.read, index.counts):
        if isinstance(event, Rejected):
            index.rejected.append({**dataclasses.asdict(event), "item_type": event.item_type.value})
        # Tiles get the digest of their scene, so that they count as overlap where another dataset has the scene.
        digest = hasher.image_digest(event.image) if isinstance(event, Record) else image_digests.NO_IMAGE
        for record in records:
            index.append(record, split=record.split, digest=digest, file=file)
    index.splits = dict(index.splits)
    return index


class _ImageHasher:
    """Read image files and keep their sha256, so that no file is read or hashed twice."""

    def __init__(self) -> None:
        self.sums: dict[Path, str] = {}
        self._last: tuple[bytes, str] = (b"", "")

    def read(self, path: Path) -> bytes:
        data = path.read_bytes()
        self.sums[path] = sha256(data)
        self._last = data, self.sums[path]
        return data

    def image_digest(self, image: bytes) -> int:
        """Return `image_digests.image_digest(image)`, from the known sha256 if the image was just read."""
        data, known = self._last
        if data and image is data:
            return image_digests.truncate_sha256(bytes.fromhex(known))
        return image_digests.image_digest(image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedChunks:
    """All chunks of a dataset, in the order of the native files.

    Attributes:
        jobs: the job files, in order.
        counts: the counts of all chunks together.
        image_sums: sha256 of each image file that was read.
    """

    jobs: Sequence[Path]
    counts: BuildCounts
    image_sums: dict[Path, str]

    def __iter__(self) -> Iterator[tuple[Path, ChunkIndex]]:
        """Yield (file of examples, index) of each chunk."""
        for job in self.jobs:
            yield examples_path(job), _finished_index(job)

    def rejected(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of quarantine.jsonl."""
        for _, index in self:
            yield from index.rejected


def make_chunks(jobs: Iterable[Job], folder: Path, *, engine: Engine, settings: str, name: str) -> FinishedChunks:
    """Run all jobs of a dataset whose chunks are not finished.

    Args:
        folder: where jobs and chunks are stored.
        settings: as in `write_job`.
        name: the dataset's name, for the progress bar.
    """
    folder.mkdir(exist_ok=True)
    sizes: dict[Path, int] = {}
    with Bar(desc=f"{name}: annotations", unit="image", leave=False) as bar:
        for number, job in enumerate(jobs):
            sizes[write_job(folder, number, job, settings=settings)] = len(job)
            bar.update(len(job))
    unfinished = [path for path in sizes if read_index(path) is None]
    finished = sum(sizes.values()) - sum(map(sizes.__getitem__, unfinished))
    with Bar(total=sum(sizes.values()), initial=finished, desc=name, unit="image", leave=False) as bar:
        for path in engine.run(run_job, unfinished):
            bar.update(sizes[path])
    counts, image_sums = BuildCounts(), {}
    for path in sizes:
        index = _finished_index(path)
        counts.update(index.counts)
        image_sums.update(index.image_sums)
    return FinishedChunks(jobs=list(sizes), counts=counts, image_sums=image_sums)


def _finished_index(job: Path) -> ChunkIndex:
    index = read_index(job)
    if index is None:
        raise EarthGPTError(f"{job}: its chunk was finished, but has disappeared; run the same command again")
    return index
