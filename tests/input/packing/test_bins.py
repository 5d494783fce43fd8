"""Bin packing: sequences computed by hand; for any lengths, every sample once, no sequence too long, random access."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.packing.bins import Remaining, SequencePattern, pack
from earthgpt_jax.input.packing.epoch_packing import EpochPacking

SIZES = st.dictionaries(st.tuples(st.integers(1, 60), st.integers(0, 3)), st.integers(0, 40), max_size=12)


def _epochs(packing: EpochPacking, *numbers: int) -> list[list[list[int]]]:
    count = packing.sequences_per_epoch
    return [[packing.sequence(number * count + place) for place in range(count)] for number in numbers]


def test_sequences_are_filled_completely_where_possible():
    patterns = pack({(8, 1): 5, (7, 1): 5, (3, 1): 5, (2, 1): 5}, seq_len=10, max_images=2)
    assert set(patterns) == {SequencePattern(((8, 1), (2, 1)), 5), SequencePattern(((7, 1), (3, 1)), 5)}


def test_the_number_of_images_is_limited_too():
    assert pack({(1, 1): 6}, seq_len=10, max_images=3) == (SequencePattern(((1, 1),) * 3, 2),)
    assert pack({(1, 0): 6}, seq_len=10, max_images=0) == (SequencePattern(((1, 0),) * 6, 1),)


def test_an_odd_number_of_samples_leaves_one_sequence_with_fewer():
    patterns = pack({(4, 1): 5}, seq_len=10, max_images=9)
    assert patterns == (SequencePattern(((4, 1), (4, 1)), 2), SequencePattern(((4, 1),), 1))


def test_a_sample_longer_than_a_sequence_is_refused():
    with pytest.raises(EarthGPTError, match="2 samples of 11 tokens and 1 images"):
        pack({(11, 1): 2}, seq_len=10, max_images=1)


@settings(deadline=None)
@given(SIZES)
def test_every_sample_is_packed_once_and_no_sequence_is_too_long(counts):
    packed = collections.Counter()
    for pattern in pack(counts, seq_len=60, max_images=3):
        assert pattern.count > 0
        assert sum(length for length, _ in pattern.sizes) <= 60
        assert sum(images for _, images in pattern.sizes) <= 3
        for size in pattern.sizes:
            packed[size] += pattern.count
    assert packed == collections.Counter({size: count for size, count in counts.items() if count})


@settings(deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=9), st.integers(0, 1), st.integers(1, 6))
def test_no_other_choice_of_samples_fills_a_sequence_better(lengths, images, max_images):
    """Compared with all subsets of the remaining samples."""
    remaining = Remaining(collections.Counter((length, images) for length in lengths), seq_len=40)
    first = remaining.longest()
    chosen = remaining.best_fill(first, max_images=max_images)
    assert first == (max(lengths), images)
    others = sorted(lengths)[:-1]
    assert not collections.Counter(length for length, _ in chosen) - collections.Counter(others)
    most = max_images - 1 if images else len(others)
    sums = {sum(subset) for count in range(most + 1) for subset in itertools.combinations(others, count)}
    assert len(chosen) <= most
    assert sum(length for length, _ in chosen) == max(total for total in sums if total <= 40 - first[0])


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_has_every_sample_once(lengths, seed, epoch):
    packing = EpochPacking(np.array(lengths), np.ones(len(lengths)), seq_len=50, max_images=4, seed=seed)
    (sequences,) = _epochs(packing, epoch)
    assert sorted(sample for sequence in sequences for sample in sequence) == list(range(len(lengths)))
    for sequence in sequences:
        assert sum(lengths[sample] for sample in sequence) <= 50 and len(sequence) <= 4


def test_sequences_are_reproducible_and_differ_between_epochs():
    lengths = np.random.default_rng(0).integers(10, 60, 200)
    packing, again = (EpochPacking(lengths, np.ones(200), seq_len=100, max_images=8, seed=3) for _ in range(2))
    assert again.sequence(1234) == packing.sequence(1234)
    first, second = _epochs(packing, 0, 1)
    assert first != second
    assert set(map(frozenset, first)) != set(map(frozenset, second))  # other samples share a sequence, too


def test_packing_efficiency_of_a_mixture_of_tasks():
    """Captions, questions and detections after an image of 259 tokens, as in MMRS."""
    rng = np.random.default_rng(0)
    boxes = np.minimum(30 + 24 * rng.geometric(0.12, 20_000), 1700)
    lengths = 269 + np.where(rng.random(20_000) < 0.6, rng.integers(20, 300, 20_000), boxes)
    packing = EpochPacking(lengths, np.ones(len(lengths)), seq_len=2048, max_images=8, seed=0)
    assert packing.packing_efficiency > 0.98


def test_the_fingerprint_depends_on_lengths_sequence_length_and_seed():
    lengths, other = np.array([10, 20, 30, 40]), np.array([20, 10, 30, 40])
    prints = {
        EpochPacking(values, np.ones(4), seq_len=seq_len, max_images=4, seed=seed).fingerprint()
        for values, seq_len, seed in ((lengths, 60, 0), (other, 60, 0), (lengths, 70, 0), (lengths, 60, 1))
    }
    assert len(prints) == 4
