"""Scores of predictions: groups, baselines, and what is refused."""

import json

import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import baselines, predictions_file, report, scores
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.questions import select_examples
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource
from tests.support.answers import answer, truth


def _label(i: int, sensor: str, text: str) -> Prediction:
    return Prediction(
        id=f"r{i}", record_id=f"r{i}", task="classification", question_type="", sensor=sensor, source="s", question="?",
        prediction=text, answer="harbor", references=("harbor",), objects=(), object_index=None, width=10, height=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return [
        _label(i, sensor, "harbor" if i % 3 else "river") for i, sensor in enumerate(["sar", "optical", "infrared"] * 4)
    ]


@pytest.fixture(scope="module")
def answered():
    """Constant answers to the questions of every task about a few images."""
    test, train = SyntheticSource("test", 9), SyntheticSource("train", 12)
    return baselines.constant(train, select_examples(test, decimals=3, per_image={"vqa": 3}), decimals=3)


def test_groups_by_hand(rows):
    table = scores.score(rows)
    for group, top1, n in (("all", 8 / 12, 12), ("sar", 0.0, 4), ("optical", 1.0, 4)):
        cell = table["classification"][group]
        assert (cell["top1"], cell["n"]) == (top1, n)
        assert cell.keys() == {"top1", "mean_recall", "macro_f1", "kappa", "n"}


def test_scores_do_not_depend_on_the_order(answered):
    table = scores.score(answered)
    assert set(table) == {task.value for task in Task}
    assert table == scores.score(answered[::-1])
    for task in Task:
        assert scores.HEADLINE[task][0] in table[task.value]["all"], task
    assert scores.HEADLINE.keys() == scores.METRICS.keys()
    assert sum(table["vqa"][s]["n"] for s in ("optical", "sar", "infrared")) == table["vqa"]["all"]["n"]


def test_baselines_are_shown_next_to_each_value(rows):
    table = scores.score(rows)
    combined = scores.with_baselines(table, constant=table, blind={})
    assert combined["classification"]["sar"]["constant"]["top1"] == 0.0
    assert combined["classification"]["sar"]["blind"] == {}
    markdown = report.headline_table(combined).splitlines()
    assert markdown[2] == "| classification, top-1 | 0.667 | 1.000 | 0.000 | 1.000 | 0.667 |  |  | 12 |"
    assert len({line.count("|") for line in markdown}) == 1
    assert json.loads(json.dumps(combined)) == combined


def test_duplicate_empty_and_unknown_predictions_are_refused(rows):
    with pytest.raises(EarthGPTError, match="'r0' is answered twice"):
        scores.score([*rows, rows[0]])
    with pytest.raises(EarthGPTError, match="no predictions"):
        scores.score([])
    other = [Prediction(**{**vars(rows[0]), "task": "counting"})]
    with pytest.raises(EarthGPTError, match="counting cannot be scored; the tasks are classification"):
        scores.score(other)


def test_a_file_is_scored_without_a_model(rows, tmp_path, capsys):
    path, out = tmp_path / "p.jsonl", tmp_path / "s.json"
    path.write_text(predictions_file.header_line({}) + "".join(map(predictions_file.to_line, rows)))
    assert main(["score", str(path), "--json", str(out)]) == 0
    assert "| classification, top-1 | 0.667 [" in capsys.readouterr().out
    table = json.loads(out.read_text())["classification"]
    assert table["sar"]["top1"] == 0.0 and table["class: harbor"]["n"] == 12
    low, high = table["all"]["intervals"]["top1"]
    assert low < 8 / 12 < high
    assert main(["score", str(path), "--json", str(tmp_path / "none" / "s.json")]) == 0
    assert json.loads((tmp_path / "none" / "s.json").read_text()) == json.loads(out.read_text())


def test_classes_sizes_and_sources_by_hand():
    ships = (truth("ship", 0, 0, 10, 10), truth("ship", 100, 100, 150, 150), truth("car", 200, 200, 400, 400))
    text = "<p>two ships</p>[0,0,0.02,0.02;0.9,0.9,0.99,0.99] <p>one car</p>[0.4,0.4,0.8,0.8]"
    size = {"width": 500, "height": 500, "objects": ships}
    rows = [answer(text, id="0", source="a", **size), answer("", id="1", source="b", **size)]
    table = scores.breakdown(rows)["hbb"]
    assert {name: (cell["boxes"], cell["objects"], cell["recall"]) for name, cell in table.items()} == {
        "size: small": (1, 2, 0.5), "size: medium": (1, 2, 0.0), "size: large": (1, 2, 0.5),
        "class: car": (1, 2, 0.5), "class: ship": (2, 4, 0.25), "source: a": (3, 3, 2 / 3), "source: b": (0, 3, 0.0),
    }  # fmt: skip
    assert table["class: ship"]["ap50"] == 0.25 * 0.5 and table["class: car"]["ap50"] == 0.5
