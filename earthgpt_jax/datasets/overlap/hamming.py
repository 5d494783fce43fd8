"""Find all pairs of 64-bit hashes within a Hamming distance, without comparing all pairs.

This is multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR
2012). A hash is split into four 16-bit bands. If two hashes differ in few bits, they differ in very few bits of at
least one band, so the neighbours of a hash are in a small number of buckets of that band.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

_BANDS, _BITS = 4, 16
_QUERIES, _CANDIDATES = 4096, 1 << 21  # processed at once; they bound the memory
_MAX_RADIUS = 15


def near_pairs(indexed: np.ndarray, queries: np.ndarray, *, radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every pair of hashes that differ in at most `radius` bits, once.

    Args:
        indexed: u64[n].
        queries: u64[m]; pass the smaller array here, which is faster.
        radius: 0 to 15; the cost grows steeply with it.

    Returns:
        (i64[p] index into `indexed`, i64[p] index into `queries`, i64[p] distance), sorted by query, then by index.

    Raises:
        ValueError: `radius` is out of range.
    """
    if not 0 <= radius <= _MAX_RADIUS:
        raise ValueError(f"radius: expected 0..{_MAX_RADIUS}, got {radius}")
    codes_of_bands = [
        _search_band(indexed, queries, radius=radius, band=band, band_radius=band_radius)
        for band, band_radius in _band_radii(radius)
    ]
    codes = np.unique(np.concatenate([np.zeros(0, np.int64), *itertools.chain.from_iterable(codes_of_bands)]))
    query, index = np.divmod(codes, max(len(indexed), 1))
    return index, query, np.bitwise_count(indexed[index] ^ queries[query]).astype(np.int64)


def _band_radii(radius: int) -> list[tuple[int, int]]:
    """Return (band, search radius within the band).

    Hashes that differ in more bits than this in every band differ in more than `radius` bits in total.
    """
    quotient, remainder = divmod(radius + 1, _BANDS)
    limits = [quotient + (band < remainder) for band in range(_BANDS)]
    return [(band, limit - 1) for band, limit in enumerate(limits) if limit > 0]


def _search_band(
    indexed: np.ndarray, queries: np.ndarray, *, radius: int, band: int, band_radius: int
) -> Iterator[np.ndarray]:
    """Yield codes `query * n + index` of the pairs that differ in few bits of this band; codes may repeat."""
    combinations = (itertools.combinations(range(_BITS), count) for count in range(band_radius + 1))
    sets = itertools.chain.from_iterable(combinations)
    flips = np.array([sum(1 << bit for bit in bits) for bits in sets], np.int64)
    keys = _keys(indexed, band)
    order = np.argsort(keys, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << _BITS))])
    for first in range(0, len(queries), _QUERIES):
        buckets = _keys(queries[first : first + _QUERIES], band)[:, None] ^ flips
        sizes = starts[buckets + 1] - starts[buckets]
        ends = np.cumsum(sizes.sum(axis=1))
        begin = 0
        while begin < len(buckets):
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + _CANDIDATES, side="right")))
            count = sizes[begin:end].ravel()
            offsets = np.repeat(starts[buckets[begin:end].ravel()] - (np.cumsum(count) - count), count)
            index = order[offsets + np.arange(len(offsets))]
            query = first + begin + np.repeat(np.arange(end - begin), sizes[begin:end].sum(axis=1))
            near = np.bitwise_count(indexed[index] ^ queries[query]) <= radius
            yield np.unique(query[near] * len(indexed) + index[near])
            begin = end


def _keys(hashes: np.ndarray, band: int) -> np.ndarray:
    return ((hashes >> np.uint64(band * _BITS)) & np.uint64((1 << _BITS) - 1)).astype(np.int64)
