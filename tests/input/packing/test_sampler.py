"""Samples: every question as often as its weight says, none twice in one, none with more than it has room for."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.input.packing.lengths import LengthIndex
from earthgpt_jax.input.packing.sampler import EpochSampler, TokenBudget, sampling_cycle

KINDS = ("a", "b", "c")
ROOM = TokenBudget(shared=10, seq_len=50, max_questions=3)
QUESTIONS = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 45)), max_size=9), max_size=6)
WEIGHTS = st.fixed_dictionaries({kind: st.sampled_from([0, 0.5, 1 / 3, 1, 1.5, 2, 3]) for kind in KINDS})


def _index(records) -> LengthIndex:
    rows = [(number, kind, tokens) for number, asked in enumerate(records) for kind, tokens in sorted(asked)]
    record, kind, tokens = np.array(rows, np.int64).reshape(-1, 3).T
    return LengthIndex(
        kinds=KINDS,
        record=record.astype(np.int32),
        kind=kind.astype(np.uint8),
        index=np.arange(len(rows)).astype(np.uint16),
        tokens=tokens.astype(np.uint16),
        digests=np.arange(7, 7 + len(records)).astype(np.uint64) ** 5,
        sensors=np.zeros(len(records), np.uint8),
    )


def _drawn(index, turns, *, seed=0, records=None):
    drawing = EpochSampler(index, times=turns.times, epochs=turns.epochs, room=ROOM, seed=seed, records=records)
    return [drawing.epoch(epoch) for epoch in range(turns.epochs)]


@pytest.mark.parametrize(
    ("weights", "epochs", "times"),
    [
        ({"a": 1.0, "b": 2.0}, 1, {"a": 1, "b": 2}),
        ({"a": 1.0, "b": 0.5}, 2, {"a": 2, "b": 1}),
        ({"a": 0.5, "b": 1 / 3, "c": 0}, 6, {"a": 3, "b": 2}),
        ({"a": 1.0, "b": 1 / 8}, 8, {"a": 8, "b": 1}),
    ],
)
def test_weights_that_a_cycle_meets(weights, epochs, times):
    found = sampling_cycle(weights)
    assert (found.epochs, dict(found.times), found.lost) == (epochs, times, {})


def test_what_rounding_loses_is_said():
    found = sampling_cycle({"a": 1.0, "b": 0.01, "c": 0.3})
    assert found.epochs == 8  # 0.01 is asked once in 8 epochs at least
    assert found.lost == {"b": (0.01, 0.125), "c": (0.3, 0.25)}
    assert sampling_cycle({"a": 0.3}).times == {"a": 2} and sampling_cycle({"a": 0.3}).epochs == 7


@settings(deadline=None)
@given(QUESTIONS, WEIGHTS, st.integers(0, 3))
def test_every_question_is_asked_by_its_weight(records, weights, seed):
    index, turns = _index(records), sampling_cycle(weights)
    drawn = _drawn(index, turns, seed=seed)
    asked = collections.Counter(question for each in drawn for question in each.questions.tolist())
    fits = index.tokens <= ROOM.seq_len - ROOM.shared
    rates = [turns.times.get(index.kinds[kind], 0) for kind in index.kind]
    assert asked == {q: rate for q, rate in enumerate(rates) if rate and fits[q]}
    for each in drawn:  # and evenly
        once = collections.Counter(each.questions.tolist())
        for question, count in once.items():
            assert abs(count - rates[question] / turns.epochs) < 1
        long = collections.Counter(index.kinds[index.kind[q]] for q, rate in enumerate(rates) if rate and not fits[q])
        assert each.left_out == long


@settings(deadline=None)
@given(QUESTIONS, WEIGHTS, st.integers(0, 3))
def test_samples_hold_what_they_may_and_open_only_when_they_must(records, weights, seed):
    index = _index(records)
    for each in _drawn(index, sampling_cycle(weights), seed=seed):
        assert each.count.sum() == len(each.questions)
        for sample in range(len(each)):
            held = each.of(sample).tolist()
            assert 1 <= len(set(held)) == len(held) <= ROOM.max_questions
            assert set(index.record[held].tolist()) == {int(each.record[sample])}
            assert each.tokens[sample] == ROOM.shared + index.tokens[held].sum() <= ROOM.seq_len
            if sample and each.record[sample - 1] == each.record[sample]:
                before, first = each.of(sample - 1).tolist(), held[0]
                assert (
                    len(before) == ROOM.max_questions
                    or first in before
                    or each.tokens[sample - 1] + index.tokens[first] > ROOM.seq_len
                )


def test_a_record_is_put_together_alike_whatever_is_beside_it():
    rng = np.random.default_rng(0)
    records = [[(int(k), int(t)) for k, t in rng.integers((0, 1), (3, 30), (8, 2))] for _ in range(6)]
    index, turns = _index(records), sampling_cycle({"a": 1.0, "b": 2.0, "c": 0.5})
    whole = _drawn(index, turns)
    some = _drawn(index, turns, records=np.array([1, 4]))
    for all_of, few in zip(whole, some, strict=True):
        assert set(few.record.tolist()) == {1, 4}
        kept = np.flatnonzero(np.isin(all_of.record, [1, 4]))
        assert [all_of.of(s).tolist() for s in kept] == [few.of(s).tolist() for s in range(len(few))]


def test_the_seed_and_the_epoch_change_the_order():
    index = _index([[(0, 5)] * 9] * 4)
    turns = sampling_cycle({"a": 1.0})
    first, other = (_drawn(index, turns, seed=seed)[0].questions.tolist() for seed in (0, 1))
    second = EpochSampler(index, times={"a": 2}, epochs=2, room=ROOM, seed=0).epoch(1).questions.tolist()
    assert first == _drawn(index, turns, seed=0)[0].questions.tolist()
    assert len({tuple(first), tuple(other), tuple(second)}) == 3
