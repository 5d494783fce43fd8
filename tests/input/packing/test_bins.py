"""Packing: hand-computed rows, and for any lengths: every sample once, no row too large, any row at once."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.packing.bin_filling import Remaining
from earthgpt_jax.input.packing.bins import EpochPacking, SequencePattern, pack

SIZES = st.dictionaries(st.tuples(st.integers(1, 60), st.integers(0, 3)), st.integers(0, 40), max_size=12)


def test_a_full_row_is_found():
    """8 + 2 and 7 + 3 fill rows of 10; best fit decreasing would put 3 beside 8 first."""
    patterns = pack({(8, 1): 5, (7, 1): 5, (3, 1): 5, (2, 1): 5}, tokens=10, images=2)
    assert set(patterns) == {SequencePattern(((8, 1), (2, 1)), 5), SequencePattern(((7, 1), (3, 1)), 5)}


def test_images_limit_a_row_too():
    assert pack({(1, 1): 6}, tokens=10, images=3) == (SequencePattern(((1, 1),) * 3, 2),)
    assert pack({(1, 0): 6}, tokens=10, images=0) == (SequencePattern(((1, 0),) * 6, 1),)


def test_one_size_that_does_not_divide():
    assert pack({(4, 1): 5}, tokens=10, images=9) == (
        SequencePattern(((4, 1), (4, 1)), 2),
        SequencePattern(((4, 1),), 1),
    )


def test_a_sample_larger_than_a_row_is_refused():
    with pytest.raises(EarthGPTError, match="2 samples of 11 tokens and 1 images"):
        pack({(11, 1): 2}, tokens=10, images=1)


@settings(deadline=None)
@given(SIZES)
def test_every_sample_is_packed_and_no_row_is_too_large(counts):
    packed = collections.Counter()
    for pattern in pack(counts, tokens=60, images=3):
        assert pattern.rows > 0
        assert sum(length for length, _ in pattern.sizes) <= 60
        assert sum(images for _, images in pattern.sizes) <= 3
        for size in pattern.sizes:
            packed[size] += pattern.rows
    assert packed == collections.Counter({size: count for size, count in counts.items() if count})


@settings(deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=9), st.integers(0, 1), st.integers(1, 6))
def test_no_company_is_fuller(lengths, shown, images):
    """Against all subsets of the samples that are left."""
    remaining = Remaining(collections.Counter((length, shown) for length in lengths), tokens=40)
    first = remaining.longest()
    company = remaining.company(first, images=images)
    assert first == (max(lengths), shown)
    others = sorted(lengths)[:-1]
    assert not collections.Counter(length for length, _ in company) - collections.Counter(others)
    most = images - 1 if shown else len(others)
    sums = {sum(some) for count in range(most + 1) for some in itertools.combinations(others, count)}
    assert len(company) <= most
    assert sum(length for length, _ in company) == max(total for total in sums if total <= 40 - first[0])


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_has_every_sample_once(lengths, seed, epoch):
    plan = EpochPacking(np.array(lengths), np.ones(len(lengths)), tokens=50, max_images=4, seed=seed)
    rows = [plan[epoch * plan.rows + row] for row in range(plan.rows)]
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[sample] for sample in row) <= 50 and len(row) <= 4


def test_rows_are_the_same_from_anywhere_and_other_in_another_epoch():
    lengths = np.random.default_rng(0).integers(10, 60, 200)
    plan = EpochPacking(lengths, np.ones(200), tokens=100, max_images=8, seed=3)
    assert EpochPacking(lengths, np.ones(200), tokens=100, max_images=8, seed=3)[1234] == plan[1234]
    first, second = ([plan[epoch * plan.rows + row] for row in range(plan.rows)] for epoch in (0, 1))
    assert first != second
    assert {frozenset(row) for row in first} != {frozenset(row) for row in second}  # other company, too


def test_occupancy_of_a_mixture_of_tasks():
    """Captions, questions and detections behind an image of 259 tokens, as in MMRS."""
    rng = np.random.default_rng(0)
    boxes = np.minimum(30 + 24 * rng.geometric(0.12, 20_000), 1700)
    lengths = 269 + np.where(rng.random(20_000) < 0.6, rng.integers(20, 300, 20_000), boxes)
    plan = EpochPacking(lengths, np.ones(len(lengths)), tokens=2048, max_images=8, seed=0)
    assert plan.packing_efficiency > 0.98


def test_the_fingerprint_knows_what_matters():
    lengths, other = np.array([10, 20, 30, 40]), np.array([20, 10, 30, 40])
    prints = {
        EpochPacking(values, np.ones(4), tokens=tokens, max_images=4, seed=seed).fingerprint()
        for values, tokens, seed in ((lengths, 60, 0), (other, 60, 0), (lengths, 70, 0), (lengths, 60, 1))
    }
    assert len(prints) == 4
