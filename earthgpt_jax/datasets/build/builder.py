"""Builds dataset directories from native files: one a source, with counts that must add up.

For every kind (image, object, question, caption): native = kept + quarantined + dropped.

A build is three steps, each in files of a hidden work folder beside the dataset: the native annotations become
jobs (here, in order), jobs become chunks of examples (anywhere), chunks become shards (anywhere). Whatever is
finished there is used again by a build that goes on, and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import explain_write_errors
from earthgpt_jax.common.parallel import Engine, LocalEngine
from earthgpt_jax.datasets import image_digests
from earthgpt_jax.datasets.build import chunks, native_files, shards
from earthgpt_jax.datasets.build.counts import BuildCounts
from earthgpt_jax.datasets.build.summary import BuildSummary, DatasetSummary, reason_lines
from earthgpt_jax.datasets.cards import SPLITS, Card, Images
from earthgpt_jax.datasets.manifest import QUARANTINE, read_manifest, record_counts
from earthgpt_jax.datasets.readers import Event, PairedEntry, locate, missing_paths, pair_entries
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource

_READERS_VERSION = 3  # raise it when the same native files give other records
_UNITS, _BYTES = 128, 32 << 20  # of a job: units, or bytes of their images, whichever comes first
MAX_QUARANTINE = 0.1
_LEFT = "finished parts are kept, and the same command resumes there"


def build(
    cards: Sequence[Card],
    *,
    root: Path,
    out: Path,
    engine: Engine | None = None,
    max_quarantine: float = MAX_QUARANTINE,
) -> BuildSummary:
    """Reads every card's dataset below `root` and writes `out/<name>/`.

    Args:
        engine: what judges images and writes shards; none: this process.
        max_quarantine: share of the native units of a kind, from 0 to 1, that may be quarantined.

    Raises:
        EarthGPTError: a dataset is not there, `out/<name>` holds something else or is being built by another
            process, more than `max_quarantine` was quarantined, the place is not writable, or the disk is full.
    """
    if not 0 <= max_quarantine <= 1:
        raise EarthGPTError(f"--max-quarantine: expected a share from 0 to 1, got {max_quarantine}")
    engine = engine or LocalEngine(1)
    return BuildSummary(
        tuple(_build_one(card, root, out / card.name, engine=engine, max_quarantine=max_quarantine) for card in cards)
    )


def build_synthetic(
    splits: Mapping[str, int], *, size: int, seed: int, out: Path, engine: Engine | None = None
) -> BuildSummary:
    """Writes `out/synthetic/` with that many records a split.

    Raises:
        EarthGPTError: an unknown split, nothing to build, or `out/synthetic` holds something else.
    """
    sources = {split: SyntheticSource(split, n, seed=seed, size=size) for split, n in splits.items() if n}
    if not sources:
        raise EarthGPTError("build synthetic: expected at least one record; got none. Raise --count or --splits")
    target = out / SyntheticSource.name
    # A drawn record stands for the code that draws: a changed look is another dataset.
    drawn_first = [(image_digests.image_digest(first.image), first.turns) for first in (s[0] for s in sources.values())]
    origin = native_files.json_digest({"synthetic": dict(splits), "size": size, "seed": seed, "first": drawn_first})
    with explain_write_errors(target, consequence=_LEFT), _work(target) as work:
        if before := _finished(target, lambda _: origin):
            return BuildSummary((before,))
        batches = (
            chunks.SyntheticJob(source=source, start=start, stop=min(start + _UNITS, len(source)))
            for source in sources.values()
            for start in range(0, len(source), _UNITS)
        )
        read = _read(batches, work, engine or LocalEngine(1), salt=origin, name=SyntheticSource.name)
        card = {"name": SyntheticSource.name, "size": size, "seed": seed}
        read.finish(target, name=SyntheticSource.name, manifest={"origin": origin, "card": card})
    return BuildSummary((read.built(SyntheticSource.name),))


def _build_one(card: Card, root: Path, out: Path, *, engine: Engine, max_quarantine: float) -> DatasetSummary:
    base = locate(root, card)  # asked even if `out` is finished: "identical" is a statement about the native files
    _check_tile(card)
    items = pair_entries(root, card)  # says what is missing before anything is made
    described = {"card": card.describe(), "readers": _READERS_VERSION}
    with explain_write_errors(out, consequence=_LEFT), _work(out) as work:
        began = time.time()
        files = native_files.list_files(base, card)
        if before := _finished(
            out, lambda text: native_files.origin(described, files, _current(out, base, files, text))
        ):
            return before
        salt = native_files.json_digest([described, shards.versions()])
        read = _read(_batches(card, items), work, engine, salt=salt, name=card.name)
        read.tally.check(card.name)
        aside = out.parent / f"{out.name}.{QUARANTINE}"
        _judge_quarantine(read, card, base, aside, share=max_quarantine)
        text = native_files.format_sums(
            {path.relative_to(base.absolute()).as_posix(): digest for path, digest in read.inputs.items()}
            | native_files.hash_annotations(base, files)
        )
        absent = missing_paths(base, card)
        manifest = {
            "origin": native_files.origin(described, files, text),
            **described,
            "absent": list(absent),
            "inputs": {
                "files": text.count("\n"),
                "bytes": sum(files[name].size for name in native_files.parse_sums(text)),
            },
        }
        (work / native_files.FILE).write_text(text)
        os.utime(work / native_files.FILE, (began, began))  # later changes of native files are told by it
        read.finish(out, name=card.name, manifest=manifest, files=[work / native_files.FILE])
        aside.unlink(missing_ok=True)
    return read.built(card.name, absent=absent)


def _check_tile(card: Card) -> None:
    if card.tile and (card.images is Images.NONE or not {Task.HBB, Task.OBB} & set(card.tasks)):
        raise EarthGPTError(
            f"card {card.name}: `tile` is for images with boxes: expected the task hbb or obb, and images; "
            "remove `tile` from the card"
        )


@contextlib.contextmanager
def _work(out: Path) -> Iterator[Path]:
    """The folder in which `out` is made; gone once `out` is there. One process at a time has it.

    Raises:
        EarthGPTError: another process is building `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.parent / f".{out.name}.building"
    while True:
        work.mkdir(exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            except BlockingIOError:
                raise EarthGPTError(
                    f"{out} is being built by another process; wait for it, or choose another --out"
                ) from None
            except OSError:
                pass  # a file system without locks
            if not work.exists() or not os.path.samestat(os.fstat(lock), work.stat()):
                continue  # the other process has finished and removed it
            try:
                yield work
            finally:
                if out.exists() or not any(work.glob("chunks/*.index")):  # nothing to go on from
                    shutil.rmtree(work)
            return
        finally:
            os.close(lock)


@dataclasses.dataclass
class _Read:
    """All chunks of a source, in order, and their sums."""

    work: Path
    engine: Engine
    jobs: Sequence[Path]
    tally: BuildCounts
    inputs: Mapping[Path, str]
    records: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def chunks(self) -> Iterator[tuple[Path, chunks.ChunkIndex]]:
        for job in self.jobs:
            yield chunks.examples_file(job), _index(job)

    def rejected(self) -> Iterator[Mapping[str, Any]]:
        for _, index in self.chunks():
            yield from index.rejected

    def finish(self, out: Path, *, name: str, manifest: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        shards.write_directory(
            self.work,
            self.chunks(),
            engine=self.engine,
            out=out,
            name=name,
            manifest={**manifest, **self.tally.plain()},
            quarantine=self.rejected(),
            order=SPLITS,
            files=files,
        )
        self.records = record_counts(read_manifest(out))

    def built(self, name: str, *, absent: tuple[str, ...] = ()) -> DatasetSummary:
        plain = self.tally.plain()
        return DatasetSummary(name, plain["images"], plain["native"], self.records, plain["quarantined"], absent)


def _read(batches: Iterable[chunks.Job], work: Path, engine: Engine, *, salt: str, name: str) -> _Read:
    """Turns batches into chunks, those that are there already excepted."""
    folder = work / "chunks"
    folder.mkdir(exist_ok=True)
    sizes: dict[Path, int] = {}
    with tqdm(desc=f"{name}: annotations", unit="image", leave=False) as bar:
        for number, batch in enumerate(batches):
            sizes[chunks.write_job(folder, number, batch, salt=salt)] = len(batch)
            bar.update(len(batch))
    jobs = list(sizes)
    open_jobs = [job for job in jobs if chunks.read_index(job) is None]
    finished = sum(sizes.values()) - sum(map(sizes.__getitem__, open_jobs))
    with tqdm(total=sum(sizes.values()), initial=finished, desc=name, unit="image", leave=False) as bar:
        for job in engine.run(chunks.run_job, open_jobs):
            bar.update(sizes[job])
    tally, sums = BuildCounts(), {}
    for job in jobs:
        index = _index(job)
        tally.update(index.tally)
        sums.update(index.inputs)
    return _Read(work, engine, jobs, tally, sums)


def _index(job: Path) -> chunks.ChunkIndex:
    found = chunks.read_index(job)
    if found is None:
        raise EarthGPTError(f"{job}: its chunk is gone, though it was finished; run the same command again")
    return found


def _batches(card: Card, items: Iterable[PairedEntry | Event]) -> Iterator[chunks.NativeJob]:
    taken: list[PairedEntry | Event] = []
    stamps: list[chunks.FileState] = []
    for item in items:
        if isinstance(item, PairedEntry):
            item = dataclasses.replace(item, images=tuple(path.absolute() for path in item.images))
            stamps += map(chunks.file_state, item.images)
        taken.append(item)
        if len(taken) == _UNITS or sum(size for size, _, _ in stamps) >= _BYTES:
            yield chunks.NativeJob(card=card, items=tuple(taken), stamps=tuple(stamps))
            taken, stamps = [], []
    if taken:
        yield chunks.NativeJob(card=card, items=tuple(taken), stamps=tuple(stamps))


def _judge_quarantine(read: _Read, card: Card, base: Path, aside: Path, *, share: float) -> None:
    """Raises:
    EarthGPTError: too much is in quarantine, or all; then the quarantine file is `aside`.
    """
    plain = read.tally.plain()
    too_much = [
        f"{row['quarantined']} of {row['native']} {kind}s"
        for kind, row in plain["native"].items()
        if row["quarantined"] > share * row["native"]
    ]
    if read.tally.splits and not too_much:
        return
    with aside.open("w") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in read.rejected())
    if not read.tally.splits:
        first = next(read.rejected(), {"reason": "no annotations found"})["reason"]
        raise EarthGPTError(f"{card.name}: not one usable record in {base}; first reason: {first}")
    raise EarthGPTError(
        f"{card.name}: {', '.join(too_much)} were quarantined, more than the share of {share:g} that is allowed: "
        f"{'; '.join(reason_lines(plain['quarantined']))}. All are listed in {aside}. Mend the native files, or allow "
        "more with --max-quarantine; what was read is kept, so that the same command goes on from there"
    )


def _finished(out: Path, origin: Any) -> DatasetSummary | None:
    """What `out` holds, if it was built from the same; None if there is nothing.

    Args:
        origin: the text of its `inputs.sha256` -> the origin that it should have.

    Raises:
        EarthGPTError: `out` holds anything else.
    """
    if not out.exists():
        return None
    values = read_manifest(out)
    text = (out / native_files.FILE).read_text() if (out / native_files.FILE).is_file() else ""
    if values.get("origin") != origin(text) or not (out / image_digests.FILE).exists():
        raise EarthGPTError(
            f"{out}: expected no such folder or one built from the same files and card; it holds another build. "
            "Choose another --out, or delete this folder and run the same command again"
        )
    native, records = values.get("native", {}), record_counts(values)
    return DatasetSummary(
        values["name"],
        values.get("images", records),
        native,
        records,
        values.get("quarantined", {}),
        tuple(values.get("absent", ())),
        unchanged=True,
    )


def _current(out: Path, base: Path, files: Mapping[str, native_files.FileStatus], text: str) -> str:
    return (
        native_files.refresh_sums(base, files, text, since=(out / native_files.FILE).stat().st_mtime) if text else text
    )
