"""Labels in text and strict parsing: the scores of a detector depend on them."""

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.boxes import (
    BoxKind,
    Square,
    canonical,
    format_boxes,
    format_detection,
    parse,
    plural,
    rect_to_polygon,
    singular,
)
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.synthetic.objects import OBJECTS


def _labels() -> list[str]:
    """Every class of objects; a scene's (`storage tanks`) is never counted."""
    cards = [yaml.safe_load(path.read_text()) for path in sorted(data_path("sources").glob("*.yaml"))]
    detection = [card for card in cards if {"hbb", "obb"} & set(card["tasks"])]
    ours = {str(label) for card in detection for label in card.get("classes") or ()}
    return sorted(ours | set(OBJECTS) | {"school bus", "military aircraft", "barracks", "lens"})


@pytest.mark.parametrize("label", _labels())
@pytest.mark.parametrize("count", [1, 2, 11])
@pytest.mark.parametrize("kind", BoxKind)
def test_every_class_survives_a_round_trip(label, count, kind):
    boxes = [rect_to_polygon(10 * i, 10, 10 * i + 8, 20) for i in range(count)]
    text = format_detection({label: boxes}, square=Square(200, 100), decimals=3, kind=kind)
    parsed = parse(text)
    assert [(box.label, box.kind) for box in parsed.boxes] == [(label, kind)] * count
    assert not parsed.rejections


def test_only_the_last_word_of_a_phrase_is_inflected():
    assert plural("school bus") == "school buses" and singular("school buses") == "school bus"
    assert plural("small aircraft") == "small aircraft"


@pytest.mark.parametrize(
    ("text", "boxes", "unclosed"),
    [
        ("[0.1,0.2 and <p>one ship</p>[0.1,0.1,0.2,0.2]", 1, 1),  # cut short in the middle of an answer
        ("[[0.1,0.1,0.2,0.2]]", 1, 1),  # a list of boxes in another format
        ("[0.1 [0.2", 0, 2),
        ("[0.1,0.1,0.2,0.2] and [0.3,0.3,0.4", 1, 1),
        ("[0.1,0.1,0.2,0.2] and [0.3,0.3,0.4,0.4]", 2, 0),
    ],
)
def test_every_unclosed_bracket_is_rejected(text, boxes, unclosed):
    parsed = parse(text)
    assert len(parsed.boxes) == boxes and len(parsed.rejections) == unclosed
    assert all("not closed" in reason for reason in parsed.rejections)


def test_only_ascii_digits_are_numbers():
    assert parse("[٠.١,0.1,0.2,0.2]").boxes == ()


def test_the_smallest_oriented_box_that_can_be_written_is_valid():
    for decimals in (1, 2, 3, 4):
        step = 10**-decimals
        corners = np.array([0.5, 0.5, 0.5 + step, 0.5, 0.5 + step, 0.5 + step, 0.5, 0.5 + step])
        text = format_boxes([corners], square=Square(1, 1), decimals=decimals, kind=BoxKind.OBB)
        assert len(parse(text).boxes) == 1, parse(text)


@given(st.lists(st.tuples(*[st.integers(0, 90)] * 2), min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_boxes_are_written_from_top_to_bottom(corners, random):
    boxes = [rect_to_polygon(x, y, x + 10, y + 10) for x, y in corners]
    options = {"square": Square(100, 100), "decimals": 2, "kind": BoxKind.HBB}
    text = format_boxes(boxes, **options)
    random.shuffle(boxes)
    assert format_boxes(boxes, **options) == text
    starts = [(box.coords[1], box.coords[0]) for box in parse(text).boxes]
    assert starts == sorted(starts) and len(starts) == len(corners)


@given(st.integers(0, 3))
def test_canonical_ignores_the_first_corner_and_the_direction(start):
    corners = np.array([[5, 0], [9, 3], [6, 9], [1, 4]], np.float32)
    for order in (corners, corners[::-1]):
        assert canonical(np.roll(order, start, axis=0).reshape(-1)).tolist() == [5, 0, 9, 3, 6, 9, 1, 4]


@given(st.lists(st.sampled_from(["[", "]", "<p>", "</p>", "two ships", "0.1", "1.2", ",", ";", " "]), max_size=40))
@settings(max_examples=200)
def test_the_parser_accepts_only_boxes_inside_the_square(pieces):
    parsed = parse("".join(pieces))
    for box in parsed.boxes:
        assert len(box.coords) == {BoxKind.HBB: 4, BoxKind.OBB: 8}[box.kind]
        assert all(0 <= value <= 1 for value in box.coords)


def test_a_box_has_its_position_in_the_text():
    text = (
        "There are <p>13  large vehicles</p> [0.1,0.1,0.2,0.2; 0.3,0.3,0.4,0.4;bad] and "
        "<p>school bus</p>[0,0,1,1] [0,0,0.5,1]"
    )
    boxes = parse(text).boxes
    assert [text[slice(*box.noun)] for box in boxes] == ["large vehicles", "large vehicles", "school bus", ""]
    assert [text[slice(*box.span)] for box in boxes] == [
        "0.1,0.1,0.2,0.2", " 0.3,0.3,0.4,0.4", "0,0,1,1", "0,0,0.5,1"
    ]  # fmt: skip
    assert parse("<p>two</p>[0,0,1,1]").boxes[0].noun == (0, 0)
    moved = parse("Look: " + text).boxes
    assert moved == boxes and moved[0].span != boxes[0].span  # positions do not count
