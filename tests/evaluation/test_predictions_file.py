"""Predictions files: errors that name the line, refused format versions, and the example of the guide."""

import json
import re
from pathlib import Path

import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions_file, scores
from tests.support.answers import answer, truth

HEADER_LINE = predictions_file.header_line({})
GUIDE = Path(__file__).parents[2] / "docs/guides/scoring.md"


def test_a_broken_predictions_file_names_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(EarthGPTError, match="cannot be read"):
        predictions_file.read(path)
    path.write_text(HEADER_LINE + '{"id": \n')
    with pytest.raises(EarthGPTError, match="line 2: cannot be read as JSON"):
        predictions_file.read(path)
    path.write_text("[1]\n")
    with pytest.raises(EarthGPTError, match="expected a predictions file"):
        predictions_file.read(path)
    path.write_text(HEADER_LINE + '{"id": "x"}\n')
    with pytest.raises(EarthGPTError, match=r"line 2: \d+ problems\n  - record_id: missing"):
        predictions_file.read(path)


@pytest.mark.parametrize(("header", "version"), [({}, 1), ({"format_version": 1}, 1), ({"format_version": 3}, 3)])
def test_a_file_of_another_format_version_is_refused_with_what_to_do(tmp_path, header, version):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"header": header}) + "\n" + predictions_file.to_line(answer()))
    with pytest.raises(EarthGPTError, match=f"format 2, got format {version}. Run `earthgpt eval` again"):
        predictions_file.read(path)


def test_the_format_version_is_written_but_not_part_of_the_header(tmp_path):
    predictions_file.write(tmp_path / "p.jsonl", [answer()], header={"model": "m"})
    first = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert first["header"]["format_version"] == predictions_file.FORMAT_VERSION
    header, _ = predictions_file.read_complete(tmp_path / "p.jsonl")
    assert header.keys() == {"model", "questions", "questions_digest", "truth_digest"}


def test_the_example_of_the_guide_can_be_scored(tmp_path):
    [example] = re.findall(r"```json\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "p.jsonl").write_text(example)
    _, predictions = predictions_file.read_complete(tmp_path / "p.jsonl")
    assert scores.score(predictions)["grounding"]["all"]["pr90"] == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objects", [{"label": "ship", "polygon": [10, 10, 30, 10, 30, 30, 10, 30], "difficult": True}]),
        ("objects", []),
        ("references", ["another"]),
        ("object_index", 0),
        ("width", 50),
        ("height", 50),
        ("synonyms", ["boat"]),
        ("sensor", "optical"),
        ("question_type", "count"),
        ("record_id", "other"),
        ("source", "other"),
    ],
)
def test_a_changed_ground_truth_is_refused(tmp_path, field, value):
    path = tmp_path / "p.jsonl"
    predictions_file.write(path, [answer("a", id="1", objects=(truth("ship", 10, 10, 30, 30),))], header={})
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | {field: value})}\n")
    with pytest.raises(EarthGPTError, match="expected the ground truth with digest"):
        predictions_file.read_complete(path)


def test_another_answer_to_the_same_question_keeps_the_digests(tmp_path):
    question = answer("a", id="1", objects=(truth("ship", 10, 10, 30, 30),))
    other = question.with_answer("b", box_format="geochat", frame="image", confidences=(0.5,))
    assert predictions_file.truth_digest([question]) == predictions_file.truth_digest([other])
