"""The plan of a mixture: every sample once an epoch, rows that can be built as planned, and who it is."""

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

ROOM = TokenBudget(shared=10, seq_len=60, max_questions=3)


def _source(name: str, lengths, *, weight: float = 1.0) -> Source:
    """A record a list of lengths, alternately of kinds a and b."""
    rows = [(r, k % 2, k // 2, t) for r, asked in enumerate(lengths) for k, t in enumerate(asked)]
    rows = np.array(sorted(rows), np.int64).reshape(-1, 4)
    columns = dict(zip(("record", "kind", "index", "tokens"), rows.T, strict=True))
    types = {"record": np.int32, "kind": np.uint8, "index": np.uint16, "tokens": np.uint16}
    index = LengthIndex(
        kinds=("a", "b"),
        digests=np.arange(len(lengths), dtype=np.uint64) + len(name),
        sensors=np.zeros(len(lengths), np.uint8),
        **{key: values.astype(types[key]) for key, values in columns.items()},
    )
    return Source(
        name=name, index=index, records=np.arange(len(lengths)), weight=weight, identity={"dataset": f"{name}-1"}
    )


def _plan(*sources: Source, seed: int = 0, **changes) -> PackingSchedule:
    values = {"weights": {"a": 1.0, "b": 1.0}, "room": ROOM, "max_images": 3, "seed": seed} | changes
    return PackingSchedule(sources, **values)


LENGTHS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=8)


@settings(deadline=None)
@given(LENGTHS, LENGTHS, st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 2), st.integers(0, 3))
def test_a_cycle_asks_everything_by_its_weight_in_rows_that_have_room(one, two, weight, seed, turn):
    plan = _plan(_source("one", one), _source("two", two, weight=weight), seed=seed, weights={"a": 1.0, "b": 0.5})
    asked: collections.Counter[tuple[int, int, str, int]] = collections.Counter()
    for row in range(turn * plan.rows, (turn + 1) * plan.rows):
        placed = plan[row]
        assert 1 <= len(placed) <= 3
        total = 0
        for sample in placed:
            index = plan.sources[sample.source].index
            total += ROOM.shared
            for kind, at in sample.questions:
                asked[sample.source, sample.record, kind, at] += 1
                here = (index.record == sample.record) & (index.kind == index.kinds.index(kind)) & (index.index == at)
                total += int(index.tokens[here].item())
        assert total <= ROOM.seq_len
    epochs = plan.cycle.epochs
    for place, (lengths, own) in enumerate(((one, 1.0), (two, weight))):
        for record, questions in enumerate(lengths):
            for number in range(len(questions)):
                kind = "ab"[number % 2]
                assert asked[place, record, kind, number // 2] == epochs * own * {"a": 1.0, "b": 0.5}[kind]


def test_every_epoch_of_a_cycle_asks_what_has_weight_one():
    plan = _plan(_source("one", [[5, 5]] * 9), weights={"a": 1.0, "b": 0.5})
    ends = np.cumsum([0, *(epoch.rows for epoch in plan.epochs)])
    assert plan.cycle.epochs == 2
    for first, last in itertools.pairwise(ends):
        records = [s.record for row in range(first, last) for s in plan[row] for kind, _ in s.questions if kind == "a"]
        assert sorted(records) == list(range(9))


def test_rows_are_random_access_and_cycles_differ():
    lengths = np.random.default_rng(0).integers(5, 40, (50, 3)).tolist()
    plan, again = _plan(_source("one", lengths)), _plan(_source("one", lengths))
    far = 10**9 + 7
    assert again[far] == plan[far] and again[3] == plan[3]
    first, second = ([plan[turn * plan.rows + row] for row in range(plan.rows)] for turn in (0, 1))
    assert first != second


def test_passes_are_counted_by_source():
    plan = _plan(_source("one", [[5]] * 4), _source("two", [[5]] * 4, weight=0.5))
    assert plan.epochs_per_source(plan.rows) == {"one": 2.0, "two": 1.0}  # a cycle is two epochs


def test_questions_longer_than_a_row_are_counted():
    plan = _plan(_source("one", [[5, 51, 50], [70, 5]]))
    assert plan.left_out == {"a": 1, "b": 1}
    with pytest.raises(EarthGPTError, match="rows of 60 tokens, 10 of them an image's"):
        _plan(_source("one", [[70]]))


def test_a_source_occurs_once():
    with pytest.raises(EarthGPTError, match="got one twice"):
        _plan(_source("one", [[5]]), _source("one", [[6]]))


def test_identities_tell_what_differs():
    one, two = _source("one", [[5, 6]] * 5), _source("two", [[7]] * 5)
    before = _plan(one, two).identity()
    assert identity_differences(before, _plan(one, two).identity()) == []
    changed = dataclasses.replace(two, weight=2.0, identity={"dataset": "two-2"}, records=np.arange(4))
    others = {
        "seed: 0 before, 1 now": _plan(one, two, seed=1),
        "max_questions: 3 before, 1 now": _plan(one, two, room=dataclasses.replace(ROOM, max_questions=1)),
        "max_images: 3 before, 2 now": _plan(one, two, max_images=2),
        "weight of b: 1.0 before, 2.0 now": _plan(one, two, weights={"a": 1.0, "b": 2.0}),
        "two: dataset: two-1 before, two-2 now": _plan(one, changed),
        "two: weight: 1.0 before, 2.0 now": _plan(one, changed),
        "two: dataset: two-1 before, nothing now": _plan(one),
        "sources: ['one', 'two'] before, ['two', 'one'] now": _plan(two, one),
    }
    for line, plan in others.items():
        assert line in identity_differences(before, plan.identity())
    longer = dataclasses.replace(two, index=dataclasses.replace(two.index, tokens=two.index.tokens + np.uint16(1)))
    assert any(
        line.startswith("two: questions: ") for line in identity_differences(before, _plan(one, longer).identity())
    )
    assert any(
        line.startswith("two: records: ") for line in identity_differences(before, _plan(one, changed).identity())
    )
