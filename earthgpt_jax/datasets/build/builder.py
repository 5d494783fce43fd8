"""Build dataset directories from native files, one per dataset, with counts that add up.

For each item type (image, object, question, caption): native = kept + quarantined + dropped.

A build has three steps, which store their results as files in a hidden work folder next to the dataset:

1. the native annotations become jobs (in this process, in order),
2. jobs become chunks of serialised records (in any process),
3. chunks become shards (in any process).

A build that resumes uses everything that is finished, and writes the same bytes as a build without interruption.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import explain_write_errors, is_complete, write_text
from earthgpt_jax.common.parallel import Engine, LocalEngine
from earthgpt_jax.datasets import image_digests
from earthgpt_jax.datasets.build import chunks, native_files, shards
from earthgpt_jax.datasets.build.chunks import FinishedChunks
from earthgpt_jax.datasets.build.summary import BuildSummary, DatasetSummary, reason_lines
from earthgpt_jax.datasets.build.work_folder import work_folder
from earthgpt_jax.datasets.cards import SPLITS, Card, Images
from earthgpt_jax.datasets.manifest import QUARANTINE, read_manifest, record_counts
from earthgpt_jax.datasets.readers import Event, PairedEntry, locate, missing_paths, pair_entries
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource

_READERS_VERSION = 4  # raise this when the readers make other records of the same native files
_JOB_ENTRIES, _JOB_BYTES = 128, 32 << 20  # a job ends at this number of entries or bytes of images
MAX_QUARANTINE = 0.1
_RESUMABLE = "finished parts are kept; the same command resumes the build"


def build(
    cards: Sequence[Card],
    *,
    root: Path,
    out: Path,
    engine: Engine | None = None,
    max_quarantine: float = MAX_QUARANTINE,
) -> BuildSummary:
    """Read the native dataset of each card and write `out/<name>/`.

    Args:
        root: the folder of all native datasets, or of the one to build.
        engine: what validates images and writes shards; None uses this process.
        max_quarantine: the largest fraction, from 0 to 1, of the items of a type that may be quarantined.

    Raises:
        EarthGPTError: a native dataset is missing; `out/<name>` contains something else or is being built by another
            process; more than `max_quarantine` was quarantined; or the folder is not writable or the disk is full.
    """
    if not 0 <= max_quarantine <= 1:
        raise EarthGPTError(f"--max-quarantine: expected a fraction from 0 to 1, got {max_quarantine}")
    engine = engine or LocalEngine(1)
    return BuildSummary(
        tuple(_build_one(card, root, out / card.name, engine=engine, max_quarantine=max_quarantine) for card in cards)
    )


def build_synthetic(
    splits: Mapping[str, int], *, size: int, seed: int, out: Path, engine: Engine | None = None
) -> BuildSummary:
    """Write the synthetic dataset `out/synthetic/`.

    Args:
        splits: number of records by split.
        size: side of the images in pixels.
        seed: another seed gives another dataset.

    Raises:
        EarthGPTError: a split is unknown, all numbers are 0, or `out/synthetic` contains something else.
    """
    name = SyntheticSource.name
    sources = {split: SyntheticSource(split, n, seed=seed, size=size) for split, n in splits.items() if n}
    if not sources:
        raise EarthGPTError("build synthetic: expected at least one record, got none; raise --count or --splits")
    target = out / name
    # The first record stands for the code that draws the scenes: when the code changes, the origin does too.
    first_records = [source[0] for source in sources.values()]
    first = [(image_digests.image_digest(record.image), record.turns) for record in first_records]
    origin = native_files.json_digest({"synthetic": dict(splits), "size": size, "seed": seed, "first": first})
    with explain_write_errors(target, consequence=_RESUMABLE), work_folder(target) as work:
        if previous := _previous_build(target, lambda _: origin):
            return BuildSummary((previous,))
        jobs = (
            chunks.SyntheticJob(source=source, start=start, stop=min(start + _JOB_ENTRIES, len(source)))
            for source in sources.values()
            for start in range(0, len(source), _JOB_ENTRIES)
        )
        engine = engine or LocalEngine(1)
        finished = chunks.make_chunks(jobs, work / "chunks", engine=engine, settings=origin, name=name)
        card = {"name": name, "size": size, "seed": seed}
        _write_directory(finished, work, engine=engine, out=target, manifest={"origin": origin, "card": card})
    return BuildSummary((_summary(name, read_manifest(target)),))


def _build_one(card: Card, root: Path, out: Path, *, engine: Engine, max_quarantine: float) -> DatasetSummary:
    base = locate(root, card)  # needed even if `out` exists, to compare it with the native files
    _check_tile(card)
    items = pair_entries(root, card)  # raises for missing files before anything is written
    settings = {"card": card.describe(), "readers_version": _READERS_VERSION}
    with explain_write_errors(out, consequence=_RESUMABLE), work_folder(out) as work:
        began = time.time()
        files = native_files.list_files(base, card)

        def current_origin(sums: str) -> str:
            if sums:
                # In a bucket, this is the time of the upload, after which it is too late to look for changes.
                since = 0.0 if isinstance(out, BucketPath) else (out / native_files.FILE).stat().st_mtime
                sums = native_files.refresh_sums(base, files, sums, since=since)
            return native_files.origin(settings, files, sums)

        if previous := _previous_build(out, current_origin):
            return previous
        job_settings = native_files.json_digest([settings, shards.versions()])
        finished = chunks.make_chunks(
            _native_jobs(card, items), work / "chunks", engine=engine, settings=job_settings, name=card.name
        )
        finished.counts.check(card.name)
        quarantine_list = out.parent / f"{out.name}.{QUARANTINE}"
        _check_quarantine(finished, card, base, quarantine_list, limit=max_quarantine)
        image_sums = {
            path.relative_to(base.absolute()).as_posix(): digest for path, digest in finished.image_sums.items()
        }
        sums = native_files.format_sums(image_sums | native_files.hash_annotations(base, files))
        size = sum(files[name].size for name in native_files.parse_sums(sums))
        manifest = {
            "origin": native_files.origin(settings, files, sums),
            **settings,
            "missing_paths": list(missing_paths(base, card)),
            "native_files": {"files": sums.count("\n"), "bytes": size},
        }
        list_file = work / native_files.FILE
        list_file.write_text(sums)
        os.utime(list_file, (began, began))  # `refresh_sums` hashes files again that changed after this time
        _write_directory(finished, work, engine=engine, out=out, manifest=manifest, files=[list_file])
        quarantine_list.unlink(missing_ok=True)
    return _summary(card.name, read_manifest(out))


def _check_tile(card: Card) -> None:
    if card.tile and (card.images is Images.NONE or not {Task.HBB, Task.OBB} & set(card.tasks)):
        raise EarthGPTError(
            f"card {card.name}: `tile` requires images and the task hbb or obb; remove `tile` from the card"
        )


def _native_jobs(card: Card, items: Iterable[PairedEntry | Event]) -> Iterator[chunks.NativeJob]:
    batch: list[PairedEntry | Event] = []
    states: list[chunks.FileState] = []
    for item in items:
        if isinstance(item, PairedEntry):
            item = dataclasses.replace(item, images=tuple(path.absolute() for path in item.images))
            states += map(chunks.file_state, item.images)
        batch.append(item)
        if len(batch) == _JOB_ENTRIES or sum(size for size, _, _ in states) >= _JOB_BYTES:
            yield chunks.NativeJob(card=card, items=tuple(batch), image_states=tuple(states))
            batch, states = [], []
    if batch:
        yield chunks.NativeJob(card=card, items=tuple(batch), image_states=tuple(states))


def _check_quarantine(finished: FinishedChunks, card: Card, base: Path, path: Path, *, limit: float) -> None:
    """Check that enough of a dataset can be used; otherwise write the list of rejected items to `path`.

    Raises:
        EarthGPTError: more than the fraction `limit` of an item type was quarantined, or no record is left.
    """
    values = finished.counts.to_dict()
    exceeded = [
        f"{row['quarantined']} of {row['native']} {item_type}s"
        for item_type, row in values["native"].items()
        if row["quarantined"] > limit * row["native"]
    ]
    if finished.counts.splits and not exceeded:
        return
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in finished.rejected()))
    if not finished.counts.splits:
        first = next(finished.rejected(), {"reason": "no annotations found"})["reason"]
        raise EarthGPTError(f"{card.name}: no usable record in {base}; first reason: {first}")
    raise EarthGPTError(
        f"{card.name}: {', '.join(exceeded)} were quarantined, more than the allowed fraction of {limit:g}: "
        f"{'; '.join(reason_lines(values['quarantined']))}. All are listed in {path}. Correct the native files, or "
        "allow more with --max-quarantine; the same command then resumes the build"
    )


def _write_directory(
    finished: FinishedChunks,
    work: Path,
    *,
    engine: Engine,
    out: Path,
    manifest: Mapping[str, Any],
    files: Sequence[Path] = (),
) -> None:
    shards.write_directory(
        work,
        finished,
        engine=engine,
        out=out,
        name=out.name,
        manifest={**manifest, **finished.counts.to_dict()},
        quarantine=finished.rejected(),
        order=SPLITS,
        files=files,
    )


def _previous_build(out: Path, current_origin: Callable[[str], str]) -> DatasetSummary | None:
    """Return the summary of the dataset in `out` if it was built from the same files, None if `out` does not exist.

    Args:
        current_origin: returns the origin that the dataset should have, for the content of its `native_files.sha256`.

    Raises:
        EarthGPTError: `out` contains anything else.
    """
    if not is_complete(out):
        return None
    manifest = read_manifest(out)
    path = out / native_files.FILE
    sums = path.read_text() if path.is_file() else ""
    if manifest.get("origin") != current_origin(sums) or not (out / image_digests.FILE).exists():
        raise EarthGPTError(
            f"{out}: expected no such folder, or a dataset built from the same files and card; it contains another "
            "build. Choose another --out, or delete this folder and run the same command again"
        )
    return _summary(manifest["name"], manifest, unchanged=True)


def _summary(name: str, manifest: Mapping[str, Any], *, unchanged: bool = False) -> DatasetSummary:
    records = record_counts(manifest)
    return DatasetSummary(
        name=name,
        splits=manifest.get("images", records),
        counts=manifest.get("native", {}),
        records=records,
        quarantined=manifest.get("quarantined", {}),
        missing_paths=tuple(manifest.get("missing_paths", ())),
        unchanged=unchanged,
    )
