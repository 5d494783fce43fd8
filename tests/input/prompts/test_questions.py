"""Texts and answers of questions, with the values of a record by hand."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import yaml

from earthgpt_jax.boxes import FullImage, JsonStyle, Square, parse, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.input.prompts.questions import (
    QUESTION_TASKS,
    BoxStyle,
    build_question,
    evaluation_questions,
    question_indices,
)
from earthgpt_jax.input.prompts.templates import (
    DEFAULT_SHARE,
    choose_template,
    default_question,
    expand,
    json_templates,
    question_templates,
)
from earthgpt_jax.records import AnnotatedClasses, Object, Record, Sensor, Task, Turn

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


def test_training_uses_the_default_template_for_its_share_and_every_row_equally():
    rng = np.random.default_rng(0)
    drawn = [choose_template("classification", rng).text for _ in range(4000)]
    assert drawn.count(default_question(Task.CLASSIFICATION)) / 4000 == pytest.approx(DEFAULT_SHARE, abs=0.03)
    assert set(drawn) <= set(question_templates()["classification"]) and len(set(drawn)) > 100
    row = set(expand("What is the category of this (remote sensing |satellite |aerial |)image?"))
    rows = len(yaml.safe_load(data_path("templates", "instructions.yaml").read_text())["classification"])
    share = sum(text in row for text in drawn) / 4000
    assert share == pytest.approx((1 - DEFAULT_SHARE) / (rows - 1), abs=0.02)
    assert choose_template("classification", None).text == question_templates()["classification"][0]


def test_a_row_stands_for_all_combinations_of_its_choices():
    assert expand("no choice (here)") == ("no choice (here)",)
    assert expand("(a|b|) c( d|).") == ("a c d.", "a c.", "b c d.", "b c.", " c d.", " c.")
    texts = [*itertools.chain(*question_templates().values())]
    texts += [template.text for rows in json_templates().values() for template in rows]
    assert not any("|" in text or "  " in text or text != text.strip() for text in texts)


def test_the_share_of_questions_that_ask_for_json_is_that_of_the_recipe():
    for share in (0.0, 0.25, 1.0):
        rng = np.random.default_rng(1)
        drawn = [choose_template("hbb", rng, json_share=share) for _ in range(2000)]
        assert sum(t.json_style is not None for t in drawn) / 2000 == pytest.approx(share, abs=0.03)
    assert choose_template("vqa", np.random.default_rng(0), json_share=1.0).json_style is None  # it has no boxes
    assert choose_template("hbb", None, json_share=1.0).json_style is None  # evaluation asks for the default


def test_answers_in_json_have_the_boxes_of_the_answers_in_mmrs_format():
    pairs = 0
    record = dataclasses.replace(
        RECORD, width=200, height=100, tasks=(Task.GROUNDING, Task.HBB, Task.OBB),
        objects=(
            Object(label="ship", polygon=rect_to_polygon(20, 10, 60, 50), phrase="the upper ship"),
            Object(label="ship", polygon=rotated_to_polygon(cx=120, cy=60, w=40, h=20, angle=0.5), phrase="a ship"),
            Object(label="bridge", polygon=rect_to_polygon(150, 70, 190, 90), phrase="the bridge"),
        ),
    )  # fmt: skip
    for task, templates in json_templates().items():
        for template in templates[:: max(1, len(templates) // 20)]:
            for index in question_indices(record, task):
                question = build_question(record, task, index, box_style=THREE, template=template)
                plain = build_question(record, task, index, box_style=THREE)
                found = parse(question.answer, box_format=question.box_format, size=(200, 100))
                wanted = parse(plain.answer)
                assert isinstance(json.loads(question.answer), list) and not found.rejections
                to_pixels, square = FullImage(200, 100).to_pixels, Square(200, 100).to_pixels
                boxes = sorted(to_pixels(b.coords).tolist() for b in found.boxes)
                np.testing.assert_allclose(boxes, sorted(square(b.coords).tolist() for b in wanted.boxes), atol=0.7)
                if template.json_style is not JsonStyle.CORNERS and task != "grounding":
                    assert sorted(b.label for b in found.boxes) == sorted(b.label for b in wanted.boxes)
                pairs += 1
    assert pairs > 100


def test_json_about_an_absent_class_is_an_empty_list_and_says_its_size_where_pixels_are_asked_for():
    annotated = AnnotatedClasses(shares={"ship": 0.5, "airplane": 0.5})
    record = dataclasses.replace(RECORD, tasks=(Task.HBB,), objects=(), width=200, height=100)
    for template in json_templates()["absent_hbb"]:
        for index in question_indices(record, "absent_hbb", annotated=annotated):
            question = build_question(
                record, "absent_hbb", index, box_style=TWO, annotated=annotated, template=template
            )
            assert question.answer == "[]" and "{" not in question.text.replace('{"', "")
            assert (template.json_style is JsonStyle.PIXELS) == ("200 x 100" in question.text)


def test_detection_templates_name_the_box_type():
    table = question_templates()
    assert not any("oriented" in text for text in table["hbb"])
    assert all("oriented" in text for text in table["obb"])
    for task, field in (("vqa", "{question}"), ("region_caption", "{box}"), ("grounding", "{phrase}")):
        assert all(field in text for text in table[task])
    asking = json_templates()
    assert set(asking) == {"hbb", "obb", "class_hbb", "class_obb", "absent_hbb", "absent_obb", "grounding",
                           "absent_grounding"}  # fmt: skip
    assert not any("oriented" in t.text or "polygon" in t.text for t in asking["hbb"])
    assert all("oriented" in t.text or "polygon" in t.text for t in asking["obb"])
    assert all("JSON" in t.text for templates in asking.values() for t in templates)
