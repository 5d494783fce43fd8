"""Which benchmark has been trained on, and by what: the overlap of every training split with every evaluation split.

Three likenesses are told apart, each image counted under the strongest: the same file (`digests`), the same pixels
and a near copy (`looks`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_output
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.datasets import image_digests as digests
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.image_digests import read_image_digests
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.overlap import matches
from earthgpt_jax.datasets.overlap.hamming import near_pairs
from earthgpt_jax.datasets.overlap.matches import Match, MatchType
from earthgpt_jax.datasets.overlap.perceptual_hashes import (
    MAX_DHASH_DISTANCE,
    MAX_PHASH_DISTANCE,
    NO_HASH,
    dataset_hashes,
)

_KINDS = (None, *MatchType)  # by the codes of `_Matches.kind`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """Images of an evaluation split that are in a training split, and the training records that show them.

    Attributes:
        train: name of the dataset that trains; "any of them" where all are taken together.
        images: images of the evaluation split.
        found: evaluation images by likeness.
        records: training records by likeness.
    """

    benchmark: str
    split: str
    train: str
    images: int
    found: Mapping[MatchType, int]
    records: Mapping[MatchType, int]

    @property
    def share(self) -> float:
        """Of the evaluation images."""
        return sum(self.found.values()) / max(self.images, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """The verdict on a folder of datasets.

    Attributes:
        overlaps: pairs of splits that share images.
        together: the same for each evaluation split against all training splits at once, those that share nothing too.
        undecodable: dataset -> images that do not decode and were compared as files only.
        unseen: dataset -> images that show too little for a perceptual hash.
    """

    overlaps: tuple[Overlap, ...]
    together: tuple[Overlap, ...]
    undecodable: Mapping[str, int]
    unseen: Mapping[str, int]

    def table(self) -> str:
        """One line an evaluation split and training set, the most contaminated first, and a line in words each."""
        rows = [("benchmark", "split", "in the training set of", "images", *MatchType, "share", "training records")]
        for row in sorted(self.overlaps, key=lambda each: -each.share):
            figures = [str(row.found[kind]) for kind in MatchType]
            count = str(sum(row.records.values()))
            rows.append(
                (row.benchmark, row.split, row.train, str(row.images), *figures, f"{100 * row.share:.1f} %", count)
            )
        return "\n".join([*(align_columns(rows, left=3) if self.overlaps else ()), *self._words()])

    def _words(self) -> Iterator[str]:
        for row in sorted(self.together, key=lambda each: -each.share):
            count = sum(row.found.values())
            if count:
                others = [o.train for o in self.overlaps if (o.benchmark, o.split) == (row.benchmark, row.split)]
                yield (
                    f"{row.benchmark}/{row.split} is contaminated: {count} of its {row.images} images "
                    f"({100 * row.share:.1f} %) are trained on by {', '.join(others)}"
                )
        clean = [f"{row.benchmark}/{row.split}" for row in self.together if not any(row.found.values())]
        if not self.together:
            yield "no evaluation split to compare with"
        if clean:
            yield f"clean: {', '.join(clean)}"
        for name, count in self.undecodable.items():
            yield f"{name}: {count} images do not decode; only their files were compared (`earthgpt data check`)"
        for name, count in self.unseen.items():
            yield f"{name}: {count} images show too little to tell near copies"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Split:
    """One split of one dataset; arrays [records]. `look` numbers the pictures of all datasets; -1: not hashed."""

    directory: Path
    name: str
    split: str
    files: np.ndarray
    pixels: np.ndarray
    look: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Looks that are near copies of each other, in both directions; arrays [pairs]."""

    here: np.ndarray
    there: np.ndarray
    distance: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Matches:
    """For each record of a split its closest counterpart in another; arrays [records].

    Attributes:
        kind: index into `_KINDS`, 0 for none.
        other: index of the counterpart, -1 for none.
    """

    kind: np.ndarray
    distance: np.ndarray
    other: np.ndarray


def audit(directories: Sequence[Path], *, workers: int | None = None) -> Audit:
    """Compares all training splits with all evaluation splits and writes the verdict beside the records.

    Each dataset directory gets `leaks.jsonl` and the entry `leaks` in its manifest: `datasets` (name -> fingerprint
    of what was compared), `near` (bits), `pairs` (its overlaps, on either side) and the file's `sha256`.

    Args:
        workers: processes that decode images; None: one a core.

    Raises:
        EarthGPTError: two datasets of one name, damaged digests, a folder that cannot be written to.
    """
    manifests = {directory: read_manifest(directory) for directory in directories}
    names = collections.Counter(values["name"] for values in manifests.values())
    if twice := [name for name, count in names.items() if count > 1]:
        raise EarthGPTError(f"audit: several datasets are called {', '.join(twice)}; leave one of each in the folder")
    splits, hashes, undecodable, unseen = _load(manifests, workers=workers)
    trains = [split for split in splits if split.split == digests.TRAIN]
    benchmarks = [split for split in splits if split.split != digests.TRAIN]
    near = _near(trains, benchmarks, hashes)
    found: dict[Path, list[Match]] = {directory: [] for directory in directories}
    overlaps, together = [], []
    for benchmark in tqdm(benchmarks, desc="comparing splits", unit="split", leave=False):
        strongest = np.zeros(len(benchmark.files), np.int64)
        records: collections.Counter[int] = collections.Counter()
        for train in trains:
            asked = _match(train, benchmark, near)
            if not asked.kind.any():
                continue
            answered = _match(benchmark, train, near)
            found[train.directory] += _leaks(train, benchmark, asked)
            found[benchmark.directory] += _leaks(benchmark, train, answered)
            overlaps.append(_overlap(benchmark, train.name, answered.kind, collections.Counter(asked.kind.tolist())))
            stronger = (answered.kind > 0) & ((strongest == 0) | (answered.kind < strongest))
            strongest = np.where(stronger, answered.kind, strongest)
            records.update(asked.kind.tolist())
        together.append(_overlap(benchmark, "any of them", strongest, records))
    result = Audit(overlaps=tuple(overlaps), together=tuple(together), undecodable=undecodable, unseen=unseen)
    compared = {values["name"]: values["fingerprint"] for values in manifests.values()}
    for directory, values in manifests.items():
        _write(directory, values["name"], found[directory], result, compared)
    return result


def _load(
    manifests: Mapping[Path, Mapping[str, Any]], *, workers: int | None
) -> tuple[list[_Split], np.ndarray, dict[str, int], dict[str, int]]:
    """(splits, u64[looks, 2] pHash and dHash, images that do not decode, images that show too little)."""
    splits, hashed, spans = [], [np.zeros((0, 2), np.uint64)], []
    undecodable: collections.Counter[str] = collections.Counter()
    unseen: collections.Counter[str] = collections.Counter()
    start = 0
    for directory, values in manifests.items():
        files = read_image_digests(directory)
        for split, taken in dataset_hashes(directory, workers=workers).items():
            there, shown = taken.pixels != NO_HASH, taken.phash != NO_HASH
            undecodable[values["name"]] += int((~there & (files[split] != digests.NO_IMAGE)).sum())
            unseen[values["name"]] += int((there & ~shown).sum())
            hashed.append(np.stack([taken.phash[shown], taken.dhash[shown]], axis=1))
            place = np.where(shown, np.cumsum(shown) - 1 + start, -1)
            start += int(shown.sum())
            spans.append((directory, values["name"], split, files[split], taken.pixels, place))
    hashes, number = np.unique(np.concatenate(hashed), axis=0, return_inverse=True)
    number = np.append(number.ravel(), -1)  # the last one is for those without: index -1
    for directory, name, split, files_of, pixels, place in spans:
        splits.append(
            _Split(directory=directory, name=name, split=split, files=files_of, pixels=pixels, look=number[place])
        )
    return splits, hashes, +undecodable, +unseen


def _near(trains: Sequence[_Split], benchmarks: Sequence[_Split], hashes: np.ndarray) -> _Pairs:
    """Pairs of a training and an evaluation look: pHash finds, dHash confirms."""
    train, benchmark = (
        np.setdiff1d(np.concatenate([np.zeros(0, np.int64), *(split.look for split in side)]), [-1])
        for side in (trains, benchmarks)
    )
    i, j, distance = near_pairs(hashes[train, 0], hashes[benchmark, 0], radius=MAX_PHASH_DISTANCE)
    here, there = train[i], benchmark[j]
    confirmed = np.bitwise_count(hashes[here, 1] ^ hashes[there, 1]) <= MAX_DHASH_DISTANCE
    here, there, distance = here[confirmed], there[confirmed], distance[confirmed]
    return _Pairs(
        here=np.concatenate([here, there]),
        there=np.concatenate([there, here]),
        distance=np.concatenate([distance, distance]),
    )


def _match(here: _Split, there: _Split, near: _Pairs) -> _Matches:
    inside = np.isin(near.there, there.look)
    looks_here, looks_there, distance = near.here[inside], near.there[inside], near.distance[inside]
    order = np.lexsort((distance, looks_here))  # the closest first
    looks_here, looks_there, distance = looks_here[order], looks_there[order], distance[order]
    pair = _find(here.look, looks_here, nothing=-1)
    by_look = np.where(pair >= 0, _find(looks_there, there.look, nothing=-1)[pair], -1) if len(order) else pair
    found = (
        _find(here.files, there.files, nothing=digests.NO_IMAGE),
        _find(here.pixels, there.pixels, nothing=NO_HASH),
        by_look,
    )
    kind, other = np.zeros(len(here.files), np.int64), np.full(len(here.files), -1)
    for code, place in reversed(list(enumerate(found, start=1))):  # the strongest last, over the others
        kind, other = np.where(place >= 0, code, kind), np.where(place >= 0, place, other)
    is_near = kind == _KINDS.index(MatchType.NEAR)
    return _Matches(kind=kind, other=other, distance=np.where(is_near, np.append(distance, 0)[pair], 0))


def _find(wanted: np.ndarray, among: np.ndarray, *, nothing: int) -> np.ndarray:
    """i64[wanted]: the first place in `among` with the same value; -1 where there is none, or it is `nothing`."""
    if not len(among):
        return np.full(len(wanted), -1)
    order = np.argsort(among, kind="stable")
    place = order[np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)]
    return np.where((among[place] == wanted) & (wanted != nothing), place, -1)


def _overlap(benchmark: _Split, train: str, kinds: np.ndarray, records: Mapping[int, int]) -> Overlap:
    return Overlap(
        benchmark=benchmark.name,
        split=benchmark.split,
        train=train,
        images=int((benchmark.files != digests.NO_IMAGE).sum()),
        found={kind: int((kinds == code).sum()) for code, kind in enumerate(_KINDS) if kind},
        records={kind: records.get(code, 0) for code, kind in enumerate(_KINDS) if kind},
    )


def _leaks(here: _Split, there: _Split, matches: _Matches) -> list[Match]:
    ids, others = store.RecordSource(here.directory, here.split), store.RecordSource(there.directory, there.split)
    found = []
    for index in np.flatnonzero(matches.kind).tolist():
        kind = _KINDS[matches.kind[index]]
        assert kind is not None
        found.append(
            Match(
                id=ids[index].id,
                split=here.split,
                index=index,
                kind=kind,
                distance=int(matches.distance[index]),
                other=others[int(matches.other[index])].id,
                dataset=there.name,
                of_split=there.split,
            )
        )
    return found


def _write(directory: Path, name: str, found: Sequence[Match], result: Audit, compared: Mapping[str, str]) -> None:
    content = matches.lines(found)
    pairs = [dataclasses.asdict(overlap) for overlap in result.overlaps if name in (overlap.benchmark, overlap.train)]
    verdict = {
        "datasets": dict(compared),
        "near": {"phash": MAX_PHASH_DISTANCE, "dhash": MAX_DHASH_DISTANCE},
        "pairs": pairs,
        "sha256": sha256(content),
    }
    # The manifest last: until it names the new file, the old pair is found to be torn, never taken for this one.
    write_output(directory / matches.FILE, content)
    store.update_manifest(directory, **{matches.KEY: verdict})
