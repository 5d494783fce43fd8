"""Split a dataset that has no official splits, so that near-duplicates are never in different splits.

Frames of one video, augmented chips and overlapping tiles make a random split too easy: the test images have been seen.
Here images are near-duplicates if their perceptual hashes agree (`perceptual_hashes`), also after a flip or a rotation
by 90 degrees. Groups of them are assigned to splits as a whole. Hashes do not show that an image is a part of another;
where a dataset was cut out of another one and kept its names, names show it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_output
from earthgpt_jax.common.parallel import parallel_map
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.datasets import readers
from earthgpt_jax.datasets.cards import SPLITS, Card, hash_split
from earthgpt_jax.datasets.manifest import read_manifest, record_counts
from earthgpt_jax.datasets.overlap.hamming import near_pairs
from earthgpt_jax.datasets.overlap.perceptual_hashes import (
    MAX_DHASH_DISTANCE,
    MAX_PHASH_DISTANCE,
    NO_HASH,
    PerceptualHashes,
    dataset_hashes,
    hash_array,
)
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.raster.decode import decode

_CHUNK = 64  # images per task of a worker process
_STRICTEST = tuple(reversed(SPLITS))  # a group with images of several splits goes to the first of these
_SYMMETRIES = 1 + len(Image.Transpose)
_HASHED_SIDE = 128  # larger images are reduced to this side before they are turned; perceptual hashes need 32 pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSplit:
    """A split of a dataset by groups of near-duplicates.

    Attributes:
        ids: split -> native ids without the prefix of their part, sorted.
        groups: number of groups.
        largest: number of images in the largest group.
        inherited: number of images whose split is that of an image of another dataset.
    """

    ids: Mapping[str, tuple[str, ...]]
    groups: int
    largest: int
    inherited: int


def split_by_groups(
    root: Path,
    card: Card,
    *,
    like: Sequence[Path] = (),
    names_like: Sequence[Path] = (),
    workers: int | None = None,
) -> GroupSplit:
    """Assign the images of a native dataset to splits by groups: 70 % train, 10 % val, 20 % test, by a hash.

    Args:
        root: as for `readers.read`.
        like: dataset directories; a group with images of these takes their split, the strictest if there are several.
        names_like: dataset directories; a group with an image of the same name as one of these takes its split.
        workers: number of processes that decode images; None for one per core.

    Raises:
        EarthGPTError: as for `readers.pair_entries` and `dataset_hashes`; or there is no image.
    """
    images = dict(_images(root, card))
    if not images:
        raise EarthGPTError(f"card {card.name}: found no image with an annotation below {root}")
    ids = sorted(images)
    own = _hashes([images[name] for name in ids], workers=workers, name=card.name)
    others = [(split, hashes) for path in like for split, hashes in dataset_hashes(path, workers=workers).items()]
    group = _groups(own, [hashes for _, hashes in others])
    assigned = np.concatenate([np.zeros(0, int), *(np.full(len(h.pixels), _STRICTEST.index(s)) for s, h in others)])
    inherited: dict[int, int] = {}
    named = _splits_by_name(names_like)
    pairs = [(n, named[key]) for n, name in zip(group.tolist(), ids, strict=False) if (key := _last(name)) in named]
    for number, split in (*zip(group[len(ids) :].tolist(), assigned.tolist(), strict=True), *pairs):
        inherited[number] = min(inherited.get(number, split), split)
    first: dict[int, str] = {}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, number in zip(ids, group.tolist(), strict=False):
        representative = first.setdefault(number, name)
        split = _STRICTEST[inherited[number]] if number in inherited else hash_split(representative)
        splits[split].append(name)
    own_groups = group[: len(ids)]
    return GroupSplit(
        ids={split: tuple(names) for split, names in splits.items()},
        groups=len(first),
        largest=int(np.bincount(own_groups).max()),
        inherited=sum(number in inherited for number in own_groups.tolist()),
    )


def _splits_by_name(directories: Sequence[Path]) -> dict[str, int]:
    """Return image name -> index into `_STRICTEST` of its split, over the records of some dataset directories."""
    found: dict[str, int] = {}
    for directory in directories:
        for split in record_counts(read_manifest(directory)):
            for record in RecordSource(directory, split):
                name, index = _last(record.id), _STRICTEST.index(split)
                found[name] = min(found.get(name, index), index)
    return found


def _last(native_id: str) -> str:
    return native_id.rpartition("/")[2]


def list_paths(card: Card) -> dict[str, str]:
    """Return split -> path of its list of ids below the dataset's folder, as the card's layout names them.

    Raises:
        EarthGPTError: the card names no lists, or different ones for its parts.
    """
    found = {tuple(part.get(split, "") for split in SPLITS) for part in card.parts}
    paths = next(iter(found))
    if len(found) > 1 or not all(paths):
        raise EarthGPTError(
            f"card {card.name}: expected `train`, `val` and `test` in its layout, the same in all parts: the lists of "
            "ids to write"
        )
    return dict(zip(SPLITS, paths, strict=True))


def write_lists(base: Path, card: Card, split: GroupSplit) -> None:
    """Write the lists of ids that the card's layout names.

    Args:
        base: the dataset's folder.
    """
    for name, path in list_paths(card).items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        write_output(base / path, "".join(f"{native_id}\n" for native_id in split.ids[name]).encode())


def without_lists(card: Card) -> Card:
    """Return the card of the same files without splits."""
    parts = tuple({role: path for role, path in part.items() if role not in SPLITS} for part in card.parts)
    return dataclasses.replace(card, parts=parts)


def _images(root: Path, card: Card) -> Iterator[tuple[str, Path]]:
    prefixes = [part.get("prefix", "") for part in card.parts]
    for item in readers.pair_entries(root, without_lists(card)):
        if isinstance(item, readers.PairedEntry) and not item.entry.problem and len(item.images) == 1:
            prefix = next((prefix for prefix in prefixes if prefix and item.entry.id.startswith(prefix)), "")
            yield item.entry.id.removeprefix(prefix), item.images[0]


def _hashes(paths: Sequence[Path], *, workers: int | None, name: str) -> np.ndarray:
    """Return u64[images, symmetries, 3]: pixels, pHash and dHash of each image under each symmetry."""
    chunks = [tuple(paths[start : start + _CHUNK]) for start in range(0, len(paths), _CHUNK)]
    results = []
    with Bar(total=len(paths), desc=f"hashing {name}", unit="image", leave=False) as bar:
        for chunk, result in zip(chunks, parallel_map(_hash_chunk, chunks, workers=workers), strict=True):
            results.append(result)
            bar.update(len(chunk))
    return np.concatenate(results)


def _hash_chunk(paths: Sequence[Path]) -> np.ndarray:
    return np.array([_hash_symmetries(path) for path in paths], np.uint64)


def _hash_symmetries(path: Path) -> list[tuple[int, int, int]]:
    try:
        image = Image.fromarray(decode(path.read_bytes()))
    except EarthGPTError:  # the build quarantines it
        return [(NO_HASH, NO_HASH, NO_HASH)] * _SYMMETRIES
    small = image.copy()
    small.thumbnail((_HASHED_SIDE, _HASHED_SIDE))
    return [hash_array(np.asarray(image)), *(hash_array(np.asarray(small.transpose(s))) for s in Image.Transpose)]


def _groups(own: np.ndarray, others: Sequence[PerceptualHashes]) -> np.ndarray:
    """Return the number of the group of each image, i64[own images and other images]."""
    plain = np.concatenate([own[:, 0], *(np.stack([h.pixels, h.phash, h.dhash], axis=1) for h in others)])
    variants = own.reshape(-1, own.shape[-1])
    image_of = np.repeat(np.arange(len(own)), own.shape[1])
    hashed, hashed_variants = (np.flatnonzero(array[:, 1] != NO_HASH) for array in (plain, variants))
    i, j, _ = near_pairs(variants[hashed_variants, 1], plain[hashed, 1], radius=MAX_PHASH_DISTANCE)
    first, second = hashed_variants[i], hashed[j]
    near = np.bitwise_count(variants[first, 2] ^ plain[second, 2]) <= MAX_DHASH_DISTANCE
    edges = [(image_of[first[near]], second[near])]
    _, same = np.unique(plain[:, 0], return_inverse=True)  # an image without contrast may still have a copy
    order = np.argsort(same, kind="stable")
    equal = (same[order][1:] == same[order][:-1]) & (plain[order[1:], 0] != NO_HASH)
    edges.append((order[1:][equal], order[:-1][equal]))
    rows, columns = map(functools.partial(np.concatenate), zip(*edges, strict=True))
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(plain), len(plain)))
    return connected_components(graph, directed=False)[1]
