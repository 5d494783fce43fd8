"""Phrases with several targets, or none: by hand."""

import json

import pytest

from earthgpt_jax.evaluation import baselines, scores
from earthgpt_jax.evaluation.metrics.multi_target import multi_target
from earthgpt_jax.evaluation.third_party import formats
from tests.support.answers import answer, truth

TARGETS = (truth("car", 0, 0, 20, 20), truth("car", 40, 40, 60, 60))


def _row(text, objects=TARGETS, name="0"):
    return answer(text, id=name, task="multi_grounding", objects=objects)


def test_figures_by_hand():
    rows = [
        _row("[0,0,0.2,0.2;0.4,0.4,0.6,0.6]", name="0"),  # both
        _row("[0,0,0.2,0.2;0,0,0.2,0.2;0.8,0.8,0.9,0.9]", name="1"),  # one of two; a copy and a wrong box
        _row("nothing", (), name="2"),  # no target, no box
        _row("[0.1,0.1,0.3,0.3]", (), name="3"),  # a box without a target
    ]
    found = multi_target(rows)
    assert found["set_f1"] == pytest.approx((1 + 2 / 5 + 1 + 0) / 4)
    assert found["exact"] == 0.5
    second = 400 / (800 + 100)
    assert found["miou"] == pytest.approx((1 + second) / 2, abs=1e-6)
    assert found["giou"] == pytest.approx((1 + second + 1 + 0) / 4, abs=1e-6)
    assert found["ciou"] == pytest.approx((800 + 400) / (800 + 900 + 400), abs=1e-6)


def test_a_box_that_cannot_be_parsed_is_a_wrong_claim():
    found = multi_target([_row("[0,0,0.2,0.2;0.4,0.4,0.6,0.6;0.9,0.1]")])
    assert found["set_f1"] == pytest.approx(4 / 5) and found["parse_rate"] == 0


def test_a_file_with_several_boxes_per_phrase_is_scored_as_sets(tmp_path):
    path = tmp_path / "answers.jsonl"
    entries = [
        {"question_id": 1, "image_id": "a", "answer": "{<0><0><20><20>}", "ground_truth": "{<0><0><20><20>}"},
        {"question_id": 2, "image_id": "b", "answer": "{<0><0><20><20>}",
         "ground_truth": "{<0><0><20><20>}{<40><40><60><60>}"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    file = formats.load(path, file_format=formats.FORMATS["geochat"], task="grounding")
    assert "1 phrases have several targets or none" in file.notes[0]
    cell = scores.score(file.predictions, samples=20)["multi_grounding"]["all"]
    assert cell["set_f1"] == pytest.approx((1 + 2 / 3) / 2) and cell["exact"] == 0.5
    random = scores.score(baselines.shuffled(file.predictions))["multi_grounding"]["all"]
    assert random["set_f1"] == pytest.approx(2 / 3, abs=1e-6)
