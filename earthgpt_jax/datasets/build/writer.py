"""Write records that are already in memory, or come from a generator, as a dataset directory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import explain_write_errors
from earthgpt_jax.common.parallel import LocalEngine
from earthgpt_jax.datasets.build import chunks, shards
from earthgpt_jax.datasets.image_digests import image_digest
from earthgpt_jax.records import Record


def write_dataset(
    splits: Mapping[str, Sequence[Record] | Iterable[Record]],
    *,
    out: Path,
    name: str,
    manifest: Mapping[str, Any] | None = None,
    quarantine: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Write a dataset directory. `out` must not exist; it appears only when it is complete.

    Args:
        splits: records by split name, in the order in which they are stored.
        name: the dataset's name.
        manifest: more entries of manifest.json, such as counts of dropped items.
        quarantine: the lines of quarantine.jsonl, evaluated after all records have been drawn.

    Raises:
        EarthGPTError: `out` exists, it cannot be written, or the disk is full.
    """
    if out.exists():
        raise EarthGPTError(f"{out} exists already; choose another folder, or delete this one to build it again")
    with explain_write_errors(out):
        parent = out.parent if files.renames_folders(out) else None  # None: the folder for temporary files
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        # A random name keeps simultaneous builds apart. The dataset inside it is nested more deeply than
        # `dataset_directories` looks, so that the remains of a killed build are never taken for a dataset.
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=parent) as temporary:
            work = Path(temporary)
            index, examples = chunks.ChunkIndex(), work / "examples"
            with examples.open("wb") as file:
                for split, records in splits.items():
                    for record in records:
                        index.append(record, split=split, digest=image_digest(record.image), file=file)
            shards.write_directory(
                work,
                [(examples, index)],
                engine=LocalEngine(1),
                out=out,
                name=name,
                manifest=manifest or {},
                quarantine=quarantine,
                order=tuple(splits),
            )
