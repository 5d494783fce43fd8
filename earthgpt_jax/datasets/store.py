"""Records in ArrayRecord shards, written and read through TFDS, without TensorFlow.

A finished dataset directory holds what TFDS writes (`tfds.builder_from_directory` opens it),
`manifest.json` (counts, fingerprint, sha256 and size of every shard), `quarantine.jsonl` (what could not be
used, with its reason), `digests.npz` (which records hold the same image) and, of native files,
`inputs.sha256`. It appears under its name only when it is complete. What is added later (an audit's `looks.npz`,
`leaks.jsonl` and verdict in the manifest; `lengths-*.npz`) changes neither records nor fingerprint.

Datasets in a folder are read together, and then no image of an evaluation split is trained on: see
`open_source`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.decode import DeserializeMethod

from earthgpt_jax.common.digests import fingerprint, sha256
from earthgpt_jax.common.errors import DamagedRecordError, EarthGPTError
from earthgpt_jax.common.parallel import LocalEngine
from earthgpt_jax.datasets import image_digests as digests
from earthgpt_jax.datasets.annotated_classes import annotated
from earthgpt_jax.datasets.build import chunks, shards
from earthgpt_jax.datasets.build.shards import MANIFEST, QUARANTINE
from earthgpt_jax.datasets.cards import Role
from earthgpt_jax.datasets.examples import VERSION, to_record
from earthgpt_jax.datasets.overlap import matches
from earthgpt_jax.records import AnnotatedClasses, Record, Task

__all__ = [
    "MANIFEST", "QUARANTINE", "VERSION",
    "RecordSource", "Together", "amend", "image_digests", "manifest", "open_source", "replace", "write", "writing",
]  # fmt: skip

_log = logging.getLogger(__name__)
_SHOWN = 5  # shards of a message


def write(
    splits: Mapping[str, Sequence[Record] | Iterable[Record]],
    *,
    out: Path,
    name: str,
    manifest: Mapping[str, Any] | None = None,
    quarantine: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Writes a dataset directory; `out` must not exist, and exists only once everything is in it.

    Args:
        splits: split name -> records, in the order they shall have.
        name: the source's name.
        manifest: more to be said in manifest.json (origin, counts of what was dropped).
        quarantine: one mapping an entry, evaluated after the records were drawn.

    Raises:
        EarthGPTError: `out` exists, the place is not writable, or the disk is full.
    """
    if out.exists():
        raise EarthGPTError(f"{out} exists already; name another folder, or delete it to build it anew")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that builds at the same time cannot mix; the dataset is nested deeper than the
        # search for datasets looks, so that what a killed build leaves is never taken for one.
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as partial:
            work = Path(partial)
            index, examples = chunks.Index(), work / "examples"
            with examples.open("wb") as file:
                for split, records in splits.items():
                    for record in records:
                        chunks.add(index, record, split=split, digest=digests.digest(record.image), write=file.write)
            shards.finish(
                work,
                [(examples, index)],
                engine=LocalEngine(1),
                out=out,
                name=name,
                manifest=manifest or {},
                quarantine=quarantine,
                order=tuple(splits),
            )


@contextlib.contextmanager
def writing(out: Path, *, left: str = "nothing was left behind") -> Iterator[None]:
    """Makes what the file system refuses an EarthGPTError about `out`, which says what was `left` behind."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # ArrayRecord's writer says it in words only.
        full = os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error)
        if full:
            reason, remedy = "the disk is full", "free some space, or choose another place"
        elif isinstance(error, RuntimeError):
            raise
        else:
            reason = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
            remedy = "choose another place, or see to this one's rights"
        raise EarthGPTError(f"writing {out}: {reason}; {left}. Please {remedy}") from error


def manifest(directory: Path) -> dict[str, Any]:
    """What manifest.json says.

    Raises:
        EarthGPTError: `directory` is no dataset, is damaged, or an earlier version wrote it.
    """
    path = directory / MANIFEST
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise EarthGPTError(
            f"data {directory}: expected a folder that `earthgpt data build` finished (it has {MANIFEST}); "
            + ("this is something else" if directory.exists() else "there is no such folder")
        ) from None
    except ValueError as error:
        raise EarthGPTError(f"{path} is damaged ({error}); build the folder anew") from error
    written = values.get("version", "1.0.0")
    if written.split(".")[0] != VERSION.split(".")[0]:
        raise EarthGPTError(
            f"data {directory}: expected records of version {VERSION}, got {written}: it was built by an earlier "
            "version. Delete the folder and build it anew"
        )
    return values


def amend(directory: Path, **values: Any) -> None:
    """Says more in manifest.json, at once or not at all; the fingerprint stays."""
    content = json.dumps(manifest(directory) | values, indent=1) + "\n"
    replace(directory / MANIFEST, content.encode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file so that it is whole whenever it is there.

    Raises:
        EarthGPTError: the place is not writable, or the disk is full.
    """
    with writing(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as place:
        partial = Path(place, path.name)
        partial.write_bytes(content)
        os.replace(partial, path)


def image_digests(directory: Path) -> dict[str, np.ndarray]:
    """Split -> u64[records], in the order of the records; equal where the images are.

    Raises:
        EarthGPTError: `directory` is no dataset, was built before there were digests, or is damaged.
    """
    counts = manifest(directory)["counts"]
    return digests.read(directory, {split: kinds["total"].get("records", 0) for split, kinds in counts.items()})


class RecordSource(Sequence[Record]):
    """Random access to one split; opens lazily and pickles, so worker processes can hold it.

    A process that has read a record must not fork workers: reading in the child crashes or hangs (array_record 0.8.6).

    Attributes:
        directory, split: as given.
        name: the dataset's.
        fingerprint: of the dataset and the split.

    Raises:
        EarthGPTError: not a finished dataset directory, no such split, or a shard of it is missing or has another
            size than when it was built.
        DamagedRecordError: on reading a record whose ArrayRecord checksum fails (ArrayRecord checks every record, its
            header, and the shard's index of records). `earthgpt data check` finds shards that were swapped as a whole.
    """

    def __init__(self, directory: Path, split: str):
        self.directory, self.split = Path(directory), split
        values = manifest(self.directory)
        if split not in values["counts"]:
            raise EarthGPTError(f"data {directory}: no split {split!r}; it has {', '.join(values['counts']) or 'none'}")
        self.name: str = values["name"]
        self.fingerprint: str = f"{values['fingerprint']}/{split}"
        self._length: int = values["counts"][split]["total"].get("records", 0)
        self._shards = shards.of_split(values["shards"], split)
        self._opened: _Opened | None = None
        _check_files(self.directory, self._shards, values.get("sizes", {}))

    @functools.cached_property
    def annotated(self) -> AnnotatedClasses:
        """The classes that the dataset annotates."""
        return annotated(manifest(self.directory))

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
        except (RuntimeError, ValueError, IndexError, OSError) as error:  # IndexError would end an iteration silently
            raise self._damaged(number, " ".join(str(error).split())) from error
        if not data:  # of a shard cut to a certain length, instead of an error
            raise self._damaged(number, "nothing comes back; the shard is cut short")
        return to_record(data)

    def _open(self) -> _Opened:
        try:
            builder = tfds.builder_from_directory(str(self.directory))
            lengths = list(builder.info.splits[self.split].shard_lengths)
            examples = builder.as_data_source(self.split, deserialize_method=DeserializeMethod.RAW_BYTES)
        except Exception as error:  # whatever TFDS, json and protobuf make of a damaged description
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise EarthGPTError(
                f"data {self.directory}: TFDS cannot open it ({text}); build the folder anew"
            ) from error
        if sum(lengths) != self._length or len(lengths) != len(self._shards):
            raise EarthGPTError(
                f"data {self.directory}, split {self.split!r}: {MANIFEST} says {self._length} records in "
                f"{len(self._shards)} shards, dataset_info.json {sum(lengths)} in {len(lengths)}; build the folder anew"
            )
        return _Opened(examples, np.cumsum(lengths))

    def _damaged(self, number: int, reason: str) -> DamagedRecordError:
        assert self._opened is not None
        shard = self._shards[int(np.searchsorted(self._opened.ends, number, side="right"))]
        return DamagedRecordError(
            f"{self.directory / shard}: record {number} of split {self.split!r} cannot be read: {reason}. "
            f"`earthgpt data check {self.directory}` names every damaged shard; copy or build them anew, or leave "
            "damaged records out with --config.data.on_damaged=skip"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


class _Opened(NamedTuple):
    """Examples as bytes, and the number behind the last record of each shard."""

    examples: Sequence[bytes]
    ends: np.ndarray


def _check_files(directory: Path, names: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Raises EarthGPTError if a shard is missing, or has not its size where that is known."""
    wrong = []
    for name in names:
        try:
            size = (directory / name).stat().st_size
        except OSError as error:
            wrong.append(f"{name}: expected a file, got {error.strerror}")
            continue
        if size != sizes.get(name, size):
            wrong.append(f"{name}: expected {sizes[name]} bytes, got {size}")
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise EarthGPTError(
            f"data {directory}: {shown}. `earthgpt data check {directory}` compares all shards; copy or build them anew"
        )


def open_source(directory: Path, split: str, *, tasks: Collection[Task] = ()) -> Together:
    """A dataset directory, or every one in a folder of them, as one sequence of records.

    Datasets without the split, without images, or with nothing for `tasks` (where given) are left out.
    Of several datasets' training records, those are left out (and counted in a warning) whose image is in an
    evaluation split of any dataset of the folder, whatever its tasks: the same file, and where an audit was run
    (`datasets.overlap.audit`) the same pixels, and near copies of another dataset's images. Datasets whose card says
    `zero_shot` are not trained on beside others. A dataset alone keeps its published splits, and evaluation splits
    are always whole.

    Raises:
        EarthGPTError: nothing is left; says what was looked at. Or a dataset among several has no digests.
    """
    folders = [directory] if (directory / MANIFEST).exists() or not directory.is_dir() else sorted(
        path.parent for path in directory.glob(f"*/{MANIFEST}")
    )  # fmt: skip
    guarded = split == digests.TRAIN and len(folders) > 1
    held_out = _held_out(folders) if guarded else [None] * len(folders)
    chosen, passed = [], []
    for folder, leaked in zip(folders, held_out, strict=True):
        values = manifest(folder)
        if guarded and values.get("card", {}).get("role") == Role.ZERO_SHOT:
            _log.warning("data %s: not trained on, as its card says zero_shot; name it alone to do so", folder)
            passed.append(folder.name)
            continue
        counts = values["counts"].get(split, {})
        usable = counts.get("task", {}).keys() & {str(task) for task in tasks or Task}
        source = RecordSource(folder, split) if usable else None
        if source is not None and _has_images(source):
            chosen.append((source, np.zeros(len(source), bool) if leaked is None else leaked))
        else:
            passed.append(folder.name)
    if not chosen:
        raise EarthGPTError(
            f"data {directory}: no dataset with images, a split {split!r} and one of the tasks "
            f"{', '.join(map(str, tasks or Task))}; looked at {', '.join(passed) or 'no dataset at all'}. "
            "`earthgpt data build` makes them, `earthgpt data stats` tells what they hold."
        )
    if told := ", ".join(f"{source.name} {leaked.sum()} of {len(source)}" for source, leaked in chosen if leaked.any()):
        _log.warning("data %s: left out of training, as evaluation splits hold the same images: %s", directory, told)
    sources, left_out = zip(*chosen, strict=True)
    together = Together(sources, left_out=np.concatenate(left_out))
    if not len(together):
        raise EarthGPTError(
            f"data {directory}: all its training images are in evaluation splits too; put fewer datasets together"
        )
    return together


def _has_images(source: RecordSource) -> bool:
    """Whether images ship, as the first record that can be read tells; what to do about the others is the reader's."""
    for record in range(len(source)):
        with contextlib.suppress(DamagedRecordError):
            return bool(source[record].image)
    return len(source) > 0


def _held_out(folders: Sequence[Path]) -> list[np.ndarray]:
    """bool[training records] a folder: is the image in an evaluation split of any of them?"""
    manifests = [manifest(folder) for folder in folders]
    beside = {values["name"]: values["fingerprint"] for values in manifests}
    same = digests.leaks([image_digests(folder) for folder in folders])
    return [
        files | matches.held_out_mask(folder, values, beside=beside, split=digests.TRAIN) if len(files) else files
        for folder, values, files in zip(folders, manifests, same, strict=True)
    ]


class Together(Sequence[Record]):
    """Several sources one behind the other, as one.

    Args:
        left_out: bool[records of all sources], True for those that shall not occur; none, if not given.
    """

    def __init__(self, sources: Sequence[RecordSource], *, left_out: np.ndarray | None = None):
        self._sources = list(sources)
        self._starts = np.cumsum([0, *map(len, self._sources)])
        everything = int(self._starts[-1])
        self._rows = np.arange(everything) if left_out is None else np.flatnonzero(~left_out)
        self.name = ", ".join(source.name for source in self._sources)
        prints = [source.fingerprint for source in self._sources]
        if len(self._rows) < everything:  # only then: runs on whole datasets resume as ever
            prints.append(sha256(self._rows.astype("<i8").tobytes()))
        joined = fingerprint("|".join(prints))
        self.fingerprint = prints[0] if len(prints) == 1 else joined

    @property
    def annotated(self) -> dict[str, AnnotatedClasses]:
        """Source -> the classes that it annotates."""
        return {source.name: source.annotated for source in self._sources}

    def parts(self) -> Iterator[tuple[RecordSource, np.ndarray]]:
        """Each source, and the numbers of its records that occur, i64[n] in their order."""
        for source, start in zip(self._sources, self._starts.tolist(), strict=False):
            first, last = np.searchsorted(self._rows, (start, start + len(source)))
            yield source, self._rows[first:last] - start

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = int(self._rows[index])
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sources[which][row - int(self._starts[which])]
