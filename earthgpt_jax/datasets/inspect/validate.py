"""Looks at dataset directories: which are there, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from earthgpt_jax.boxes import degeneracy
from earthgpt_jax.common.digests import sha256_file
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets import image_digests as digests
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.build import tiling
from earthgpt_jax.datasets.image_digests import read_image_digests
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.overlap import matches
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Record, Task


def iter_records(directory: Path) -> Iterator[Record]:
    """Every record of a dataset directory, split by split."""
    for split in read_manifest(directory)["counts"]:
        source = store.RecordSource(directory, split)
        yield from tqdm(source, desc=f"{source.name}/{split}", unit="record", leave=False)


def find_problems(directory: Path) -> list[str]:
    """What is wrong with a dataset directory; [] if nothing is."""
    values = read_manifest(directory)
    found = []
    for name, digest in values["shards"].items():
        path = directory / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif sha256_file(path) != digest:
            found.append(f"{name} is not the file that was built (sha256 differs)")
    if found:
        return found  # records of damaged shards would only say the same in many words
    for kind, row in values.get("native", {}).items():
        if row["native"] != row["kept"] + row["quarantined"] + row["dropped"]:
            found.append(f"{kind}s do not add up: {row}")
    try:
        digests_of = read_image_digests(directory)
        matches.read(directory, values)
    except EarthGPTError as error:
        return [*found, str(error)]
    seen: set[str] = set()
    for split in values["counts"]:
        source = tqdm(store.RecordSource(directory, split), desc=f"{values['name']}/{split}", leave=False)
        for record, expected in zip(source, digests_of[split], strict=True):
            if not tiling.is_tile(record) and digests.image_digest(record.image) != expected:
                found.append(f"{record.id}: {digests.FILE} is of another image")
            found += [f"{record.id}: {text}" for text in _wrong(record)]
            if record.id in seen:
                found.append(f"{record.id} occurs twice")
            seen.add(record.id)
            if record.split != split or not record.id.startswith(f"{record.source}/{split}/"):
                found.append(f"{record.id} is in split {split}")
    return found


def _wrong(record: Record) -> Iterator[str]:
    if record.image:
        try:
            shape = decode(record.image).shape[:2]
        except EarthGPTError as error:
            yield str(error)
        else:
            if shape != (record.height, record.width):
                yield f"says {record.width}x{record.height}, the image is {shape[1]}x{shape[0]}"
    for index, item in enumerate(record.objects):
        if reason := degeneracy(item.polygon, width=record.width, height=record.height):
            yield f"object {index}: {reason}"
        if not item.label or item.label != item.label.lower():
            yield f"object {index}: label {item.label!r} is not a lower-case name"
    truth = {
        Task.CLASSIFICATION: record.label,
        Task.CAPTION: record.references,
        Task.VQA: record.turns,
        Task.GROUNDING: any(item.phrase for item in record.objects),
        Task.REGION_CAPTION: any(item.phrase for item in record.objects),
    }
    for task in record.tasks:
        if not truth.get(task, True):  # no boxes is a truth too
            yield f"is for {task.value}, but has nothing of it"
