"""Images, the tokenizer, chat templates, questions and samples."""

import copy
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import load
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.input.images import FILL, load_square, pad_to_square
from earthgpt_jax.input.prompts.chat_template import AnswerEnd, chat_template
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import (
    QUESTION_TASKS,
    BoxStyle,
    build_question,
    evaluation_questions,
    question_indices,
)
from earthgpt_jax.input.prompts.templates import question_templates
from earthgpt_jax.input.sequences import build_sample, generation_prompt, image_prefix, open_turn_ids, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano

BOX_STYLE = BoxStyle(decimals=2)
PLAIN = chat_template("plain")


@pytest.fixture(scope="module")
def records():
    source = SyntheticSource("train", 24)
    return [source[i] for i in range(24)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(nano.dialogues(), vocab_size=640, path=path)
    return Tokenizer(path)


def _png(array: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG", **options)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------- images
def test_an_image_is_padded_with_the_mean_colour():
    square = pad_to_square(np.full((2, 5, 3), 9, np.uint8))
    assert square.shape == (5, 5, 3)
    assert (square[0] == FILL).all() and (square[3:] == FILL).all() and (square[1:3] == 9).all()


def test_sixteen_bits_are_stretched_and_grey_becomes_three_bands():
    band = np.linspace(1000, 3000, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = decode(_png(band))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert image.min() == 0 and image.max() == 255 and (image[..., 0] == image[..., 2]).all()


def test_a_truncated_or_foreign_file_is_an_error():
    data = _png(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    for bad in (data[: len(data) // 2], b"", b"not an image"):
        with pytest.raises(EarthGPTError, match="cannot be decoded"):
            decode(bad)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["tall", "wide", "tiny", "grey"])
def test_pad_and_resize_equal_the_accessory_to_the_bit(goldens, name):
    arrays = np.load(goldens / "preprocess" / "padded_resize_224.npz")
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (earthgpt.CLIP_MEAN, earthgpt.CLIP_STD))
    pixels = np.round((arrays[f"{name}/output"] * std + mean) * 255).astype(np.uint8)
    got = load_square(_png(arrays[f"{name}/input"]), 224)
    np.testing.assert_array_equal(got, pixels.transpose(1, 2, 0))


# ------------------------------------------------------------------------------------------- tokenizer
def test_the_tokenizer_has_llamas_layout(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 0, 640)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("75")][-2:] == ["7", "5"]  # single digits
    for text in ("two ships", "café 船", "[0.12,0.34]"):  # byte fallback: nothing is unknown
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids, spans = tokenizer.encode_with_spans("two ships")
    assert ids == tokenizer.encode("two ships") and spans[-1][1] == len("two ships")


def test_training_a_tokenizer_is_deterministic_and_a_bad_file_is_an_error(tmp_path, tokenizer):
    path = tmp_path / "again.model"
    train_tokenizer(nano.dialogues(), vocab_size=640, path=path)
    assert Tokenizer(path).fingerprint == tokenizer.fingerprint
    (tmp_path / "bad.model").write_bytes(b"nothing")
    with pytest.raises(EarthGPTError, match=r"bad\.model"):
        Tokenizer(tmp_path / "bad.model")


# --------------------------------------------------------------------------------------- chat template
def test_answers_and_their_separators_are_supervised(tokenizer):
    text, spans = PLAIN.dialogue([("Where?", "Here."), ("And?", "There.")])
    assert text == "\n\n### Human: Where?\n### Assistant: Here.\n### Human: And?\n### Assistant: There.\n###"
    assert [text[start:end] for start, end in spans] == [" Here.\n###", " There.\n###"]


def test_eos_takes_the_place_of_the_separator_after_an_answer(tokenizer):
    template = chat_template("plain_eos")
    turns = [("Where?", "Here."), ("And?", "There.")]
    ids = [turn_ids(tokenizer, template, *turn) for turn in turns]
    for (tokens, weights), (question, answer) in zip(ids, turns, strict=True):
        assert tokenizer.decode(tokens) == f"Human: {question}\n### Assistant: {answer}"
        assert tokens.count(tokenizer.eos_id) == 1 and tokens[-1] == tokenizer.eos_id and weights[-1] == 1.0
    # A dialogue is prompted as it is trained: earlier answers end with EOS as well.
    prompt = open_turn_ids(tokenizer, template, "More?", history=turns)
    assert prompt[: len(ids[0][0]) + len(ids[1][0])] == [*ids[0][0], *ids[1][0]]
    assert chat_template("plain").end_ids(tokenizer) == []


def test_a_tokenizer_without_eos_cannot_end_answers_with_it(tokenizer):
    without = copy.copy(tokenizer)
    without.eos_id = None
    with pytest.raises(EarthGPTError, match=r"'v1_eos': expected a tokenizer with an EOS token.*choose 'v1'"):
        PromptConfig(
            tasks=("vqa",), tokenizer=without, chat_template="v1_eos", box_style=BOX_STYLE, max_turn_tokens=9, seed=0
        )
    assert chat_template("v1").end_ids(without) == []


def test_recipes_end_answers_with_eos_except_for_that_of_the_accessory():
    recipes = [path.stem for path in Path("configs").glob("*.py")]
    ends = {recipe: chat_template(load(f"{recipe}:instruct").data.chat_template).answer_end for recipe in recipes}
    assert len(ends) > 7
    assert {recipe for recipe, end in ends.items() if end is AnswerEnd.SEPARATOR} == {"sphinx_light"}
    assert load("sphinx_light:instruct").data.json_share == 0 and load("earthgpt_7b:instruct").data.json_share == 0.2


def test_an_unknown_chat_template_gets_a_suggestion():
    with pytest.raises(EarthGPTError, match="did you mean 'plain'"):
        chat_template("plan")


@pytest.mark.golden
def test_prompt_and_labels_equal_the_accessory(goldens):
    """Exactly, except for `repeated_answer`, where upstream supervises an answer's words in the human's turn."""
    recipe = chat_template(load("sphinx_light:instruct").data.chat_template)
    folder = goldens / "conversation"
    arrays = np.load(folder / "dialogues.npz")
    tokenizer = Tokenizer(folder / "tokenizer.model.v1")
    dialogues = json.loads((folder / "dialogues.json").read_text())["dialogues"]
    assert len(dialogues) == 6
    for row in dialogues:
        name = row["name"]
        template = dataclasses.replace(recipe, system=row["system"])
        words = [turn["value"] for turn in row["turns"]]
        text, spans = template.dialogue(list(zip(words[::2], words[1::2], strict=True)))
        assert text == row["prompt"]
        ids, offsets = tokenizer.encode_with_spans(text)
        assert [tokenizer.bos_id, *ids, tokenizer.eos_id] == arrays[f"{name}/ids_full"].tolist()
        labels = np.zeros(160, int)
        for position, (token, (begin, _)) in enumerate(zip(ids, offsets, strict=True), start=1):
            if position < 160 and any(start <= begin < end for start, end in spans):
                labels[position] = token
        same = bool((labels == arrays[f"{name}/text/labels"]).all())
        assert same != (name == "repeated_answer"), name


# ------------------------------------------------------------------------------------------- questions
def test_every_evaluation_question_is_built_once(records):
    record = next(r for r in records if len(r.objects) >= 2)
    questions = evaluation_questions(record, box_style=BOX_STYLE)
    assert len({q.id for q in questions}) == len(questions)
    counts = {task: sum(q.task == task for q in questions) for task in Task}
    phrases = sum(bool(item.phrase) for item in record.objects)
    assert counts == {
        "classification": 1, "caption": 1, "vqa": len(record.turns), "region_caption": phrases,
        "grounding": phrases, "hbb": 1, "obb": 1,
    }  # fmt: skip
    caption = next(q for q in questions if q.task == "caption")
    assert caption.references == record.references


def test_tasks_share_templates_only_for_false_premises():
    table = question_templates()
    assert set(table) == set(QUESTION_TASKS)
    # Questions about absent objects use the templates of present ones.
    shared = {"absent_grounding": "grounding", "absent_hbb": "class_hbb", "absent_obb": "class_obb"}
    assert all(table[task] == table[other] for task, other in shared.items())
    distinct = [texts for task, texts in table.items() if task not in shared]
    assert len({text for texts in distinct for text in texts}) == sum(map(len, distinct))


def test_a_record_without_objects_has_no_grounding_questions():
    record = next(r for r in (SyntheticSource("train", 400)[i] for i in range(400)) if not r.objects)
    assert not list(question_indices(record, "grounding"))
    assert build_question(record, "hbb", 0, box_style=BOX_STYLE).answer == "There are no objects in the image."


# --------------------------------------------------------------------------------------------- samples
def test_ids_of_a_sample_equal_the_joint_tokenization(records, tokenizer):
    for record in records[:8]:
        questions = evaluation_questions(record, box_style=BOX_STYLE)
        prefix = image_prefix(tokenizer, PLAIN, visual_tokens=17)
        sample = build_sample(questions, prefix=prefix, tokenizer=tokenizer, chat_template=PLAIN)
        shared = len(prefix[0])
        assert len(questions) >= 2
        for number, question in enumerate(questions, start=1):
            inside = sample.question_index == number
            joint = tokenizer.encode(PLAIN.dialogue([(question.text, question.answer)])[0])
            assert [*tokenizer.encode(PLAIN.prefix), *sample.tokens[inside]] == joint
            np.testing.assert_array_equal(sample.positions[inside], shared + np.arange(inside.sum()))
            supervised = tokenizer.decode(sample.tokens[inside][sample.loss_weights[inside] > 0].tolist())
            assert supervised.strip() == f"{question.answer}\n###".strip()
            assert sample.loss_weights[np.flatnonzero(inside)[0]] == 0  # a turn begins with the question
        assert not sample.loss_weights[sample.question_index == 0].any()


def test_image_slots(tokenizer):
    tokens, slots = image_prefix(tokenizer, PLAIN, visual_tokens=3)
    assert tokens[:6].tolist() == [1, 0, 0, 0, 0, 0]
    assert slots[:6].tolist() == [TEXT_SLOT, START_SLOT, 0, 1, 2, END_SLOT]
    assert (slots[6:] == TEXT_SLOT).all()


def test_a_generation_prompt_is_the_beginning_of_the_training_sample(records, tokenizer):
    for question in evaluation_questions(records[0], box_style=BOX_STYLE):
        tokens, _ = generation_prompt(tokenizer, PLAIN, question.text, visual_tokens=17)
        ids, weights = turn_ids(tokenizer, PLAIN, question.text, question.answer)
        prefix, _ = image_prefix(tokenizer, PLAIN, visual_tokens=17)
        training = [*prefix, *ids]
        assert training[: len(tokens)] == tokens.tolist()
        assert len(ids) - int(sum(weights)) == len(tokens) - len(prefix)  # the answer follows


def test_load_square_resizes(records):
    assert load_square(records[0].image, 32).shape == (32, 32, 3)


def test_every_ending_of_an_answer_is_known(tokenizer):
    endings = PLAIN.separator_ids(tokenizer)
    for answer in ("yes", "3", "in the image.", "[0.12,0.34]", "Really?"):
        ids = tuple(tokenizer.encode(PLAIN.dialogue([("Q", answer)])[0]))
        assert any(ids[-len(ending) :] == ending for ending in endings), answer
