"""Detection answers of scenes with more objects than may be listed."""

import dataclasses
import functools

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind, Square, format_detection, parse, rect_to_polygon, shortlist
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import load
from earthgpt_jax.input.pipeline import train_batches
from earthgpt_jax.input.prompts.box_budget import fit_to_budget
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import BoxStyle, build_question
from earthgpt_jax.input.sequences import turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from earthgpt_jax.records import UNKNOWN_CLASSES, Object, Task
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano
from tests.support.in_memory import packed_sequences

SQUARE = Square(100, 100)
SHIPS = [rect_to_polygon(10 * i, 50, 10 * i + side, 50 + side) for i, side in enumerate((3, 9, 5, 7, 5))]
GROUPS = {"ship": SHIPS, "bus": [rect_to_polygon(0, 0, 2, 2)] * 3}


def _text(most: int) -> str:
    chosen = shortlist(GROUPS, limit=most)
    return format_detection(chosen.groups, square=SQUARE, decimals=2, kind=BoxKind.HBB, rest=chosen.rest)


def test_the_largest_boxes_are_listed_in_the_usual_order_and_the_others_counted():
    assert _text(3) == (
        "There are <p>three ships</p>[0.10,0.50,0.19,0.59;0.20,0.50,0.25,0.55;0.30,0.50,0.37,0.57] in the image; "
        "not listed: three buses and two more ships."
    )  # of two equals, the left one
    assert _text(7).endswith(" in the image; not listed: one more bus.")
    assert _text(1).startswith("There is <p>one ship</p>[")


@pytest.mark.parametrize("most", [1, 4, 7, 8, 99])
def test_every_box_is_listed_or_counted(most):
    parsed = parse(_text(most))
    assert len(parsed.boxes) == min(most, 8) and not parsed.rejections
    assert (_text(most) == format_detection(GROUPS, square=SQUARE, decimals=2, kind=BoxKind.HBB)) == (most >= 8)


def test_the_order_of_the_annotation_changes_nothing():
    mixed = {label: boxes[::-1] for label, boxes in reversed(GROUPS.items())}
    for most in range(1, 9):
        one, two = shortlist(GROUPS, limit=most), shortlist(mixed, limit=most)
        assert one.rest == two.rest
        assert {k: np.array(v).tolist() for k, v in one.groups.items()} == {
            k: np.array(v).tolist() for k, v in two.groups.items()
        }


def test_batches_report_unlisted_objects(tmp_path):
    path = tmp_path / "tokenizer.model"
    train_tokenizer(nano.dialogues(), vocab_size=512, path=path)
    source = SyntheticSource("train", 30)
    records = [record for record in (source[i] for i in range(30)) if len(record.objects) >= 3][:4]
    sequences = {most: packed_sequences(records, Tokenizer(path), weights={"hbb": 1.0}, seq_len=900, max_images=1,
                       box_style=BoxStyle(decimals=2, max_boxes=most)) for most in (0, 2)}  # fmt: skip
    (_, whole), (_, batch) = (next(train_batches(each)) for each in sequences.values())
    assert batch.unlisted.sum() == sum(len(record.objects) - 2 for record in records) and not whole.unlisted.any()
    assert whole.tokens.astype(bool).sum() > batch.tokens.astype(bool).sum()
    for task in ("hbb", "obb", "grounded_caption"):
        question = build_question(records[0], task, 0, box_style=BoxStyle(decimals=2, max_boxes=2))
        assert len(parse(question.answer).boxes) == 2 and question.unlisted == len(records[0].objects) - 2
    assert Task.HBB in records[0].tasks


@pytest.mark.parametrize("task", ["hbb", "obb", "grounded_caption", "class_hbb"])
def test_an_answer_longer_than_a_sequence_lists_the_boxes_that_fit(tmp_path, task):
    path = tmp_path / "tokenizer.model"
    train_tokenizer(nano.dialogues(), vocab_size=512, path=path)
    tokenizer, template = Tokenizer(path), chat_template("plain")
    ships = [Object(label="ship", polygon=rect_to_polygon(8 * i, 50, 8 * i + 2 + i / 2, 54 + i)) for i in range(12)]
    record = dataclasses.replace(SyntheticSource("train", 1)[0], objects=tuple(ships), references=("A port.",))

    def length(question):
        return len(turn_ids(tokenizer, template, question.text, question.answer)[0])

    options = {"annotated": UNKNOWN_CLASSES, "seed": 3}
    fit = functools.partial(
        fit_to_budget, tokenizer=tokenizer, template=template, box_style=BoxStyle(decimals=2), **options
    )
    question = build_question(record, task, 0, box_style=BoxStyle(decimals=2), rng=np.random.default_rng(2))
    shortest = build_question(record, task, 0, box_style=BoxStyle(decimals=2, max_boxes=1))
    for max_tokens in range(length(question) - 1, length(dataclasses.replace(shortest, text=question.text)) - 1, -29):
        fitted = fit(question, record, max_tokens=max_tokens)
        count = len(parse(fitted.answer).boxes)
        assert length(fitted) <= max_tokens and fitted.text == question.text
        assert 1 <= count < 12 and fitted.unlisted == 12 - count
        if count < 11:  # one more would not fit
            more = build_question(record, task, 0, box_style=BoxStyle(decimals=2, max_boxes=count + 1))
            assert length(dataclasses.replace(more, text=question.text)) > max_tokens
    assert fit(question, record, max_tokens=length(question)) is question
    assert fit(question, record, max_tokens=20) is question  # not a single box fits
    batch = packed_sequences([record], tokenizer, weights={task: 1.0}, seq_len=300)[0]
    assert batch.unlisted.tolist()[0] > 0


def test_max_boxes_is_a_field_of_the_recipe_and_off_by_default():
    assert load("tiny:instruct").data.max_boxes == 0
    assert load("tiny:instruct", ["--config.data.max_boxes=20"]).data.max_boxes == 20
    with pytest.raises(EarthGPTError, match="max_boxes: expected a number of boxes, or 0 for no limit, got -1"):
        load("tiny:instruct", ["--config.data.max_boxes=-1"])
