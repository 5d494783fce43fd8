"""Predictions files: errors that name the line, refused format versions, and the example of the guide."""

import json
import re
from pathlib import Path

import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions_file, scores
from tests.support.answers import answer

HEADER_LINE = predictions_file.header_line({})
GUIDE = Path(__file__).parents[2] / "docs/guides/scoring.md"


def test_a_broken_predictions_file_names_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(EarthGPTError, match="cannot be read"):
        predictions_file.read(path)
    path.write_text(HEADER_LINE + '{"id": \n')
    with pytest.raises(EarthGPTError, match="line 2: expected JSON"):
        predictions_file.read(path)
    path.write_text("[1]\n")
    with pytest.raises(EarthGPTError, match="expected a predictions file"):
        predictions_file.read(path)
    path.write_text(HEADER_LINE + '{"id": "x"}\n')
    with pytest.raises(EarthGPTError, match="line 2: a field is missing"):
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
    assert header.keys() == {"model", "questions", "questions_digest"}


def test_the_example_of_the_guide_can_be_scored(tmp_path):
    [example] = re.findall(r"```json\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "p.jsonl").write_text(example)
    _, predictions = predictions_file.read_complete(tmp_path / "p.jsonl")
    assert scores.score(predictions)["grounding"]["all"]["pr90"] == 1.0
