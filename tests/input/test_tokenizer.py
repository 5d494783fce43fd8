"""Tokenizers of four kinds give the ids of the libraries that they come from, and prompts and labels made of them."""

from __future__ import annotations

import functools
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.batch import TEXT_SLOT
from earthgpt_jax.input.prompts.chat_template import SEPARATOR, AnswerEnd, chat_template
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.sequences import build_sample, generation_prompt, image_prefix, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, copy_tokenizer, find_tokenizer
from tests.support.tokenizers import KINDS, build_tokenizer

STRINGS = 10_000
_MARKERS = (
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>",
    "<|pad|>", "[SEG]", "### Human:", "\n###", "<p>two ships</p>[0.12,0.34]",
)  # fmt: skip
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "     ", "\n\n\t\r", ".,:;[]()<>|#'\"!?-_/",
    "éüßñçøÅ", "船舶卫星图像", "кораблисамолёт", "🚢🛰️✈", "\u0301\u200b\ufeff\u00a0\u2028", "\x00\x1f",
)  # fmt: skip


@functools.cache
def _strings() -> list[str]:
    """Return random strings: letters, digits, spaces, newlines, other scripts, combining marks, markers in the text."""
    rng = random.Random(0)
    texts = ["", " ", "\n", "###", "1234567", "it's  we'LL"]
    while len(texts) < STRINGS:
        parts = []
        for _ in range(rng.randint(1, 8)):
            if rng.random() < 0.15:
                parts.append(rng.choice(_MARKERS))
            elif rng.random() < 0.1:
                parts.append(chr(rng.choice((rng.randrange(0x20, 0xD7FF), rng.randrange(0xE000, 0x10FFFF)))))
            else:
                alphabet = rng.choice(_ALPHABETS)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9))))
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, build_tokenizer(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tokenizer(source) -> Tokenizer:
    return Tokenizer(source[1])


def test_ids_equal_those_of_the_library_on_10000_strings(source, tokenizer):
    kind, path = source
    if kind == "llama2":
        upstream = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode
    else:
        transformers = pytest.importorskip("transformers")
        fast = transformers.PreTrainedTokenizerFast.from_pretrained(path.parent)

        def upstream(texts):
            return fast(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    texts = _strings()
    expected = upstream(texts)
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text) == ids, repr(text)


def test_texts_come_back_and_spans_cover_them(source, tokenizer):
    for text in _strings()[:1500]:
        ids, spans = tokenizer.encode_with_spans(text)
        assert ids == tokenizer.encode(text) and len(spans) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        decoded, ends = tokenizer.decode_with_spans(ids)
        assert decoded == tokenizer.decode(ids)
        assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])][: len(ends)]
        assert not ids or ends[-1][1] == len(decoded)
        if source[0] in ("smollm2", "llama3"):  # the others normalize the text, or take a space from its beginning
            assert decoded == text


def test_special_tokens_follow_the_source(source, tokenizer):
    kind, path = source
    bos, eos = {
        "llama2": ("<s>", "</s>"), "smollm2": (None, "<|im_end|>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
        "qwen": (None, "<|im_end|>"),
    }[kind]  # fmt: skip
    if kind == "llama2":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        expected = (processor.piece_to_id(bos), processor.piece_to_id(eos))
    else:
        upstream = tokenizers.Tokenizer.from_file(str(path))
        expected = (None if bos is None else upstream.token_to_id(bos), upstream.token_to_id(eos))
        whole = upstream.encode("ships").ids
        assert whole == tokenizer.start_ids + tokenizer.encode("ships")
    assert (tokenizer.bos_id, tokenizer.eos_id) == expected
    assert tokenizer.start_ids == ([] if expected[0] is None else [expected[0]])
    ids = tokenizer.encode("two ships")
    beyond = [tokenizer.eos_id, tokenizer.vocab_size + 3, -1]  # padded vocabularies have ids that no tokenizer has
    text, spans = tokenizer.decode_with_spans([*ids, *beyond])
    assert text == tokenizer.decode([*ids, *beyond]) == "two ships"
    assert [end - start for start, end in spans[len(ids) :]] == [0, 0, 0]


def test_id_0_is_an_ordinary_token_where_the_tokenizer_says_so(source, tokenizer):
    assert (tokenizer.decode([0]) == "!") == (source[0] in ("llama3", "qwen"))


@pytest.mark.parametrize("chat", ["v1", "plain", "v1_eos", "plain_eos"])
def test_labels_are_on_the_answer_and_its_end(tokenizer, chat):
    template = chat_template(chat)
    for question, answer in (("How many ships?", "Two."), ("Where is it?", "[0.12,0.34,0.56,0.78]"), ("Ünï?", "船 13")):
        ids, weights = turn_ids(tokenizer, template, question, answer)
        supervised = [token for token, weight in zip(ids, weights, strict=True) if weight]
        with_eos = template.answer_end is AnswerEnd.EOS
        end = "" if with_eos else SEPARATOR
        assert tokenizer.decode(supervised).strip("\n ") == (answer + end).strip("\n ")
        assert (supervised[-1] == tokenizer.eos_id) == with_eos and tokenizer.eos_id not in ids[:-1]
        assert sorted(weights) == weights  # the answer is the end of the turn
        separators = template.separator_ids(tokenizer)
        ending = any(tuple(ids[-len(separator) :]) == separator for separator in separators)
        assert ending != with_eos or not answer.isascii()
        prompt, slots = generation_prompt(tokenizer, template, question, visual_tokens=3)
        prefix = image_prefix(tokenizer, template, visual_tokens=3)
        asked = Question(
            id="q", record_id="r", task="vqa", question_type="", text=question, answer=answer, references=()
        )
        sample = build_sample([asked],
                              prefix=prefix, tokenizer=tokenizer, chat_template=template)  # fmt: skip
        np.testing.assert_array_equal(sample.tokens[: len(prompt)], prompt)  # generation continues where labels begin
        assert sample.loss_weights[: len(prompt)].sum() == 0 and sample.loss_weights[len(prompt) :].all()
        assert len(sample) == len(prefix[0]) + len(ids)
        start = len(tokenizer.start_ids)
        assert (slots[:start] == TEXT_SLOT).all() and (slots[start : start + 5] != TEXT_SLOT).all()


def test_markers_in_a_question_stay_text(source, tokenizer):
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} - {None, 0}
    for marker in _MARKERS:
        ids, _ = turn_ids(tokenizer, chat_template("plain"), f"What is {marker}?", "Nothing.")
        assert not special & set(ids), marker


def test_a_tokenizer_is_copied_whole_and_pickled_by_its_path(source, tokenizer, tmp_path):
    kind, path = source
    copied = copy_tokenizer(path, tmp_path)
    assert find_tokenizer(tmp_path) == copied and Tokenizer(copied).fingerprint == tokenizer.fingerprint
    assert copied.name == ("tokenizer.model" if kind == "llama2" else "tokenizer.json")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("two ships") == tokenizer.encode("two ships")


def test_a_tokenizer_json_without_its_special_tokens_is_refused(tmp_path):
    path = build_tokenizer("qwen", tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|nowhere|>"}))
    with pytest.raises(EarthGPTError, match=r"expected '<\|nowhere\|>', its eos_token, in the vocabulary"):
        Tokenizer(path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(EarthGPTError, match=r"expected a tokenizer_config\.json or a special_tokens_map\.json"):
        Tokenizer(path)
    path.write_text("{}")
    with pytest.raises(EarthGPTError, match=r"expected a tokenizer\.json"):
        Tokenizer(path)


def test_llama_3s_list_of_tokens_is_passed_over(tmp_path):
    path = build_tokenizer("llama3", tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert find_tokenizer(tmp_path) == path
    with pytest.raises(EarthGPTError, match=r"use the tokenizer\.json of the same model"):
        Tokenizer(tmp_path / "tokenizer.model")
