"""Find dataset directories and read their manifests.

`earthgpt data build` writes one directory per dataset:

    datasets/hit_uav/
        earthgpt_records-train.array_record-00000-of-00001, ...   the records, as TFDS divides them into shards
        dataset_info.json, features.json                          TFDS's description of the shards
        manifest.json                                             counts, fingerprint, sha256 and size of every shard
        quarantine.jsonl                                          native items that could not be used, with reasons
        image_digests.npz                                         one digest per record: which records share an image
        native_files.sha256                                       the native files that were read
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from earthgpt_jax.common import typed
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_output
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.datasets.examples import VERSION
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Task

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
TFDS_NAME = "earthgpt_records"  # the dataset's name for TFDS, with which shard files begin
SHARD_FORMAT = "array_record"


class _ManifestFile(TypedDict):
    """The entries of manifest.json that this program relies on; a build writes more."""

    name: str
    version: str
    fingerprint: str
    counts: dict[str, dict[str, dict[str, int]]]
    shards: dict[str, str]
    sizes: NotRequired[dict[str, int]]
    native: NotRequired[dict[str, dict[str, int]]]
    images: NotRequired[dict[str, int]]
    dropped: NotRequired[dict[str, int]]
    quarantined: NotRequired[dict[str, int]]
    missing_paths: NotRequired[list[str]]
    card: NotRequired[dict[str, Any]]
    overlap: NotRequired[dict[str, Any]]


def dataset_directories(folder: Path) -> tuple[Path, ...]:
    """Return `folder` itself if it is a dataset directory, otherwise the dataset directories directly in it.

    Raises:
        EarthGPTError: there is none.
    """
    found = find_dataset_directories(folder)
    if not found:
        raise EarthGPTError(
            f"{folder}: expected a dataset directory that `earthgpt data build` wrote, or a folder of them; "
            + ("found none in it" if folder.exists() else "there is no such folder")
        )
    return found


def find_dataset_directories(folder: Path) -> tuple[Path, ...]:
    """Return the same as `dataset_directories`, but () if there is none."""
    if (folder / MANIFEST).is_file():
        return (folder,)
    return tuple(sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))) if folder.is_dir() else ()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the content of a dataset directory's manifest.json.

    Raises:
        EarthGPTError: `directory` is not a dataset directory, the manifest is damaged, or an earlier version of this
            program wrote it.
    """
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise EarthGPTError(
            f"data {directory}: expected a dataset directory that `earthgpt data build` wrote (with {MANIFEST} in it); "
            + ("this is something else" if directory.exists() else "there is no such folder")
        ) from None
    values = parse_json(content, where=str(path), advice="build the dataset again")
    written = values.get("version", "1.0.0") if isinstance(values, dict) else None
    if isinstance(written, str) and written.split(".")[0] != VERSION.split(".")[0]:
        raise EarthGPTError(
            f"data {directory}: expected records of version {VERSION}, got {written}: it was built by an earlier "
            "version of this program. Delete the folder and build it again"
        )
    return typed.check(_ManifestFile, values, where=f"{path} (damaged; build the dataset again)", further=True)


def record_counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of records in each split."""
    return {split: counts.get("total", {}).get("records", 0) for split, counts in manifest["counts"].items()}


def shard_names(manifest: Mapping[str, Any], split: str) -> list[str]:
    """Return the file names of a split's shards, in order."""
    return sorted(name for name in manifest["shards"] if name.startswith(f"{TFDS_NAME}-{split}.{SHARD_FORMAT}-"))


def update_manifest(directory: Path, **values: Any) -> None:
    """Set entries of manifest.json, atomically; the dataset's fingerprint does not change."""
    content = json.dumps(read_manifest(directory) | values, indent=1) + "\n"
    write_output(directory / MANIFEST, content.encode())


def annotated_classes(manifest: Mapping[str, Any]) -> AnnotatedClasses:
    """Return the classes that have objects in any split of a dataset, from its manifest.

    The card's list of classes is not used, because a release may annotate fewer of them. Returns `UNKNOWN_CLASSES` if
    the card has `open_classes` (its list may be incomplete) or the dataset has no horizontal boxes.
    """
    splits = manifest["counts"].values()
    total = sum(counts.get("task", {}).get(Task.HBB.value, 0) for counts in splits)
    if not total or manifest.get("card", {}).get("open_classes"):
        return UNKNOWN_CLASSES
    records_with: collections.Counter[str] = collections.Counter()
    for counts in splits:
        records_with.update(counts.get("records_with_object", {}))
    return AnnotatedClasses(shares={label: count / total for label, count in sorted(records_with.items())})
