"""The packing schedule of a mixture: every question by its weight, sequences within their budget, its identity."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.packing.lengths import LengthIndex
from earthgpt_jax.input.packing.sampler import TokenBudget
from earthgpt_jax.input.packing.schedule import PackingSchedule, Source, identity_differences

BUDGET = TokenBudget(prefix_tokens=10, seq_len=60, max_questions=3)


def _source(name: str, lengths, *, weight: float = 1.0) -> Source:
    """A source with a record for each list of question lengths, alternately of tasks a and b."""
    rows = [(r, k % 2, k // 2, t) for r, questions in enumerate(lengths) for k, t in enumerate(questions)]
    rows = np.array(sorted(rows), np.int64).reshape(-1, 4)
    columns = dict(zip(("record", "task", "index", "tokens"), rows.T, strict=True))
    types = {"record": np.int32, "task": np.uint8, "index": np.uint16, "tokens": np.uint16}
    index = LengthIndex(
        tasks=("a", "b"),
        digests=np.arange(len(lengths), dtype=np.uint64) + len(name),
        sensors=np.zeros(len(lengths), np.uint8),
        **{key: values.astype(types[key]) for key, values in columns.items()},
    )
    return Source(
        name=name, index=index, records=np.arange(len(lengths)), weight=weight, identity={"dataset": f"{name}-1"}
    )


def _schedule(*sources: Source, seed: int = 0, **changes) -> PackingSchedule:
    values = {"weights": {"a": 1.0, "b": 1.0}, "budget": BUDGET, "max_images": 3, "seed": seed} | changes
    return PackingSchedule(sources, **values)


def _cycle(schedule: PackingSchedule, number: int) -> range:
    count = schedule.sequences_per_cycle
    return range(number * count, (number + 1) * count)


LENGTHS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=8)


@settings(deadline=None)
@given(LENGTHS, LENGTHS, st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 2), st.integers(0, 3))
def test_a_cycle_asks_every_question_by_its_weight_within_the_budget(one, two, weight, seed, cycle):
    sources = (_source("one", one), _source("two", two, weight=weight))
    schedule = _schedule(*sources, seed=seed, weights={"a": 1.0, "b": 0.5})
    asked: collections.Counter[tuple[int, int, str, int]] = collections.Counter()
    for number in _cycle(schedule, cycle):
        samples = schedule[number]
        assert 1 <= len(samples) <= 3
        total = 0
        for sample in samples:
            index = schedule.sources[sample.source].index
            total += BUDGET.prefix_tokens
            for task, at in sample.questions:
                asked[sample.source, sample.record, task, at] += 1
                here = (index.record == sample.record) & (index.task == index.tasks.index(task)) & (index.index == at)
                total += int(index.tokens[here].item())
        assert total <= BUDGET.seq_len
    epochs = schedule.cycle.epochs
    for source, (lengths, source_weight) in enumerate(((one, 1.0), (two, weight))):
        for record, questions in enumerate(lengths):
            for number in range(len(questions)):
                task = "ab"[number % 2]
                times = epochs * source_weight * {"a": 1.0, "b": 0.5}[task]
                assert asked[source, record, task, number // 2] == times


def test_questions_of_weight_one_are_asked_in_every_epoch_of_a_cycle():
    schedule = _schedule(_source("one", [[5, 5]] * 9), weights={"a": 1.0, "b": 0.5})
    ends = np.cumsum([0, *(epoch.sequences_per_epoch for epoch in schedule.epochs)])
    assert schedule.cycle.epochs == 2
    for first, last in itertools.pairwise(ends):
        samples = [sample for number in range(first, last) for sample in schedule[number]]
        records = [sample.record for sample in samples for task, _ in sample.questions if task == "a"]
        assert sorted(records) == list(range(9))


def test_sequences_are_random_access_and_cycles_differ():
    lengths = np.random.default_rng(0).integers(5, 40, (50, 3)).tolist()
    schedule, again = _schedule(_source("one", lengths)), _schedule(_source("one", lengths))
    far = 10**9 + 7
    assert again[far] == schedule[far] and again[3] == schedule[3]
    first, second = ([schedule[number] for number in _cycle(schedule, cycle)] for cycle in (0, 1))
    assert first != second


def test_epochs_are_counted_per_source():
    schedule = _schedule(_source("one", [[5]] * 4), _source("two", [[5]] * 4, weight=0.5))
    # A cycle is two epochs.
    assert schedule.epochs_per_source(schedule.sequences_per_cycle) == {"one": 2.0, "two": 1.0}


def test_questions_longer_than_a_sequence_are_counted():
    schedule = _schedule(_source("one", [[5, 51, 50], [70, 5]]))
    assert schedule.too_long == {"a": 1, "b": 1}
    with pytest.raises(EarthGPTError, match="sequences of 60 tokens, 10 of which are image and system text"):
        _schedule(_source("one", [[70]]))


def test_sources_are_distinct():
    with pytest.raises(EarthGPTError, match="expected distinct sources, got one more than once"):
        _schedule(_source("one", [[5]]), _source("one", [[6]]))


def test_the_differences_of_two_identities_are_named():
    one, two = _source("one", [[5, 6]] * 5), _source("two", [[7]] * 5)
    before = _schedule(one, two).identity()
    assert identity_differences(before, _schedule(one, two).identity()) == []
    changed = dataclasses.replace(two, weight=2.0, identity={"dataset": "two-2"}, records=np.arange(4))
    others = {
        "seed: 0 before, 1 now": _schedule(one, two, seed=1),
        "max_questions: 3 before, 1 now": _schedule(one, two, budget=dataclasses.replace(BUDGET, max_questions=1)),
        "max_images: 3 before, 2 now": _schedule(one, two, max_images=2),
        "weight of b: 1.0 before, 2.0 now": _schedule(one, two, weights={"a": 1.0, "b": 2.0}),
        "two: dataset: two-1 before, two-2 now": _schedule(one, changed),
        "two: weight: 1.0 before, 2.0 now": _schedule(one, changed),
        "two: dataset: two-1 before, nothing now": _schedule(one),
        "sources: ['one', 'two'] before, ['two', 'one'] now": _schedule(two, one),
    }
    for line, schedule in others.items():
        assert line in identity_differences(before, schedule.identity())
    longer = dataclasses.replace(two, index=dataclasses.replace(two.index, tokens=two.index.tokens + np.uint16(1)))
    differences = identity_differences(before, _schedule(one, longer).identity())
    assert any(line.startswith("two: questions: ") for line in differences)
    differences = identity_differences(before, _schedule(one, changed).identity())
    assert any(line.startswith("two: records: ") for line in differences)
