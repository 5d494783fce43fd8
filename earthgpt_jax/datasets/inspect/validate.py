"""Read a dataset directory back in full and report what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from earthgpt_jax.boxes import degeneracy
from earthgpt_jax.common.digests import sha256_file
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.datasets import image_digests, store
from earthgpt_jax.datasets.build import tiling
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.overlap import matches
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import Record, Task


def iter_records(directory: Path) -> Iterator[Record]:
    """Yield every record of a dataset directory, split by split, with a progress bar."""
    for split in read_manifest(directory)["counts"]:
        source = store.RecordSource(directory, split)
        yield from Bar(source, desc=f"{source.name}/{split}", unit="record", leave=False)


def find_problems(directory: Path) -> list[str]:
    """Return a sentence for each problem of a dataset directory, [] if there is none.

    Checks the sha256 of all shards, the counts, images, boxes, labels, ids and image digests.

    Raises:
        EarthGPTError: the manifest cannot be read.
    """
    manifest = read_manifest(directory)
    if problems := list(_damaged_shards(directory, manifest)):
        return problems  # errors of records in damaged shards would only repeat this
    problems = [
        f"{item_type}s do not add up: {row}"
        for item_type, row in manifest.get("native", {}).items()
        if row["native"] != row["kept"] + row["quarantined"] + row["dropped"]
    ]
    try:
        digests = image_digests.read_image_digests(directory)
        matches.read(directory, manifest)
    except EarthGPTError as error:
        return [*problems, str(error)]
    seen: set[str] = set()
    for split in manifest["counts"]:
        source = Bar(store.RecordSource(directory, split), desc=f"{manifest['name']}/{split}", leave=False)
        for record, digest in zip(source, digests[split], strict=True):
            if not tiling.is_tile(record) and image_digests.image_digest(record.image) != digest:
                problems.append(f"{record.id}: {image_digests.FILE} has the digest of another image")
            problems += [f"{record.id}: {problem}" for problem in _record_problems(record)]
            if record.id in seen:
                problems.append(f"{record.id} occurs twice")
            seen.add(record.id)
            if record.split != split or not record.id.startswith(f"{record.source}/{split}/"):
                problems.append(f"{record.id} is stored in split {split}")
    return problems


def _damaged_shards(directory: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    for name, digest in manifest["shards"].items():
        path = directory / name
        if not path.is_file():
            yield f"{name} is missing"
        elif sha256_file(path) != digest:
            yield f"{name} is not the file that was built (sha256 differs)"


def _record_problems(record: Record) -> Iterator[str]:
    if record.image:
        try:
            shape = record_pixels(record).shape[:2]
        except EarthGPTError as error:
            yield str(error)
        else:
            if shape != (record.height, record.width):
                yield f"expected an image of {record.width}x{record.height} pixels, got {shape[1]}x{shape[0]}"
    for index, item in enumerate(record.objects):
        if reason := degeneracy(item.polygon, width=record.width, height=record.height):
            yield f"object {index}: {reason}"
        if not item.label or item.label != item.label.lower():
            yield f"object {index}: label {item.label!r} is not a lower-case name"
    required = {
        Task.CLASSIFICATION: record.label,
        Task.CAPTION: record.references,
        Task.VQA: record.turns,
        Task.GROUNDING: any(item.phrase for item in record.objects),
        Task.REGION_CAPTION: any(item.phrase for item in record.objects),
    }
    for task in record.tasks:
        if not required.get(task, True):  # a detection record may have no objects
            yield f"has the task {task.value}, but no annotation for it"
