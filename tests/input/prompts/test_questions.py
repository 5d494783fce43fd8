"""Texts and answers of questions, with the values of a record by hand."""

import dataclasses

import numpy as np
import pytest

from earthgpt_jax.boxes import rect_to_polygon, rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.prompts.questions import (
    QUESTION_TASKS,
    BoxStyle,
    build_question,
    evaluation_questions,
    question_indices,
)
from earthgpt_jax.input.prompts.templates import choose_template, default_question, question_templates
from earthgpt_jax.records import Object, Record, Sensor, Task, Turn

# 200 x 100: the padded square has side 200 and begins 50 pixels above the image.
RECORD = Record(
    id="made/test/1",
    image=b"",
    height=100,
    width=200,
    sensor=Sensor.SAR,
    source="made",
    split="test",
    tasks=tuple(Task),
    label="harbor",
    turns=(Turn(question="How many {ships}?", answer="2", question_type="count"),),
    references=("Two ships.", "A harbor with ships."),
    objects=(
        Object(label="ship", polygon=rect_to_polygon(100, 50, 120, 70), phrase="the lower ship"),
        Object(label="ship", polygon=rect_to_polygon(20, 10, 40, 20)),
        Object(label="bridge", polygon=rect_to_polygon(0, 0, 200, 100), phrase="the bridge", difficult=True),
    ),
)
TWO, THREE = BoxStyle(decimals=2), BoxStyle(decimals=3)


def _ask(task, index=0, box_style=TWO):
    return build_question(RECORD, task, index, box_style=box_style)


def test_boxes_are_fractions_of_the_padded_square():
    # (100, 50 + 50) / 200 ... (120, 70 + 50) / 200
    assert _ask("grounding").answer == "[0.50,0.50,0.60,0.60]"
    assert _ask("grounding", box_style=THREE).answer == "[0.500,0.500,0.600,0.600]"
    assert "the lower ship" in _ask("grounding").text
    region = _ask("region_caption")
    assert region.answer == "the lower ship" and "[0.50,0.50,0.60,0.60]" in region.text
    assert region.object_index == 0


def test_detection_and_grounded_captions():
    boxes = (
        "There are <p>one bridge</p>[0.00,0.25,1.00,0.75] and "
        "<p>two ships</p>[0.10,0.30,0.20,0.35;0.50,0.50,0.60,0.60] in the image."
    )
    assert _ask("hbb").answer == boxes
    assert _ask("grounded_caption", 1).answer == f"A harbor with ships. {boxes}"
    assert "<p>one bridge</p>[0.00,0.25,1.00,0.25,1.00,0.75,0.00,0.75]" in _ask("obb").answer
    turned = dataclasses.replace(
        RECORD, objects=(Object(label="ship", polygon=rotated_to_polygon(cx=100, cy=50, w=40, h=20, angle=np.pi / 2)),)
    )
    one = build_question(turned, "obb", 0, box_style=TWO).answer
    assert one == "There is <p>one ship</p>[0.45,0.40,0.55,0.40,0.55,0.60,0.45,0.60] in the image."


def test_the_questions_of_a_record_and_their_order():
    asked = [q.id for q in evaluation_questions(RECORD, box_style=TWO)]
    assert asked == [
        f"made/test/1#{name}"
        for name in ("classification#0", "caption#0", "vqa#0", "region_caption#0", "grounding#0", "hbb#0", "obb#0")
    ]  # the second ship has no phrase; the bridge is difficult
    caption = _ask("caption")
    assert caption.references == RECORD.references and caption.answer == "Two ships."
    vqa = _ask("vqa")
    assert (vqa.question_type, vqa.answer, vqa.references) == ("count", "2", ("2",))
    assert vqa.text == "How many {ships}? Answer the question using a single word or phrase."
    assert _ask("classification").answer == "harbor"


def test_a_task_without_annotations_has_no_questions():
    bare = dataclasses.replace(RECORD, tasks=(Task.HBB,), references=())
    from_boxes = {"count", "region_class", "class_hbb"}
    assert {task for task in QUESTION_TASKS if list(question_indices(bare, task))} == {"hbb"} | from_boxes
    assert not list(question_indices(dataclasses.replace(bare, tasks=(Task.CAPTION,)), "caption"))
    with pytest.raises(EarthGPTError, match="did you mean 'caption'"):
        question_indices(RECORD, "captoin")


def test_the_default_template_is_used_half_of_the_time_and_every_other_is_used():
    rng = np.random.default_rng(0)
    drawn = [choose_template("classification", rng) for _ in range(2000)]
    assert drawn.count(default_question(Task.CLASSIFICATION)) / 2000 == pytest.approx(0.5, abs=0.05)
    assert set(drawn) == set(question_templates()["classification"])
    assert choose_template("classification", None) == question_templates()["classification"][0]


def test_detection_templates_name_the_box_type():
    table = question_templates()
    assert not any("oriented" in text for text in table["hbb"])
    assert all("oriented" in text for text in table["obb"])
    for task, field in (("vqa", "{question}"), ("region_caption", "{box}"), ("grounding", "{phrase}")):
        assert all(field in text for text in table[task])
