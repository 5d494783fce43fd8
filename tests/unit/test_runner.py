"""Asking, resuming, the constant baseline, and the report."""

import numpy as np
import pytest

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.evaluation import baselines, predictions, report, runner, scores
from earthgpt_jax.evaluation.runner import View
from earthgpt_jax.input.images import load_square
from earthgpt_jax.mmrs.synthetic import SyntheticSource

HEADER = {"model": "m", "data": "d"}
PER_IMAGE = {"vqa": 2, "grounding": 1, "region_caption": 1}


class Oracle:
    """Knows every answer; remembers what it was shown."""

    image_size = 128

    def __init__(self, asked, *, die_after: int | None = None):
        self._answers = {
            (load_square(item.record.image, 128).tobytes(), item.question.text): item.question.answer for item in asked
        }
        self._die_after = die_after
        self.seen = 0
        self.images: list[np.ndarray] = []

    def answer(self, items, *, max_new_tokens):
        if self._die_after is not None and self.seen >= self._die_after:
            raise KeyboardInterrupt
        self.seen += len(items)
        self.images += [image for image, _ in items]
        return [self._answers.get((image.tobytes(), text), "") for image, text in items]


@pytest.fixture(scope="module")
def records():
    source = SyntheticSource("test", 12)
    return [source[i] for i in range(12)]


@pytest.fixture(scope="module")
def asked(records):
    return runner.plan(records, decimals=3, per_image=PER_IMAGE)


def test_the_plan_asks_at_most_so_many_and_does_not_depend_on_the_others(records, asked):
    again = runner.plan(records[:3], decimals=3, per_image=PER_IMAGE)
    assert [i.question.id for i in again] == [
        i.question.id for i in asked if i.record.id in {r.id for r in records[:3]}
    ]
    for record in records:
        tasks = [i.question.task for i in asked if i.record.id == record.id]
        assert tasks.count("vqa") == 2
        assert tasks.count("hbb") == tasks.count("obb") == tasks.count("caption") == 1


def test_the_truth_scores_full_marks(asked, tmp_path):
    answered = runner.evaluate(
        Oracle(asked), asked, out=tmp_path / "p.jsonl", header=HEADER, view=View.IMAGE, label="t"
    )
    table = scores.score(answered)
    for task, metric in (("classification", "top1"), ("vqa", "accuracy"), ("grounding", "pr50"), ("hbb", "f1"),
                         ("obb", "f1"), ("hbb", "parse_rate")):  # fmt: skip
        assert table[task]["all"][metric] == 1.0, task
    header, read = predictions.read(tmp_path / "p.jsonl")
    assert header == HEADER
    assert {p.id: p for p in read} == {p.id: p for p in answered}


def test_the_blind_view_shows_grey_and_nothing_else(asked, tmp_path):
    oracle = Oracle(asked)
    runner.evaluate(oracle, asked[:5], out=tmp_path / "b.jsonl", header=HEADER, view=View.GREY, label="t")
    assert len({image.tobytes() for image in oracle.images}) == 1
    assert oracle.images[0][0, 0].tolist() == [122, 116, 104]


def test_a_killed_evaluation_resumes_to_the_same_answers(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_CHUNK", 7)
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    straight = runner.evaluate(Oracle(asked), asked, out=tmp_path / "s.jsonl", **arguments)
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(Oracle(asked, die_after=20), asked, out=tmp_path / "k.jsonl", **arguments)
    with (tmp_path / "k.jsonl").open("a") as file:
        file.write('{"id": "cut off by a k')
    second = Oracle(asked)
    assert runner.evaluate(second, asked, out=tmp_path / "k.jsonl", **arguments) == straight
    assert 0 < second.seen < len(asked)
    idle = Oracle(asked)
    assert runner.evaluate(idle, asked, out=tmp_path / "k.jsonl", **arguments) == straight
    assert idle.seen == 0


def test_answers_of_another_model_are_not_mixed_in(asked, tmp_path):
    out = tmp_path / "p.jsonl"
    runner.evaluate(Oracle(asked), asked[:3], out=out, header=HEADER, view=View.IMAGE, label="t")
    with pytest.raises(EarthGPTError, match="model was 'm', is 'other'"):
        runner.evaluate(
            Oracle(asked), asked[:3], out=out, header=HEADER | {"model": "other"}, view=View.IMAGE, label="t"
        )


def test_a_broken_predictions_file_names_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(EarthGPTError, match="cannot be read"):
        predictions.read(path)
    path.write_text('{"header": {}}\n{"id": \n')
    with pytest.raises(EarthGPTError, match="line 2: not JSON"):
        predictions.read(path)
    path.write_text("[1]\n")
    with pytest.raises(EarthGPTError, match="expected a predictions file"):
        predictions.read(path)
    path.write_text('{"header": {}}\n{"id": "x"}\n')
    with pytest.raises(EarthGPTError, match="lacks"):
        predictions.read(path)


def test_the_constant_baseline_is_one_answer_a_task_learnt_from_training_records(records, asked):
    train = [SyntheticSource("train", 30)[i] for i in range(30)]
    answered = baselines.constant(train, asked, decimals=3)
    for task in ("classification", "caption", "region_caption", "grounding", "hbb", "obb"):
        assert len({p.prediction for p in answered if p.task == task}) == 1, task
    labels = [record.label for record in train]
    said = next(p.prediction for p in answered if p.task == "classification")
    assert labels.count(said) == max(map(labels.count, labels))
    table = scores.score(answered)
    assert table["hbb"]["all"]["parse_rate"] == table["obb"]["all"]["parse_rate"] == 1.0
    assert table["classification"]["all"]["top1"] < 0.5


def test_the_report_is_one_page_with_everything_in_it(records, asked, tmp_path):
    answered = runner.evaluate(
        Oracle(asked), asked, out=tmp_path / "p.jsonl", header=HEADER, view=View.IMAGE, label="t"
    )
    table = scores.assemble(model=scores.score(answered), constant=scores.score(answered), blind={})
    gallery = report.cases(records, answered, per_sensor=1)
    assert {case.sensor for case in gallery} == {"optical", "sar", "infrared"}
    path = tmp_path / "report.html"
    report.write(
        path, title="a < b", runs={"oracle": table}, curves={"align": [(i, 3.0 / i) for i in range(1, 50)]},
        gallery=gallery, notes=["synthetic images"],
    )  # fmt: skip
    page = path.read_text()
    assert "a &lt; b" in page and "<script" not in page
    assert page.count("data:image/png;base64,") >= 3 and "http://" not in page and "https://" not in page
    assert "· synthetic ·" in page and "horizontal boxes, F1@0.5" in page and "<polygon" in page
