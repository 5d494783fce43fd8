"""Epoch sampling: every question as often as its weight says, never twice in a sample, samples within their budget."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.input.packing.lengths import LengthIndex
from earthgpt_jax.input.packing.sampler import EpochSampler, TokenBudget, sampling_cycle

TASKS = ("a", "b", "c")
BUDGET = TokenBudget(prefix_tokens=10, seq_len=50, max_questions=3)
QUESTIONS = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 45)), max_size=9), max_size=6)
WEIGHTS = st.fixed_dictionaries({task: st.sampled_from([0, 0.5, 1 / 3, 1, 1.5, 2, 3]) for task in TASKS})


def _index(records) -> LengthIndex:
    """The index of records, each a list of (task, tokens)."""
    rows = [(number, task, tokens) for number, questions in enumerate(records) for task, tokens in sorted(questions)]
    record, task, tokens = np.array(rows, np.int64).reshape(-1, 3).T
    return LengthIndex(
        tasks=TASKS,
        record=record.astype(np.int32),
        task=task.astype(np.uint8),
        index=np.arange(len(rows)).astype(np.uint16),
        tokens=tokens.astype(np.uint16),
        digests=np.arange(7, 7 + len(records)).astype(np.uint64) ** 5,
        sensors=np.zeros(len(records), np.uint8),
    )


def _epochs(index, cycle, *, seed=0, records=None):
    sampler = EpochSampler(index, times=cycle.times, epochs=cycle.epochs, budget=BUDGET, seed=seed, records=records)
    return [sampler.epoch(epoch) for epoch in range(cycle.epochs)]


@pytest.mark.parametrize(
    ("weights", "epochs", "times"),
    [
        ({"a": 1.0, "b": 2.0}, 1, {"a": 1, "b": 2}),
        ({"a": 1.0, "b": 0.5}, 2, {"a": 2, "b": 1}),
        ({"a": 0.5, "b": 1 / 3, "c": 0}, 6, {"a": 3, "b": 2}),
        ({"a": 1.0, "b": 1 / 8}, 8, {"a": 8, "b": 1}),
    ],
)
def test_the_shortest_cycle_that_meets_all_weights_is_found(weights, epochs, times):
    cycle = sampling_cycle(weights)
    assert (cycle.epochs, dict(cycle.times), cycle.rounded) == (epochs, times, {})


def test_rounded_weights_are_reported():
    cycle = sampling_cycle({"a": 1.0, "b": 0.01, "c": 0.3})
    assert cycle.epochs == 8  # 0.01 is asked at least once in 8 epochs
    assert cycle.rounded == {"b": (0.01, 0.125), "c": (0.3, 0.25)}
    assert sampling_cycle({"a": 0.3}).times == {"a": 2} and sampling_cycle({"a": 0.3}).epochs == 7


@settings(deadline=None)
@given(QUESTIONS, WEIGHTS, st.integers(0, 3))
def test_every_question_is_asked_by_its_weight(records, weights, seed):
    index, cycle = _index(records), sampling_cycle(weights)
    epochs = _epochs(index, cycle, seed=seed)
    asked = collections.Counter(question for samples in epochs for question in samples.questions.tolist())
    fits = index.tokens <= BUDGET.seq_len - BUDGET.prefix_tokens
    rates = [cycle.times.get(index.tasks[task], 0) for task in index.task]
    assert asked == {q: rate for q, rate in enumerate(rates) if rate and fits[q]}
    for samples in epochs:  # and evenly over the epochs
        for question, count in collections.Counter(samples.questions.tolist()).items():
            assert abs(count - rates[question] / cycle.epochs) < 1
        too_long = [index.tasks[index.task[q]] for q, rate in enumerate(rates) if rate and not fits[q]]
        assert samples.too_long == collections.Counter(too_long)


@settings(deadline=None)
@given(QUESTIONS, WEIGHTS, st.integers(0, 3))
def test_samples_keep_their_budget_and_open_only_when_they_must(records, weights, seed):
    index = _index(records)
    for samples in _epochs(index, sampling_cycle(weights), seed=seed):
        assert samples.count.sum() == len(samples.questions)
        for sample in range(len(samples)):
            held = samples.questions_of(sample).tolist()
            assert 1 <= len(set(held)) == len(held) <= BUDGET.max_questions
            assert set(index.record[held].tolist()) == {int(samples.record[sample])}
            assert samples.tokens[sample] == BUDGET.prefix_tokens + index.tokens[held].sum() <= BUDGET.seq_len
            if sample and samples.record[sample - 1] == samples.record[sample]:
                before, first = samples.questions_of(sample - 1).tolist(), held[0]
                assert (
                    len(before) == BUDGET.max_questions
                    or first in before
                    or samples.tokens[sample - 1] + index.tokens[first] > BUDGET.seq_len
                )


def test_the_samples_of_a_record_do_not_depend_on_other_records():
    rng = np.random.default_rng(0)
    records = [[(int(k), int(t)) for k, t in rng.integers((0, 1), (3, 30), (8, 2))] for _ in range(6)]
    index, cycle = _index(records), sampling_cycle({"a": 1.0, "b": 2.0, "c": 0.5})
    for everything, some in zip(_epochs(index, cycle), _epochs(index, cycle, records=np.array([1, 4])), strict=True):
        assert set(some.record.tolist()) == {1, 4}
        kept = np.flatnonzero(np.isin(everything.record, [1, 4]))
        expected = [everything.questions_of(sample).tolist() for sample in kept]
        assert expected == [some.questions_of(sample).tolist() for sample in range(len(some))]


def test_the_order_depends_on_the_seed_and_the_epoch():
    index = _index([[(0, 5)] * 9] * 4)
    cycle = sampling_cycle({"a": 1.0})
    first, other = (_epochs(index, cycle, seed=seed)[0].questions.tolist() for seed in (0, 1))
    second = EpochSampler(index, times={"a": 2}, epochs=2, budget=BUDGET, seed=0).epoch(1).questions.tolist()
    assert first == _epochs(index, cycle, seed=0)[0].questions.tolist()
    assert len({tuple(first), tuple(other), tuple(second)}) == 3
