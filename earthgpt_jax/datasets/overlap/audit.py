"""Find train/test overlap: compare the images of every training split with those of every evaluation split.

Images match in one of three ways, and each image counts under the strongest: the same file (`image_digests`), the same
pixels, or a near-duplicate (`perceptual_hashes`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_output
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.datasets import image_digests as digests
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.image_digests import read_image_digests
from earthgpt_jax.datasets.manifest import read_manifest, update_manifest
from earthgpt_jax.datasets.overlap import matches
from earthgpt_jax.datasets.overlap.hamming import near_pairs
from earthgpt_jax.datasets.overlap.matches import Match, MatchType
from earthgpt_jax.datasets.overlap.perceptual_hashes import (
    MAX_DHASH_DISTANCE,
    MAX_PHASH_DISTANCE,
    NO_HASH,
    dataset_hashes,
)

_MATCH_TYPES = (None, *MatchType)  # indexed by `_ClosestMatches.code`; a lower code above 0 is a stronger match


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOverlap:
    """Images of an evaluation split that also occur in a training split.

    Attributes:
        benchmark, split: the evaluation split.
        train_dataset: the dataset of the training split; "any" for all training splits together.
        images: number of images in the evaluation split.
        matched_images: number of its images that occur in the training split, by type of match.
        train_records: number of training records with such an image, by type of match.
    """

    benchmark: str
    split: str
    train_dataset: str
    images: int
    matched_images: Mapping[MatchType, int]
    train_records: Mapping[MatchType, int]

    @property
    def share(self) -> float:
        """The share of the evaluation images that occur in the training split, from 0 to 1."""
        return sum(self.matched_images.values()) / max(self.images, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit.

    Attributes:
        overlaps: one item per pair of splits that share images.
        totals: one item per evaluation split, compared with all training splits together, including those that share
            no images.
        undecodable: dataset -> number of images that cannot be decoded, so that only their files were compared.
        unhashed: dataset -> number of images with too little contrast for a perceptual hash.
    """

    overlaps: tuple[SplitOverlap, ...]
    totals: tuple[SplitOverlap, ...]
    undecodable: Mapping[str, int]
    unhashed: Mapping[str, int]

    def table(self) -> str:
        """Return a table with one line per pair of splits, the highest share first, followed by a summary in words."""
        rows = [("benchmark", "split", "training dataset", "images", *MatchType, "share", "training records")]
        for row in sorted(self.overlaps, key=lambda overlap: -overlap.share):
            counts = [str(row.matched_images[match_type]) for match_type in MatchType]
            records = str(sum(row.train_records.values()))
            share = f"{100 * row.share:.1f} %"
            rows.append((row.benchmark, row.split, row.train_dataset, str(row.images), *counts, share, records))
        return "\n".join([*(align_columns(rows, left=3) if self.overlaps else ()), *self._summary()])

    def _summary(self) -> Iterator[str]:
        for row in sorted(self.totals, key=lambda overlap: -overlap.share):
            count = sum(row.matched_images.values())
            if count:
                names = [o.train_dataset for o in self.overlaps if (o.benchmark, o.split) == (row.benchmark, row.split)]
                yield (
                    f"{row.benchmark}/{row.split} is contaminated: {count} of its {row.images} images "
                    f"({100 * row.share:.1f} %) are in the training splits of {', '.join(names)}"
                )
        clean = [f"{row.benchmark}/{row.split}" for row in self.totals if not any(row.matched_images.values())]
        if not self.totals:
            yield "no evaluation split to compare with"
        if clean:
            yield f"clean: {', '.join(clean)}"
        for name, count in self.undecodable.items():
            yield f"{name}: {count} images cannot be decoded; only files were compared (see `earthgpt data check`)"
        for name, count in self.unhashed.items():
            yield f"{name}: {count} images have too little contrast to find near-duplicates"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Split:
    """One split of one dataset; arrays have shape [records].

    Attributes:
        files, pixels: digests, u64.
        hashes: i64, index into the perceptual hashes of all datasets; -1 for images without one.
    """

    directory: Path
    name: str
    split: str
    files: np.ndarray
    pixels: np.ndarray
    hashes: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NearPairs:
    """Pairs of perceptual hashes of near-duplicates, each in both orders; arrays have shape [pairs]."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClosestMatches:
    """The closest counterpart of each record of a split in another split; arrays have shape [records].

    Attributes:
        code: index into `_MATCH_TYPES`; 0 for no match.
        distance: bits in which the pHashes of near-duplicates differ.
        other: index of the counterpart; -1 for no match.
    """

    code: np.ndarray
    distance: np.ndarray
    other: np.ndarray


def audit(directories: Sequence[Path], *, workers: int | None = None) -> Audit:
    """Compare all training splits with all evaluation splits, and store the result with the datasets.

    Each dataset directory gets the file `overlap.jsonl` (see `matches`) and the entry `overlap` in its manifest:
    `datasets` (name -> fingerprint of the compared datasets), `max_distance` (bits per hash), `split_overlaps` (those
    that involve the dataset) and the `sha256` of the file.

    Args:
        workers: number of processes that decode images; None for one per core.

    Raises:
        EarthGPTError: two datasets have the same name, digests are damaged, or a folder is not writable.
    """
    manifests = {directory: read_manifest(directory) for directory in directories}
    names = collections.Counter(manifest["name"] for manifest in manifests.values())
    if duplicates := [name for name, count in names.items() if count > 1]:
        raise EarthGPTError(
            f"audit: several datasets are called {', '.join(duplicates)}; leave one of each in the folder"
        )
    splits, hashes, undecodable, unhashed = _load(manifests, workers=workers)
    trains = [split for split in splits if split.split == digests.TRAIN]
    benchmarks = [split for split in splits if split.split != digests.TRAIN]
    near = _near(trains, benchmarks, hashes)
    found: dict[Path, list[Match]] = {directory: [] for directory in directories}
    overlaps, totals = [], []
    for benchmark in Bar(benchmarks, desc="comparing splits", unit="split", leave=False):
        strongest = np.zeros(len(benchmark.files), np.int64)
        records: collections.Counter[int] = collections.Counter()
        for train in trains:
            of_train = _closest(train, benchmark, near)
            if not of_train.code.any():
                continue
            of_benchmark = _closest(benchmark, train, near)
            found[train.directory] += _matches(train, benchmark, of_train)
            found[benchmark.directory] += _matches(benchmark, train, of_benchmark)
            train_records = collections.Counter(of_train.code.tolist())
            overlaps.append(_overlap(benchmark, train.name, of_benchmark.code, train_records))
            stronger = (of_benchmark.code > 0) & ((strongest == 0) | (of_benchmark.code < strongest))
            strongest = np.where(stronger, of_benchmark.code, strongest)
            records.update(train_records)
        totals.append(_overlap(benchmark, "any", strongest, records))
    result = Audit(overlaps=tuple(overlaps), totals=tuple(totals), undecodable=undecodable, unhashed=unhashed)
    fingerprints = {manifest["name"]: manifest["fingerprint"] for manifest in manifests.values()}
    for directory, manifest in manifests.items():
        _write(directory, manifest["name"], found[directory], result, fingerprints)
    return result


def _load(
    manifests: Mapping[Path, Mapping[str, Any]], *, workers: int | None
) -> tuple[list[_Split], np.ndarray, dict[str, int], dict[str, int]]:
    """Return (splits, u64[hashes, 2] distinct pairs of pHash and dHash, `undecodable` and `unhashed` of `Audit`)."""
    splits, all_hashes, parts = [], [np.zeros((0, 2), np.uint64)], []
    undecodable: collections.Counter[str] = collections.Counter()
    unhashed: collections.Counter[str] = collections.Counter()
    start = 0
    for directory, manifest in manifests.items():
        files = read_image_digests(directory)
        for split, hashes in dataset_hashes(directory, workers=workers).items():
            decoded, hashed = hashes.pixels != NO_HASH, hashes.phash != NO_HASH
            undecodable[manifest["name"]] += int((~decoded & (files[split] != digests.NO_IMAGE)).sum())
            unhashed[manifest["name"]] += int((decoded & ~hashed).sum())
            all_hashes.append(np.stack([hashes.phash[hashed], hashes.dhash[hashed]], axis=1))
            position = np.where(hashed, np.cumsum(hashed) - 1 + start, -1)
            start += int(hashed.sum())
            parts.append((directory, manifest["name"], split, files[split], hashes.pixels, position))
    distinct, index = np.unique(np.concatenate(all_hashes), axis=0, return_inverse=True)
    index = np.append(index.ravel(), -1)  # position -1, an image without a hash, selects this last item
    for directory, name, split, split_files, pixels, position in parts:
        splits.append(
            _Split(
                directory=directory, name=name, split=split, files=split_files, pixels=pixels, hashes=index[position]
            )
        )
    return splits, distinct, +undecodable, +unhashed


def _near(trains: Sequence[_Split], benchmarks: Sequence[_Split], hashes: np.ndarray) -> _NearPairs:
    """Return the near-duplicate hashes of training and evaluation images: close pHashes, confirmed by dHash."""
    train, benchmark = (
        np.setdiff1d(np.concatenate([np.zeros(0, np.int64), *(split.hashes for split in side)]), [-1])
        for side in (trains, benchmarks)
    )
    i, j, distance = near_pairs(hashes[train, 0], hashes[benchmark, 0], radius=MAX_PHASH_DISTANCE)
    first, second = train[i], benchmark[j]
    confirmed = np.bitwise_count(hashes[first, 1] ^ hashes[second, 1]) <= MAX_DHASH_DISTANCE
    first, second, distance = first[confirmed], second[confirmed], distance[confirmed]
    return _NearPairs(
        first=np.concatenate([first, second]),
        second=np.concatenate([second, first]),
        distance=np.concatenate([distance, distance]),
    )


def _closest(split: _Split, other: _Split, near: _NearPairs) -> _ClosestMatches:
    """Find the closest counterpart in `other` of each record of `split`."""
    in_other = np.isin(near.second, other.hashes)
    first, second, distance = near.first[in_other], near.second[in_other], near.distance[in_other]
    order = np.lexsort((distance, first))  # the closest counterpart of each hash comes first
    first, second, distance = first[order], second[order], distance[order]
    pair = _index_of(split.hashes, first, missing=-1)
    by_hash = np.where(pair >= 0, _index_of(second, other.hashes, missing=-1)[pair], -1) if len(order) else pair
    counterparts = (
        _index_of(split.files, other.files, missing=digests.NO_IMAGE),
        _index_of(split.pixels, other.pixels, missing=NO_HASH),
        by_hash,
    )
    code, closest = np.zeros(len(split.files), np.int64), np.full(len(split.files), -1)
    for number, index in reversed(list(enumerate(counterparts, start=1))):  # stronger matches overwrite weaker ones
        code, closest = np.where(index >= 0, number, code), np.where(index >= 0, index, closest)
    is_near = code == _MATCH_TYPES.index(MatchType.NEAR_DUPLICATE)
    return _ClosestMatches(code=code, other=closest, distance=np.where(is_near, np.append(distance, 0)[pair], 0))


def _index_of(values: np.ndarray, array: np.ndarray, *, missing: int) -> np.ndarray:
    """Return i64[values]: the first index of each value in `array`; -1 if it is not there or equals `missing`."""
    if not len(array):
        return np.full(len(values), -1)
    order = np.argsort(array, kind="stable")
    index = order[np.minimum(np.searchsorted(array, values, sorter=order), len(array) - 1)]
    return np.where((array[index] == values) & (values != missing), index, -1)


def _overlap(benchmark: _Split, train: str, codes: np.ndarray, records: Mapping[int, int]) -> SplitOverlap:
    return SplitOverlap(
        benchmark=benchmark.name,
        split=benchmark.split,
        train_dataset=train,
        images=int((benchmark.files != digests.NO_IMAGE).sum()),
        matched_images={name: int((codes == code).sum()) for code, name in enumerate(_MATCH_TYPES) if name},
        train_records={name: records.get(code, 0) for code, name in enumerate(_MATCH_TYPES) if name},
    )


def _matches(split: _Split, other: _Split, closest: _ClosestMatches) -> list[Match]:
    records, others = store.RecordSource(split.directory, split.split), store.RecordSource(other.directory, other.split)
    found = []
    for index in np.flatnonzero(closest.code).tolist():
        match_type = _MATCH_TYPES[closest.code[index]]
        assert match_type is not None
        found.append(
            Match(
                id=records[index].id,
                split=split.split,
                index=index,
                match_type=match_type,
                distance=int(closest.distance[index]),
                other_id=others[int(closest.other[index])].id,
                other_dataset=other.name,
                other_split=other.split,
            )
        )
    return found


def _write(directory: Path, name: str, found: Sequence[Match], result: Audit, fingerprints: Mapping[str, str]) -> None:
    content = matches.to_jsonl(found)
    involved = [overlap for overlap in result.overlaps if name in (overlap.benchmark, overlap.train_dataset)]
    entry = {
        "datasets": dict(fingerprints),
        "max_distance": {"phash": MAX_PHASH_DISTANCE, "dhash": MAX_DHASH_DISTANCE},
        "split_overlaps": [dataclasses.asdict(overlap) for overlap in involved],
        "sha256": sha256(content),
    }
    # The manifest is written last. If the audit is interrupted before, the checksum in the old manifest does not match
    # the new file, so the mixture is reported as damaged.
    write_output(directory / matches.FILE, content)
    update_manifest(directory, **{matches.KEY: entry})
