"""What a batch holds is accounted for, and comes from the seed and the position alone."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.input.conversation import conversation
from earthgpt_jax.input.pipeline import InputSpec, draw, train_iterator
from earthgpt_jax.input.rows import image_prefix, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from earthgpt_jax.mmrs.record import Task
from earthgpt_jax.mmrs.synthetic import SyntheticSource
from tests import nano

SPEC = InputSpec(
    tokens_per_row=120, batch_size=4, image_size=32, visual_tokens=17, task_weights={"caption": 1.0, "obb": 2.0},
    max_questions=4, decimals=2, conversation="plain", seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def records():
    source = SyntheticSource("train", 16)
    return [source[i] for i in range(16)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(nano.dialogues(), vocab_size=512, path=path)
    return Tokenizer(path)


def _batches(records, tokenizer, count, **changes):
    iterator = train_iterator(records, spec=dataclasses.replace(SPEC, **changes), tokenizer=tokenizer, threads=2)
    return [batch for _, batch in itertools.islice(iterator, count)]


def test_every_question_drawn_is_in_the_batch_or_counted_as_left_out(records, tokenizer):
    pools = {r.id: len(r.references) + (Task.OBB in r.tasks) for r in records}
    left_out = 0
    for batch in _batches(records, tokenizer, 8):
        drawn = sum(min(SPEC.max_questions, pools[name.split(":")[0]]) for name in batch.ids)
        assert int(batch.branches.max(axis=1).sum()) + batch.left_out == drawn
        left_out += batch.left_out
    assert left_out > 0  # these rows are short
    assert all(batch.left_out == 0 for batch in _batches(records, tokenizer, 2, tokens_per_row=2000))


def test_ids_say_what_the_rows_hold(records, tokenizer):
    """Each row can be made again from its id and position alone."""
    template, by_id = conversation("plain"), {r.id: r for r in records}
    (batch,) = _batches(records, tokenizer, 1)
    shared = len(image_prefix(tokenizer, template, visual_tokens=17)[0])
    for number, name in enumerate(batch.ids):
        record_id, packed = name.split(":")
        questions = draw(by_id[record_id], spec=SPEC, rng=np.random.default_rng((SPEC.seed, 1, number)))
        ids = {q.id.split("#", 1)[1]: q for q in questions}
        tokens = [
            token
            for key in packed.split(",")
            for token in turn_ids(tokenizer, template, ids[key].text, ids[key].answer)[0]
        ]
        assert batch.tokens[number, shared : shared + len(tokens)].tolist() == tokens


def test_every_kind_is_drawn_by_its_weight_whatever_the_number_of_its_questions(records):
    """The first of each draw: a kind with several questions is no likelier than its weight says."""
    record = next(r for r in records if len(r.objects) >= 3)
    rng, counts = np.random.default_rng(0), collections.Counter()
    spec = dataclasses.replace(SPEC, task_weights={"hbb": 1.0, "grounding": 1.0, "vqa": 2.0}, max_questions=1)
    for _ in range(2000):
        (question,) = draw(record, spec=spec, rng=rng)
        counts[question.task] += 1
    for kind, share in (("hbb", 0.25), ("grounding", 0.25), ("vqa", 0.5)):
        assert counts[kind] / 2000 == pytest.approx(share, abs=0.05)


def test_no_question_is_drawn_twice_and_kinds_without_truth_are_ignored(records):
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(SPEC, task_weights={"vqa": 1.0, "hbb": 1.0, "obb": 1.0}, max_questions=99)
    for record in records:
        upright = dataclasses.replace(record, tasks=tuple(task for task in record.tasks if task is not Task.OBB))
        ids = [q.id for q in draw(upright, spec=spec, rng=rng)]
        assert len(set(ids)) == len(ids) == len(record.turns) + 1
        assert not any("#obb#" in name for name in ids)


def test_an_image_that_does_not_decode_names_its_record(records, tokenizer):
    broken = [dataclasses.replace(records[0], image=b"no image")]
    with pytest.raises(EarthGPTError, match=records[0].id):
        next(train_iterator(broken, spec=SPEC, tokenizer=tokenizer, threads=0))


@pytest.mark.parametrize("name", ["plain", "v1"])
def test_rows_too_short_for_their_beginning_are_refused_at_once(records, tokenizer, name):
    shared = len(image_prefix(tokenizer, conversation(name), visual_tokens=17)[0])
    spec = dataclasses.replace(SPEC, conversation=name, tokens_per_row=shared)
    with pytest.raises(EarthGPTError, match=f"more than the {shared} tokens"):
        train_iterator(records, spec=spec, tokenizer=tokenizer)
    next(train_iterator(records, spec=dataclasses.replace(spec, tokens_per_row=shared + 1), tokenizer=tokenizer))
