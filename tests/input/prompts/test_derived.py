"""Questions derived from boxes: their answers are true, and their text does not reveal the answer."""

import collections
import dataclasses

import numpy as np
import pytest

from earthgpt_jax.boxes import parse, rect_to_polygon
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.manifest import annotated_classes, read_manifest
from earthgpt_jax.input.prompts.derived import NEEDS_ANNOTATED_CLASSES, DerivedTask
from earthgpt_jax.input.prompts.questions import BoxStyle, build_question, question_indices
from earthgpt_jax.input.prompts.templates import answer_templates, question_templates
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Object, Record, Sensor, Task

TWO = BoxStyle(decimals=2)


def _object(label: str, place: int = 0, **values) -> Object:
    return Object(label=label, polygon=rect_to_polygon(10 * place, 10, 10 * place + 8, 20), **values)


def _record(*objects: Object, name: str = "made/train/1", tasks=(Task.HBB, Task.OBB), **values) -> Record:
    return Record(
        id=name, image=b"", height=100, width=100, sensor=Sensor.OPTICAL, source="made", split="train", tasks=tasks,
        objects=objects, **values,
    )  # fmt: skip


# A class in half of the images is always asked about, whether it is present or absent.
HALF = AnnotatedClasses(shares={"ship": 0.5, "bridge": 0.5, "school bus": 0.5})
RECORD = _record(_object("ship", 0), _object("ship", 2), _object("bridge", 4, difficult=True))


def _all(record, task, annotated=HALF, box_style=TWO):
    options = {"annotated": annotated, "seed": 0}
    return [
        build_question(record, task, i, box_style=box_style, **options)
        for i in question_indices(record, task, **options)
    ]


def test_presence_of_present_and_absent_classes():
    answers = {question.text: question.answer for question in _all(RECORD, "presence")}
    begin = "Are there any {} in this image? Answer the question using a single word or phrase."
    # Whether there is a bridge is uncertain: the only one is difficult.
    assert answers == {begin.format("ships"): "yes", begin.format("school buses"): "no"}


def test_counts_are_of_classes_whose_objects_are_all_complete():
    cut = _record(_object("ship", 0), _object("ship", 2, visible=0.75), _object("bridge", 4))
    assert {q.text.split(" ")[2]: q.answer for q in _all(cut, "count", UNKNOWN_CLASSES)} == {"bridges": "1"}
    assert [q.answer for q in _all(RECORD, "count", UNKNOWN_CLASSES)] == ["2"]
    zeros = [q for n in range(40) for q in _all(dataclasses.replace(RECORD, id=f"made/train/{n}"), "count")]
    assert {q.answer for q in zeros} == {"0", "2"} and all("school" in q.text for q in zeros if q.answer == "0")


def test_the_class_of_a_region():
    first, second = _all(RECORD, "region_class", UNKNOWN_CLASSES)
    assert first.answer == "ship" and "[0.00,0.10,0.08,0.20]" in first.text and second.object_index == 1


def test_one_class_is_detected_and_false_premises_are_rejected():
    texts = {task: {q.answer for q in _all(RECORD, task)} for task in DerivedTask}
    assert texts["class_hbb"] == {
        "There are <p>two ships</p>[0.00,0.10,0.08,0.20;0.20,0.10,0.28,0.20] in the image."
    }  # fmt: skip
    assert [box.kind for box in parse(next(iter(texts["class_obb"]))).boxes] == ["obb", "obb"]
    assert texts["absent_hbb"] == texts["absent_obb"] == {"There are no school buses in the image."}
    assert texts["absent_grounding"] == {"There is no school bus in the image."}
    assert "the only school bus" in _all(RECORD, "absent_grounding")[0].text


def test_no_class_is_absent_where_that_is_uncertain():
    doubtful = dataclasses.replace(RECORD, complete=False)
    partial = dataclasses.replace(RECORD, tasks=(Task.GROUNDING,))  # only described objects are annotated
    for record, annotated in ((RECORD, UNKNOWN_CLASSES), (doubtful, HALF), (partial, HALF)):
        answered = {q.answer for task in NEEDS_ANNOTATED_CLASSES for q in _all(record, task, annotated)}
        assert answered <= {"yes"}
    assert not any(_all(RECORD, task, UNKNOWN_CLASSES) for task in NEEDS_ANNOTATED_CLASSES)
    assert not _all(doubtful, "count")
    trucks = AnnotatedClasses(shares={"vehicle": 0.5, "large vehicle": 0.5, "ship": 0.5})
    assert trucks.absent(_record(_object("large vehicle"))) == ["ship"]  # a large vehicle is a vehicle
    assert trucks.absent(_record(_object("vehicle"))) == ["large vehicle", "ship"]


def test_other_vehicles_are_not_asked_about():
    known = AnnotatedClasses(shares={"other vehicle": 0.5, "ship": 0.5})
    for task in set(DerivedTask) - {DerivedTask.REGION_CLASS}:
        assert not any("other" in q.text for q in _all(_record(_object("other vehicle")), task, known))


@pytest.fixture(scope="module")
def many():
    """1,500 records of four classes, which are in 0.7, 0.3, 0.1 and all of them."""
    rng = np.random.default_rng(0)
    chances = {"airplane": 0.7, "ship": 0.3, "bridge": 0.1, "roundabout": 1.0}
    records = [
        _record(*(_object(label) for label, p in chances.items() if rng.random() < p), name=f"made/train/{n}")
        for n in range(1500)
    ]
    shares = {label: sum(label in {o.label for o in r.objects} for r in records) / 1500 for label in chances}
    return records, AnnotatedClasses(shares=shares)


def test_the_class_does_not_reveal_whether_it_is_present(many):
    records, known = many
    counts = collections.Counter((q.text, q.answer) for record in records for q in _all(record, "presence", known))
    texts = {text for text, _ in counts}
    assert len(texts) == 3  # a class in every image is not asked about
    for text in texts:
        yes, no = counts[text, "yes"], counts[text, "no"]
        assert yes / (yes + no) == pytest.approx(0.5, abs=0.06) and yes + no > 200


def test_questions_depend_on_the_id_and_the_seed_alone(many):
    records, known = many
    again = [dataclasses.replace(record, objects=record.objects[::-1]) for record in records[:50]]

    def asked(items, seed):
        return [
            build_question(r, task, i, box_style=TWO, annotated=known, seed=seed)
            for r in items
            for task in ("presence", "absent_hbb", "count")
            for i in question_indices(r, task, annotated=known, seed=seed)
        ]

    assert asked(records[:50], 0) == asked(again, 0)
    assert asked(records[:50], 0) != asked(records[:50], 1)


def test_the_annotated_classes_of_a_built_dataset(tmp_path):
    records = [RECORD, dataclasses.replace(RECORD, id="made/train/2", objects=()), _record(name="made/train/3")]
    write_dataset({"train": records}, out=tmp_path / "made", name="made")
    source = store.RecordSource(tmp_path / "made", "train")
    assert source.annotated == AnnotatedClasses(shares={"bridge": 1 / 3, "ship": 1 / 3})
    values = read_manifest(tmp_path / "made")
    assert annotated_classes(values | {"card": {"open_classes": True}}) == UNKNOWN_CLASSES
    values["counts"]["train"]["task"] = {"grounding": 3}
    assert annotated_classes(values) == UNKNOWN_CLASSES


def test_every_task_has_an_answer_template():
    assert set(answer_templates()) == set(question_templates())
