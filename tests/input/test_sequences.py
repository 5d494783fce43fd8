"""Samples and packed sequences of any text: ids are those of a joint tokenization, and no question is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import QuestionContext
from earthgpt_jax.input.prompts.chat_template import SEPARATOR, AnswerEnd, chat_template
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.sequences import build_sample, generation_prompt, image_prefix, pack_samples, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from tests.support import nano

VISUAL = 5
# Includes what a source may hold by accident: the separator's characters, brackets, outer spaces, no text.
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
        id=f"r#vqa#{number}",
        record_id="r",
        task="vqa",
        question_type="",
        text=text,
        answer=answer,
        references=(answer,),
    )


def _check_joint(tokenizer: Tokenizer, name: str, question: str, answer: str) -> None:
    template = chat_template(name)
    text, ((start, _),) = template.dialogue([(question, answer)])
    ids, weights = turn_ids(tokenizer, template, question, answer)
    end = [] if template.answer_end is AnswerEnd.SEPARATOR else [tokenizer.eos_id]
    assert [*tokenizer.encode(template.prefix), *ids] == [*tokenizer.encode(text), *end]
    supervised = int(sum(weights))
    assert 0 < supervised < len(ids)  # the end of the answer at least, never the question
    assert weights == [0.0] * (len(ids) - supervised) + [1.0] * supervised
    assert text[start:] == f" {answer}" + ("" if end else SEPARATOR)
    tokens, _ = generation_prompt(tokenizer, template, question, visual_tokens=VISUAL)
    prefix, _ = image_prefix(tokenizer, template, visual_tokens=VISUAL)
    # Generation begins where supervision does, after the same ids.
    assert tokens.tolist() == [*prefix, *ids[: len(ids) - supervised]]


@given(name=st.sampled_from(["v1", "plain", "v1_eos", "plain_eos"]), question=TEXTS, answer=TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_turn_is_tokenized_as_in_the_joint_text(tokenizer, name, question, answer):
    _check_joint(tokenizer, name, question, answer)


@pytest.mark.golden
@given(name=st.sampled_from(["v1", "plain", "v1_eos", "plain_eos"]), question=TEXTS, answer=TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_turn_is_tokenized_as_in_the_joint_text_by_a_32000_piece_tokenizer(goldens, name, question, answer):
    _check_joint(Tokenizer(goldens / "conversation" / "tokenizer.model.v1"), name, question, answer)


@given(
    dialogues=st.lists(
        st.lists(st.tuples(st.text("abc ?", max_size=30), st.text("xyz .", max_size=60)), max_size=4), max_size=4
    ),
    question_context=st.sampled_from(QuestionContext),
    spare=st.integers(0, 50),
    name=st.sampled_from(["plain", "plain_eos"]),
)
@settings(max_examples=80, deadline=None)
def test_a_packed_sequence_concatenates_its_samples(tokenizer, dialogues, question_context, spare, name):
    template = chat_template(name)
    prefix = image_prefix(tokenizer, template, visual_tokens=VISUAL)
    samples = [
        build_sample(
            [_question(number, *turn) for number, turn in enumerate(turns)], prefix=prefix, tokenizer=tokenizer,
            chat_template=template, question_context=question_context,
        )
        for turns in dialogues
    ]  # fmt: skip
    used = sum(map(len, samples))
    batch = pack_samples(samples, seq_len=used + spare, visual_tokens=VISUAL)
    segments = [number for number, sample in enumerate(samples, 1) for _ in range(len(sample))]
    assert batch.segments[0].tolist() == segments + [0] * spare
    for place, (sample, turns) in enumerate(zip(samples, dialogues, strict=True)):
        inside = batch.segments[0] == place + 1
        for name in ("tokens", "positions", "question_index", "loss_weights"):
            assert getattr(batch, name)[0][inside].tolist() == getattr(sample, name).tolist()
        slots = batch.image_slots[0][inside]
        assert slots[slots >= 0].tolist() == [*range(place * VISUAL, (place + 1) * VISUAL)]
        ids = [turn_ids(tokenizer, template, *turn) for turn in turns]
        assert sample.tokens.tolist() == [*prefix[0], *(token for tokens, _ in ids for token in tokens)]
        assert sample.loss_weights.tolist() == [0.0] * len(prefix[0]) + [w for _, weights in ids for w in weights]
        if question_context is QuestionContext.DIALOGUE:
            assert sample.positions.tolist() == [*range(len(sample))] and not sample.question_index.any()
        else:
            assert sample.question_index.max() == len(turns)
            for number, (tokens, _) in enumerate(ids, 1):
                positions = sample.positions[sample.question_index == number].tolist()
                assert positions == [*range(len(prefix[0]), len(prefix[0]) + len(tokens))]
    if used:
        with pytest.raises(EarthGPTError, match=f"samples of at most {used - 1} tokens in total, got {used}"):
            pack_samples(samples, seq_len=used - 1, visual_tokens=VISUAL)


def test_dtypes_and_an_empty_sequence():
    batch = pack_samples([], seq_len=40, visual_tokens=VISUAL)
    assert not batch.loss_weights.any() and batch.loss_weights.dtype == np.float32
    for name in ("tokens", "positions", "segments", "question_index", "image_slots"):
        assert getattr(batch, name).dtype == np.int32 and getattr(batch, name).shape == (1, 40)
    assert batch.images.shape[:2] == (1, 0)
