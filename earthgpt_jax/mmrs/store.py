"""Records in ArrayRecord shards, written and read through TFDS, without TensorFlow.

A finished dataset directory holds what TFDS writes (`tfds.builder_from_directory` opens it),
`manifest.json` (counts, fingerprint, sha256 of every shard), `quarantine.jsonl` (what could not be
used, with its reason) and `digests.npz` (which records hold the same image). It appears under its name
only when it is complete. What an audit adds later (`looks.npz`, `leaks.jsonl`, a verdict in the manifest)
changes neither records nor fingerprint.

Datasets in a folder are read together, and then no image of an evaluation split is trained on: see
`open_source`.
"""

from __future__ import annotations

import array
import collections
import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.mmrs import digests, leaks
from earthgpt_jax.mmrs.annotated import annotated
from earthgpt_jax.mmrs.examples import FEATURES, to_example, to_record
from earthgpt_jax.mmrs.record import Annotated, Record, Task

VERSION = "1.0.0"
MANIFEST, QUARANTINE = "manifest.json", "quarantine.jsonl"
_log = logging.getLogger(__name__)


class _StableWriter(ExampleWriter):
    """Writes each example's features in the order of their names.

    TFDS leaves that order to protobuf's hash map, so the same records would give other bytes, and with
    them another fingerprint, in every process.
    """

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        example = tf_example_pb2.Example
        return super().write(
            path, ((key, example.FromString(data).SerializeToString(deterministic=True)) for key, data in examples)
        )


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Records of one source; the name comes with the instance, since one class serves every source."""

    VERSION = tfds.core.Version(VERSION)
    name = "earthgpt_records"

    def __init__(self, *, splits: Mapping[str, Iterable[Record]], **kwargs: Any):
        self._splits = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Records of remote sensing images with everything known of them.",
            features=tfds.features.FeaturesDict(FEATURES),
            disable_shuffling=True,  # the sources' own order; the input pipeline shuffles
        )

    def _example_writer(self) -> _StableWriter:
        return _StableWriter(self.info.file_format)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(records) for split, records in self._splits.items()}

    def _generate_examples(self, records: Iterable[Record]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, record in enumerate(records):
            yield key, to_example(record)


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
    counts: dict[str, dict[str, collections.Counter]] = {}
    images: dict[str, array.array] = {}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that builds at the same time cannot mix; TFDS nests the files deeper than the
        # search for datasets looks, so that what a killed build leaves is never taken for one.
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as partial, _quiet():
            builder = _Builder(
                splits={split: _counting(records, split, counts, images) for split, records in splits.items()},
                data_dir=partial,
                file_format="array_record",
            )
            builder.download_and_prepare()
            written = Path(builder.data_dir)
            (written / QUARANTINE).write_text("".join(json.dumps(entry) + "\n" for entry in quarantine))
            digests.write(written, images)
            shards = {path.name: _sha256(path) for path in sorted(written.glob("*.array_record*"))}
            by_split = {s: {kind: dict(sorted(c.items())) for kind, c in k.items()} for s, k in counts.items()}
            values = {
                "name": name,
                "fingerprint": hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()[:16],
                "counts": by_split,
                "shards": shards,
                "tfds": tfds.__version__,
                **(manifest or {}),
            }
            (written / MANIFEST).write_text(json.dumps(values, indent=1) + "\n")
            os.replace(written, out)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Makes what the file system refuses an EarthGPTError about `out`."""
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
        raise EarthGPTError(f"writing {out}: {reason}; nothing was left behind. Please {remedy}") from error


def _counting(records: Iterable[Record], split: str, counts: dict, images: dict) -> Iterator[Record]:
    """Passes records on, counts what is in them, and takes the digests of their images."""
    taken = images.setdefault(split, array.array("Q"))
    tally = counts.setdefault(
        split, {kind: collections.Counter() for kind in ("total", "sensor", "task", "label", "object", "holding")}
    )
    for record in records:
        tally["total"].update(
            records=1, objects=len(record.objects), turns=len(record.turns), references=len(record.references)
        )
        tally["sensor"][record.sensor.value] += 1
        tally["task"].update(task.value for task in record.tasks)
        if record.label:
            tally["label"][record.label] += 1
        tally["object"].update(item.label for item in record.objects)
        tally["holding"].update({item.label for item in record.objects})  # records, not objects
        taken.append(digests.digest(record.image))
        yield record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS announces every step; builds have their own progress bar."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def manifest(directory: Path) -> dict[str, Any]:
    """What manifest.json says."""
    path = directory / MANIFEST
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise EarthGPTError(
            f"data {directory}: expected a folder that `earthgpt data build` finished (it has {MANIFEST}); "
            + ("this is something else" if directory.exists() else "there is no such folder")
        ) from None
    except ValueError as error:
        raise EarthGPTError(f"{path} is damaged ({error}); build the folder anew") from error


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

    Raises:
        EarthGPTError: not a finished dataset directory, or no such split.
    """

    def __init__(self, directory: Path, split: str):
        self._directory, self._split = Path(directory), split
        values = manifest(self._directory)
        if split not in values["counts"]:
            raise EarthGPTError(f"data {directory}: no split {split!r}; it has {', '.join(values['counts']) or 'none'}")
        self.name: str = values["name"]
        self.fingerprint: str = f"{values['fingerprint']}/{split}"
        self._length: int = values["counts"][split]["total"].get("records", 0)
        self._source: Any = None

    @functools.cached_property
    def annotated(self) -> Annotated:
        """The classes that the dataset annotates."""
        rows = (self._directory / QUARANTINE).read_text().splitlines()
        return annotated(manifest(self._directory), map(json.loads, rows))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        if self._source is None:
            self._source = tfds.builder_from_directory(str(self._directory)).as_data_source(split=self._split)
        return to_record(self._source[int(index) % self._length])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}


def open_source(directory: Path, split: str, *, tasks: Collection[Task] = ()) -> Together:
    """A dataset directory, or every one in a folder of them, as one sequence of records.

    Datasets without the split, without images, or with nothing for `tasks` (where given) are left out.
    Of several datasets' training records, those are left out (and counted in a warning) whose image is in an
    evaluation split of any dataset of the folder, whatever its tasks: the same file, and where an audit was run
    (`mmrs.audit`) the same pixels, and near copies of another dataset's images. A dataset alone keeps its
    published splits, and evaluation splits are always whole.

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
        counts = manifest(folder)["counts"].get(split, {})
        usable = counts.get("task", {}).keys() & {str(task) for task in tasks or Task}
        source = RecordSource(folder, split) if usable else None
        if source is not None and len(source) and source[0].image:
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


def _held_out(folders: Sequence[Path]) -> list[np.ndarray]:
    """bool[training records] a folder: is the image in an evaluation split of any of them?"""
    manifests = [manifest(folder) for folder in folders]
    beside = {values["name"]: values["fingerprint"] for values in manifests}
    same = digests.leaks([image_digests(folder) for folder in folders])
    return [
        files | leaks.held_out(folder, values, beside=beside, split=digests.TRAIN) if len(files) else files
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
            prints.append(hashlib.sha256(self._rows.astype("<i8").tobytes()).hexdigest())
        joined = hashlib.sha256("|".join(prints).encode()).hexdigest()[:16]
        self.fingerprint = prints[0] if len(prints) == 1 else joined

    @property
    def annotated(self) -> dict[str, Annotated]:
        """Source -> the classes that it annotates."""
        return {source.name: source.annotated for source in self._sources}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = int(self._rows[index])
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sources[which][row - int(self._starts[which])]
