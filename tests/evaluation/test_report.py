"""The report: self-contained, escaped, and explicit about what is wrong, unparsable or no better than a baseline."""

import base64
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.evaluation import predictions_file, report, scores
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.questions import select_examples
from earthgpt_jax.raster.policy import Stretch
from earthgpt_jax.records import Record, Sensor, Task
from earthgpt_jax.synthetic import SyntheticSource


@pytest.fixture(scope="module")
def records():
    return list(SyntheticSource("test", 12))


@pytest.fixture(scope="module")
def answered(records):
    """Correct answers to all questions."""
    examples = select_examples(records, decimals=3, per_image={"vqa": 2, "grounding": 1, "region_caption": 1})
    return [Prediction.from_answer(item.record, item.question, item.question.answer) for item in examples]


def _write(tmp_path, **changes) -> str:
    path = tmp_path / "report.html"
    report.write_page(path, **{"title": "t", "runs": {}, "curves": {}, "images": []} | changes)
    return path.read_text(encoding="utf-8")


def _page_of(tmp_path, records, answered, **changes) -> str:
    table = scores.score(answered)
    runs = {"oracle": scores.with_baselines(table, constant=table, blind={})}
    return _write(tmp_path, runs=runs, images=report.first_images(records, answered, per_sensor=1), **changes)


def test_the_page_is_self_contained_and_complete(records, answered, tmp_path):
    page = _page_of(
        tmp_path, records, answered, title="a < b", notes=["synthetic images"],
        curves={"align": [(i, 3.0 / i) for i in range(1, 50)]},
    )  # fmt: skip
    assert "a &lt; b" in page and "a < b" not in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert page.count("data:image/png;base64,") == 3  # each picture is embedded once, however many views show it
    assert all(f"<h3>{sensor.value}</h3>" in page for sensor in Sensor)
    assert '<span class="tag">synthetic</span>' in page and "horizontal boxes, F1@0.5" in page
    assert "loss of align" in page and "after 49 steps" in page
    assert "bleu4" in page and "accuracy_" in page


def test_the_html_tags_are_balanced(records, answered, tmp_path):
    void = {"meta", "br", "img", "image", "use", "polygon", "path", "link"}

    class Balance(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in void:
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag not in void:
                assert self.open.pop() == tag

    balance = Balance()
    balance.feed(_page_of(tmp_path, records, answered, failures=[], curves={"c": [(1, 2.0)]}))
    assert balance.open == []


def test_the_answers_of_a_model_are_escaped(records, answered, tmp_path):
    evil = '<script>alert(1)</script>"><b onload=x>[0.1,0.2'
    rows = [dataclasses.replace(row, prediction=evil) for row in answered]
    table = scores.score(rows)
    page = _write(
        tmp_path, runs={evil: scores.with_baselines(table, constant={}, blind={})}, notes=[evil],
        curves={evil: [(1, 1.0), (2, 0.5)]}, images=report.first_images(records, rows, per_sensor=1),
        failures=report.parse_failures(rows),
    )  # fmt: skip
    assert "<script" not in page and "<b onload" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_verdicts_and_unparsable_answers(records, answered):
    def verdict(task: str, change) -> str:
        row = next(row for row in answered if row.task == task and (task != "hbb" or len(row.objects) > 1))
        row = dataclasses.replace(row, prediction=change(row.prediction))
        [case] = report.first_images([next(r for r in records if r.id == row.record_id)], [row], per_sensor=1)
        return case.answers[0].verdict

    assert verdict("hbb", lambda text: text) == "correct"
    assert verdict("hbb", lambda text: re.sub(r"\[([^;\]]*)[^\]]*\]", r"[\1]", text, count=1)) in ("partly", "correct")
    assert verdict("hbb", lambda text: "<p>one zebra</p>[0.1,0.1,0.2,0.2]") == "wrong"
    assert verdict("hbb", lambda text: text[: text.index("[") + 4]) == "unparsable"
    assert verdict("grounding", lambda text: "[0.2,0.2,0.1,0.1]") == "unparsable"
    assert verdict("caption", lambda text: "anything") == ""
    assert report.parse_failures(answered) == []
    rows = [dataclasses.replace(row, prediction="[0.2,0.2,0.1,0.1]") for row in answered]
    found = report.parse_failures(rows)
    assert {item.task for item in found} == {"hbb", "obb", "grounding"}
    assert "no area" in found[0].reason


def test_unparsable_answers_are_listed_and_counted(answered, tmp_path):
    rows = [dataclasses.replace(row, prediction="") for row in answered] * 3
    failed = report.parse_failures(rows)
    page = _write(tmp_path, failures=failed)
    assert f"{len(failed)} in total; the first 50 are shown" in page and "empty answer" in page
    assert "None: every answer" in _write(tmp_path, failures=[])
    assert "could not be parsed</h2>" not in _write(tmp_path)


def test_a_value_no_better_than_a_baseline_is_marked(tmp_path):
    def table(value: float) -> scores.Scores:
        return {"classification": {"all": {"top1": value, "n": 4}}}

    better = scores.with_baselines(table(0.5), constant=table(0.25), blind=table(0.4))
    same = scores.with_baselines(table(0.5), constant=table(0.5), blind=table(0.4))
    assert "≤ 0.500" not in _write(tmp_path, runs={"m": better})
    assert "≤ 0.500" in _write(tmp_path, runs={"m": same})


def test_a_loss_curve_tolerates_losses_that_are_not_finite_and_repeated_steps(tmp_path):
    page = _write(
        tmp_path, curves={"c": [(1, 4.0), (2, 3.0), (2, 2.0), (3, float("nan"))], "none": [(1, float("nan"))]}
    )
    assert "4.000 at first, 2.000 after 2 steps" in page and "1 losses were not finite" in page
    assert "nan" not in page.split("</style>")[1] and "loss of none" not in page


def test_a_large_image_is_shown_reduced_with_boxes_in_original_pixels():
    out = io.BytesIO()
    Image.fromarray(np.zeros((900, 1500, 3), np.uint8)).save(out, "TIFF")
    record = Record(
        id="r", image=out.getvalue(), height=900, width=1500, sensor=Sensor.SAR, source="s", split="test",
        tasks=(Task.HBB,),
    )  # fmt: skip
    [item] = select_examples([record], decimals=3)
    # The square is 1500 wide with 300 rows above the image, so y = 0.5 is row 450 of the image.
    row = Prediction.from_answer(record, item.question, "<p>one ship</p>[0.2,0.5,0.4,0.6]")
    [case] = report.first_images([record], [row], per_sensor=1)
    true, predicted = case.boxes["hbb"]
    assert true == []
    assert predicted[0].points == "300.0,450.0 600.0,450.0 600.0,600.0 300.0,600.0"
    shown = Image.open(io.BytesIO(base64.b64decode(case.image.split(",")[1])))
    assert (shown.size, shown.format, case.width, case.height) == ((640, 384), "PNG", 1500, 900)


def _scored(rows):
    table = scores.score(rows, samples=20, extras=(scores.Extra.AP,))
    return scores.with_breakdown(scores.with_baselines(table, random=table), rows, samples=20)


def test_the_complete_report_of_a_file(records, answered, tmp_path):
    wrong = dataclasses.replace(answered[0], prediction="harbour | bay")
    rows = [wrong, *answered[1:]]
    extra = report.Table(title="Extra", head=["a", "b"], rows=[["x", "1"]], note="Below.")
    report.write_report(
        tmp_path, title="T", scores=_scored(rows), predictions=rows, records=records, notes=["n"], tables=[extra]
    )
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    for shown in ("Extra", "Below.", "coco_ap", "size: small", "pr90", "n"):
        assert shown in page and shown in text, shown
    assert "Worst images" in page and "Best images" in page and page.count("data:image/png;base64,") >= 2
    assert "Precision-recall curves, oriented boxes" in page and "<circle" in page
    assert f'title="{wrong.answer} → (no class): 1"' in page
    assert f"| {wrong.answer} → (no class) | 1 |" in text
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in text.split("## caption")[0].splitlines()[-4:] if line}
    assert len(columns) == 1


def test_the_report_says_how_pixels_became_8_bits(answered, tmp_path):
    stretch = Stretch(bands=(4, 3, 2), low=(1, 2, 3), high=(7, 8, 9), percentiles=(2, 98)).to_text()
    deep = answered[0].record_id
    rows = [dataclasses.replace(row, stretch=stretch if row.record_id == deep else "") for row in answered]
    path = tmp_path / "p.jsonl"
    predictions_file.write(path, rows, header={})
    assert predictions_file.read_complete(path)[1] == rows
    report.write_report(tmp_path, title="T", scores=_scored(rows), predictions=rows, records=None)
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    for shown in ("percentiles 2 to 98 of bands 4, 3, 2", "8 bits as stored"):
        assert shown in text and shown in page
    source, sensor = answered[0].source, answered[0].sensor
    assert f"| {source} | {sensor} | percentiles 2 to 98 of bands 4, 3, 2 | 1 |" in text


def test_markdown_lists_every_unparsable_answer(answered, tmp_path):
    rows = [dataclasses.replace(row, prediction=f"[{i},`|") for i, row in enumerate(answered) if row.task == "hbb"]
    report.write_report(tmp_path, title="T", scores=_scored(rows), predictions=rows, records=None)
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    assert text.count("the bracket is not closed") == page.count("the bracket is not closed") == len(rows)
    assert f"{len(rows)} of {len(rows)}; they count as wrong." in text and "Gallery" not in page


def test_the_worst_images_have_the_worst_answers(records, answered):
    bad = {answered[-1].record_id, answered[0].record_id}
    rows = [dataclasses.replace(row, prediction="") if row.record_id in bad else row for row in answered]
    shown = report.best_and_worst(records, rows, count=2)
    assert {case.title.split(",")[0] for case in shown["Worst images"]} == bad
    assert all(case.title.endswith("quality 0.00") for case in shown["Worst images"])
    assert all(case.title.endswith("quality 1.00") for case in shown["Best images"])


def test_a_third_party_rule_is_compared_with_ours_and_with_random_answers(answered):
    rows = [row for row in answered if row.task == "grounding"]
    table = report.third_party_table("lhrs", rows, scores.score(rows))
    [[name, ours, theirs, random, their_random], *others] = table.rows
    assert (name, ours, theirs) == ("grounding, accuracy (ours: pr50)", "1.000", "1.000")
    assert [row[0] for row in others] == ["grounding, accuracy_with_failures (ours: pr50)", "grounding, failures"]
    assert float(their_random) >= float(random)
    assert "1 added to each side" in table.note and "main_vg.py" in table.note
    assert report.third_party_table("geochat", rows, scores.score(rows)).rows == []
