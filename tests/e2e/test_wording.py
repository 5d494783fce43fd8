"""The embedded `tiny` in free words and in JSON, compared with its default templates (`scripts/bench/wording.py`)."""

import importlib.util
from pathlib import Path

import pytest

from earthgpt_jax.input.prompts.chat_template import AnswerEnd, chat_template
from earthgpt_jax.models import model_dir
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource

SCRIPT = Path("scripts/bench/wording.py")
# CIDEr is at most 10, other figures at most 1.
TOLERANCE = {task: 0.3 if task in (Task.CAPTION, Task.REGION_CAPTION) else 0.03 for task in Task}


@pytest.fixture(scope="module")
def wording():
    spec = importlib.util.spec_from_file_location("wording", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_wording_asks_the_same_questions_and_json_the_same_boxes(wording):
    records = [SyntheticSource("test", 6)[index] for index in range(6)]
    examples = wording.select_examples(records, decimals=2, per_image={"vqa": 1, "grounding": 1})
    asked = wording.variants(examples, 2)
    assert set(asked) == {"default", "free", "json", "json, free"}
    ids = [example.question.id for example in examples]
    assert [example.question.id for example in asked["free"]] == ids
    for default, free in zip(examples, asked["free"], strict=True):
        assert free.question.text != default.question.text and free.question.answer == default.question.answer
        assert free.question.references == default.question.references
    boxes = [example for example in examples if example.question.task in ("hbb", "obb")]
    predictions = {}
    for name in ("json", "json, free"):
        assert [example.question.id for example in asked[name]] == [example.question.id for example in boxes]
        perfect = [
            wording.Prediction.from_answer(example.record, example.question, example.question.answer)
            for example in asked[name]
        ]
        assert wording.parse_rate(perfect) == 1.0 and wording.figures(perfect) == {"hbb": 1.0, "obb": 1.0}
        predictions[name] = perfect
    cut_off = [prediction.with_answer(prediction.prediction[:-1]) for prediction in predictions["json"]]
    assert wording.parse_rate(cut_off) == 0.0


@pytest.mark.slow
def test_tiny_obeys_free_words_and_answers_in_json_when_it_is_asked_to(wording, tmp_path):
    if chat_template(model_dir.read_config("tiny").chat_template).answer_end is AnswerEnd.SEPARATOR:
        pytest.skip("the embedded tiny was trained with few wordings and without JSON")
    source = SyntheticSource("test", 300)
    results = wording.measure("tiny", source, out=tmp_path)
    default = results["default"]
    moved = {task: default[task] - results["free"][task] for task in Task}
    assert all(abs(moved[task]) <= TOLERANCE[task] for task in Task), moved
    for name in ("json", "json, free"):
        assert results[name]["parse rate"] >= 0.99, name
        assert all(results[name][task] >= default[task] - 0.03 for task in ("hbb", "obb")), results
