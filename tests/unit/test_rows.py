"""Rows for any text: ids are those of a joint tokenisation, and no question is ever cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.input.conversation import SEPARATOR, conversation
from earthgpt_jax.input.questions import Question
from earthgpt_jax.input.rows import build_row, image_prefix, prompt, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from tests import nano

VISUAL = 5
# Also what a source may hold by accident: the separator's characters, brackets, spaces at the ends, no text.
TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab 01.#\n[];,", max_size=40),
    st.sampled_from(["", " ", "yes", " yes ", "\n", "#", "###", "[0.12,0.34,0.56,0.78]", "café 船", "a\0b", "▁"]),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(nano.dialogues(), vocab_size=512, path=path)
    return Tokenizer(path)


def _question(number: int, text: str, answer: str) -> Question:
    return Question(
        id=f"r#vqa#{number}", record_id="r", task="vqa", kind="", text=text, answer=answer, references=(answer,)
    )


def _row(asked, tokenizer, template, length):
    prefix = image_prefix(tokenizer, template, visual_tokens=VISUAL)
    return build_row(asked, prefix=prefix, tokenizer=tokenizer, conversation=template, tokens_per_row=length)


def _check_joint(tokenizer: Tokenizer, name: str, question: str, answer: str) -> None:
    template = conversation(name)
    text, ((start, _),) = template.dialogue([(question, answer)])
    ids, weights = turn_ids(tokenizer, template, question, answer)
    assert [*tokenizer.encode(template.prefix), *ids] == tokenizer.encode(text)
    supervised = int(sum(weights))
    assert 0 < supervised < len(ids)  # the separator at least, never the question
    assert weights == [0.0] * (len(ids) - supervised) + [1.0] * supervised
    assert text[start:] == f" {answer}{SEPARATOR}"
    tokens, _ = prompt(tokenizer, template, question, visual_tokens=VISUAL)
    prefix, _ = image_prefix(tokenizer, template, visual_tokens=VISUAL)
    # Generation begins where supervision does, behind the very same ids.
    assert tokens.tolist() == [*prefix, *ids[: len(ids) - supervised]]


@given(name=st.sampled_from(["v1", "plain"]), question=TEXTS, answer=TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_turn_is_tokenised_as_in_the_joint_text(tokenizer, name, question, answer):
    _check_joint(tokenizer, name, question, answer)


@pytest.mark.golden
@given(name=st.sampled_from(["v1", "plain"]), question=TEXTS, answer=TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_turn_is_tokenised_as_in_the_joint_text_by_a_32000_piece_tokenizer(goldens, name, question, answer):
    _check_joint(Tokenizer(goldens / "conversation" / "tokenizer.model.v1"), name, question, answer)


@given(
    turns=st.lists(st.tuples(st.text("abc ?", max_size=30), st.text("xyz .", max_size=60)), max_size=6),
    length=st.integers(20, 160),
)
@settings(max_examples=80, deadline=None)
def test_a_row_holds_whole_questions_and_counts_the_others(tokenizer, turns, length):
    template = conversation("plain")
    shared = len(image_prefix(tokenizer, template, visual_tokens=VISUAL)[0])
    asked = [_question(number, *turn) for number, turn in enumerate(turns)]
    row = _row(asked, tokenizer, template, length)

    assert len(row.questions) + row.left_out == len(asked)
    assert [q for q in asked if q in row.questions] == list(row.questions)  # the order drawn
    used = int(row.segments.sum())
    assert used <= length and row.segments.tolist() == [1] * used + [0] * (length - used)
    assert set(row.branches.tolist()) == set(range(len(row.questions) + 1))
    for branch, question in enumerate(row.questions, start=1):
        inside = row.branches == branch
        ids, weights = turn_ids(tokenizer, template, question.text, question.answer)
        assert row.tokens[inside].tolist() == ids and row.loss_weights[inside].tolist() == weights
        assert row.positions[inside].tolist() == list(range(shared, shared + len(ids)))
    for question in asked:  # whatever is missing did not fit behind the rest
        if question not in row.questions:
            assert used + len(turn_ids(tokenizer, template, question.text, question.answer)[0]) > length


def test_a_question_too_long_for_any_row_leaves_room_for_the_next(tokenizer):
    asked = [_question(0, "Where?", "here " * 200), _question(1, "Is it?", "yes")]
    row = _row(asked, tokenizer, conversation("plain"), 64)
    assert [q.id for q in row.questions] == ["r#vqa#1"] and row.left_out == 1
    assert row.loss_weights.sum() > 0


def test_dtypes_and_an_empty_row(tokenizer):
    row = _row([], tokenizer, conversation("plain"), 40)
    assert not row.loss_weights.any() and row.left_out == 0
    for name in ("tokens", "positions", "segments", "branches", "image_slots"):
        assert getattr(row, name).dtype == np.int32 and getattr(row, name).shape == (40,)
