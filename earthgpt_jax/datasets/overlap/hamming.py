"""All pairs of 64-bit hashes within a Hamming distance, without comparing all pairs.

Multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012):
of four 16-bit bands, at least one differs in few bits where the whole does, so the neighbours stand in few buckets
of that band.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

_BANDS, _BITS = 4, 16
_QUERIES, _CANDIDATES = 4096, 1 << 21  # at a time: what bounds the memory
_WIDEST = 15


def near_pairs(indexed: np.ndarray, queries: np.ndarray, *, radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair that differs in at most `radius` bits, once.

    Args:
        indexed: u64[n].
        queries: u64[m]; quickest where these are the fewer.
        radius: up to 15; the work grows steeply with it.

    Returns:
        (i64[p] into `indexed`, i64[p] into `queries`, i64[p] distance), ordered by query, then by index.
    """
    if not 0 <= radius <= _WIDEST:
        raise ValueError(f"radius: expected 0..{_WIDEST}, got {radius}")
    found = [_band(indexed, queries, radius=radius, band=band, reach=reach) for band, reach in _reaches(radius)]
    codes = np.unique(np.concatenate([np.zeros(0, np.int64), *itertools.chain.from_iterable(found)]))
    query, index = np.divmod(codes, max(len(indexed), 1))
    return index, query, np.bitwise_count(indexed[index] ^ queries[query]).astype(np.int64)


def _reaches(radius: int) -> list[tuple[int, int]]:
    """(band, bits that may differ in it): if every band differed in more, the whole would in more than `radius`."""
    whole, more = divmod(radius + 1, _BANDS)
    return [(band, whole + (band < more) - 1) for band in range(_BANDS) if whole + (band < more) > 0]


def _band(indexed: np.ndarray, queries: np.ndarray, *, radius: int, band: int, reach: int) -> Iterator[np.ndarray]:
    """Codes `query * n + index` of the pairs that this band finds, some of them several times."""
    sets = itertools.chain.from_iterable(itertools.combinations(range(_BITS), count) for count in range(reach + 1))
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
            done = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + _CANDIDATES, side="right")))
            count = sizes[begin:end].ravel()
            offsets = np.repeat(starts[buckets[begin:end].ravel()] - (np.cumsum(count) - count), count)
            index = order[offsets + np.arange(len(offsets))]
            query = first + begin + np.repeat(np.arange(end - begin), sizes[begin:end].sum(axis=1))
            near = np.bitwise_count(indexed[index] ^ queries[query]) <= radius
            yield np.unique(query[near] * len(indexed) + index[near])
            begin = end


def _keys(hashes: np.ndarray, band: int) -> np.ndarray:
    return ((hashes >> np.uint64(band * _BITS)) & np.uint64((1 << _BITS) - 1)).astype(np.int64)
