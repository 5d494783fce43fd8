"""Multi-index hashing finds the same pairs as a brute-force search."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from earthgpt_jax.datasets.overlap.hamming import near_pairs


def _brute(indexed: np.ndarray, queries: np.ndarray, radius: int) -> set[tuple[int, int, int]]:
    found = set()
    for j, query in enumerate(queries):
        distance = np.bitwise_count(indexed ^ query)
        found |= {(int(i), j, int(distance[i])) for i in np.flatnonzero(distance <= radius)}
    return found


def _flipped(rng: np.random.Generator, hashes: np.ndarray, bits: int) -> np.ndarray:
    out = hashes.copy()
    for row in range(len(out)):
        for bit in rng.choice(64, bits, replace=False):
            out[row] ^= np.uint64(1) << np.uint64(bit)
    return out


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 7, 8, 11])
def test_finds_the_same_pairs_as_brute_force(radius: int) -> None:
    rng = np.random.default_rng(radius)
    indexed = rng.integers(0, 2**64, 3000, np.uint64)
    near = [_flipped(rng, indexed[:40], bits) for bits in (0, radius, radius + 1)]
    queries = np.concatenate([*near, rng.integers(0, 2**64, 60, np.uint64)])
    index, query, distance = near_pairs(indexed, queries, radius=radius)
    found = list(zip(index.tolist(), query.tolist(), distance.tolist(), strict=True))
    assert len(set(found)) == len(found) >= 80
    assert set(found) == _brute(indexed, queries, radius)


def test_empty_input() -> None:
    some, empty = np.arange(3, dtype=np.uint64), np.zeros(0, np.uint64)
    for indexed, queries in ((some, empty), (empty, some), (empty, empty)):
        assert [len(column) for column in near_pairs(indexed, queries, radius=8)] == [0, 0, 0]
    with pytest.raises(ValueError, match="radius: expected"):
        near_pairs(some, some, radius=16)


def test_memory_is_bounded_if_many_hashes_share_a_bucket() -> None:
    """Half of the hashes share three bands, so one bucket of each of these bands contains them all."""
    rng = np.random.default_rng(0)
    indexed = rng.integers(0, 2**64, 200_000, np.uint64)
    indexed[::2] &= np.uint64(0xFFFF)
    chosen = rng.choice(np.arange(1, 200_000, 2), 50, replace=False)
    queries = np.concatenate([_flipped(rng, indexed[chosen], 8), rng.integers(0, 2**64, 50, np.uint64)])
    queries = np.append(queries, np.uint64(0x00FF))
    tracemalloc.start()
    index, query, distance = near_pairs(indexed, queries, radius=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
    assert set(zip(index.tolist(), query.tolist(), distance.tolist(), strict=True)) == _brute(indexed, queries, 8)
    assert {(int(i), j) for j, i in enumerate(chosen)} <= set(zip(index.tolist(), query.tolist(), strict=True))
