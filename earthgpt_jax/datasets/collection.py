"""Read several datasets as one sequence of records, without training on images of an evaluation split.

Datasets share images under splits of their own: RSIVQA asks about the images of RSICD, so that a training image of one
is a test image of the other. Where a folder of several datasets is opened for training, such train/test overlap is left
out (see `open_records`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from earthgpt_jax.common.digests import fingerprint, sha256
from earthgpt_jax.common.errors import DamagedRecordError, EarthGPTError
from earthgpt_jax.datasets import image_digests as digests
from earthgpt_jax.datasets.cards import Role
from earthgpt_jax.datasets.manifest import find_dataset_directories, read_manifest
from earthgpt_jax.datasets.overlap import matches
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.records import AnnotatedClasses, Record, Task

_log = logging.getLogger(__name__)


class ConcatSource(Sequence[Record]):
    """The records of several sources, one source after the other.

    Args:
        sources: the sources, in order.
        excluded: bool[records of all sources], True for the records to leave out; None keeps all.

    Attributes:
        name: the names of the sources, separated by commas.
        fingerprint: changes with the records of any source and with which of them are excluded.
    """

    def __init__(self, sources: Sequence[RecordSource], *, excluded: np.ndarray | None = None):
        self._sources = list(sources)
        self._starts = np.cumsum([0, *map(len, self._sources)])
        total = int(self._starts[-1])
        self._rows = np.arange(total) if excluded is None else np.flatnonzero(~excluded)
        self.name = ", ".join(source.name for source in self._sources)
        prints = [source.fingerprint for source in self._sources]
        if len(self._rows) < total:  # where nothing is excluded, the fingerprint is that of the sources alone
            prints.append(sha256(self._rows.astype("<i8").tobytes()))
        joined = fingerprint("|".join(prints))
        self.fingerprint = prints[0] if len(prints) == 1 else joined

    @property
    def annotated(self) -> dict[str, AnnotatedClasses]:
        """The classes that each source annotates, by the source's name."""
        return {source.name: source.annotated for source in self._sources}

    def parts(self) -> Iterator[tuple[RecordSource, np.ndarray]]:
        """Yield each source with the indices of its records that are kept, i64[n] in ascending order."""
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


def open_records(directory: Path, split: str, *, tasks: Collection[Task] = ()) -> ConcatSource:
    """Open a split of one dataset directory, or of every dataset directory in a folder, as one sequence of records.

    Datasets without the split, without images, or without any of `tasks` are skipped.

    The training split of several datasets excludes every record whose image is in an evaluation split of any dataset
    in the folder, whatever its tasks; a warning gives the numbers. "The same image" means the same file and, where
    `earthgpt data audit` was run, also the same pixels and near copies of another dataset's images. Datasets whose card
    says `zero_shot` are then skipped, too. A single dataset keeps its published splits, and evaluation splits are
    never reduced.

    Args:
        tasks: keep datasets that have records for at least one of these tasks; () accepts all.

    Raises:
        EarthGPTError: no records remain (the message lists the datasets that were skipped), or one of several
            datasets has no image digests.
    """
    folders = find_dataset_directories(directory) or (() if directory.is_dir() else (directory,))
    exclude_overlap = split == digests.TRAIN and len(folders) > 1
    overlaps = _train_test_overlap(folders) if exclude_overlap else [None] * len(folders)
    chosen: list[tuple[RecordSource, np.ndarray]] = []
    skipped = []
    for folder, overlap in zip(folders, overlaps, strict=True):
        manifest = read_manifest(folder)
        if exclude_overlap and manifest.get("card", {}).get("role") == Role.ZERO_SHOT:
            _log.warning("data %s: not trained on: its card says zero_shot. Open it alone to train on it", folder)
            skipped.append(folder.name)
            continue
        counts = manifest["counts"].get(split, {})
        usable = counts.get("task", {}).keys() & {str(task) for task in tasks or Task}
        source = RecordSource(folder, split) if usable else None
        if source is not None and _has_images(source):
            chosen.append((source, np.zeros(len(source), bool) if overlap is None else overlap))
        else:
            skipped.append(folder.name)
    if not chosen:
        raise EarthGPTError(
            f"data {directory}: expected a dataset with images, a split {split!r} and one of the tasks "
            f"{', '.join(map(str, tasks or Task))}; found {', '.join(skipped) or 'no dataset at all'}. "
            "`earthgpt data build` makes datasets, `earthgpt data stats` shows what they contain."
        )
    if numbers := ", ".join(
        f"{source.name} {overlap.sum()} of {len(source)}" for source, overlap in chosen if overlap.any()
    ):
        _log.warning("data %s: excluded from training, because evaluation splits have the same images: %s", directory,
                     numbers)  # fmt: skip
    sources, excluded = zip(*chosen, strict=True)
    records = ConcatSource(sources, excluded=np.concatenate(excluded))
    if not len(records):
        raise EarthGPTError(
            f"data {directory}: all its training images are in evaluation splits too; put fewer datasets in one folder"
        )
    return records


def _has_images(source: RecordSource) -> bool:
    """Return whether the first readable record has an image; if no record can be read, its reader reports that."""
    for index in range(len(source)):
        with contextlib.suppress(DamagedRecordError):
            return bool(source[index].image)
    return len(source) > 0


def _train_test_overlap(folders: Sequence[Path]) -> list[np.ndarray]:
    """Return bool[training records] for each dataset: True if an evaluation split of any of them has the image."""
    manifests = [read_manifest(folder) for folder in folders]
    fingerprints = {manifest["name"]: manifest["fingerprint"] for manifest in manifests}
    same_file = digests.overlap_masks([digests.read_image_digests(folder) for folder in folders])
    return [
        mask | matches.held_out_mask(folder, manifest, fingerprints=fingerprints, split=digests.TRAIN)
        if len(mask)
        else mask
        for folder, manifest, mask in zip(folders, manifests, same_file, strict=True)
    ]
