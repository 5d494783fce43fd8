from __future__ import annotations

import collections
import itertools
import json
import re

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from earthgpt_jax.boxes import (
    BoxKind,
    Square,
    canonical,
    format_boxes,
    format_detection,
    parse,
    polygon_to_rect,
    rect_to_polygon,
    rotated_to_polygon,
)
from earthgpt_jax.config import Augment
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.input.augment import SYMMETRIES, Symmetry, is_symmetry_invariant, mentions_direction, sample_symmetry
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.prompts.templates import answer_templates, json_templates, question_templates
from earthgpt_jax.records import Object, Record, Sensor, Task
from earthgpt_jax.synthetic import SyntheticSource

# The same with NumPy, whose rotations are counter-clockwise.
NUMPY = {
    Symmetry.IDENTITY: lambda image: image,
    Symmetry.FLIP_LEFT_RIGHT: np.fliplr,
    Symmetry.FLIP_UP_DOWN: np.flipud,
    Symmetry.ROTATE_180: lambda image: np.rot90(image, 2),
    Symmetry.ROTATE_90: lambda image: np.rot90(image, -1),
    Symmetry.ROTATE_270: np.rot90,
    Symmetry.TRANSPOSE: lambda image: np.transpose(image, (1, 0, 2)),
    Symmetry.ANTITRANSPOSE: lambda image: np.rot90(np.transpose(image, (1, 0, 2)), 2),
}
symmetries = st.sampled_from(Symmetry)
sizes = st.tuples(st.integers(3, 40), st.integers(3, 40))


@st.composite
def boxes(draw):
    """Draw (width, height, polygon); corners are multiples of a quarter pixel, which f32 holds exactly."""
    width, height = draw(sizes)
    corner = st.tuples(st.integers(0, 4 * width), st.integers(0, 4 * height))
    (ax, ay), (bx, by) = draw(st.tuples(corner, corner).filter(lambda c: c[0][0] != c[1][0] and c[0][1] != c[1][1]))
    if draw(st.booleans()):
        polygon = rect_to_polygon(min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
    else:
        dx, dy = bx - ax, by - ay
        polygon = np.array([ax, ay, bx, by, bx - dy, by + dx, ax - dy, ay + dx])
    return width, height, canonical(polygon / 4)


def _record(width: int, height: int, *polygons: np.ndarray) -> Record:
    return Record(
        id="s/train/0", image=b"bytes", width=width, height=height, sensor=Sensor.OPTICAL, source="s", split="train",
        tasks=(Task.HBB, Task.OBB), references=("a ship",),
        objects=tuple(
            Object(label=f"ship {i % 2}", polygon=p, phrase="a", visible=0.5) for i, p in enumerate(polygons)
        ),
    )  # fmt: skip


def _image(width: int, height: int) -> np.ndarray:
    return np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)


def _filled(width: int, height: int, polygon: np.ndarray) -> np.ndarray:
    """Return u8[h, w, 3] with ones for pixels whose centre is inside a polygon."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inside = shapely.contains_xy(shapely.Polygon(polygon.reshape(4, 2)), x, y)
    return np.repeat(inside[..., None], 3, axis=-1).astype(np.uint8)


# --------------------------------------------------------------------------------------------- the group
def test_the_eight_symmetries_form_a_group():
    assert len(Symmetry) == 8
    for a, b in itertools.product(Symmetry, repeat=2):
        assert {a.then(other) for other in Symmetry} == set(Symmetry)
        assert a.then(b).inverse is b.inverse.then(a.inverse)
    assert all(a.then(a.inverse) is Symmetry.IDENTITY is a.inverse.then(a) for a in Symmetry)
    assert Symmetry.FLIP_LEFT_RIGHT.then(Symmetry.FLIP_UP_DOWN) is Symmetry.ROTATE_180
    assert Symmetry.ROTATE_90.then(Symmetry.ROTATE_90) is Symmetry.ROTATE_180
    assert Symmetry.ROTATE_90.inverse is Symmetry.ROTATE_270
    for subgroup in SYMMETRIES.values():
        assert {a.then(b) for a, b in itertools.product(subgroup, repeat=2)} == set(subgroup)


@given(symmetries, symmetries, sizes)
def test_pixels_agree_with_numpy_and_composition_applies_one_after_the_other(a, b, size):
    image = _image(*size)
    result = a.pixels(image)
    assert np.array_equal(result, NUMPY[a](image))
    assert result.flags.c_contiguous
    assert np.array_equal(a.then(b).pixels(image), NUMPY[b](NUMPY[a](image)))
    assert np.array_equal(a.inverse.pixels(result), image)


def test_flips_keep_the_sides_and_draws_are_uniform():
    assert SYMMETRIES[Augment.NONE] == (Symmetry.IDENTITY,)
    assert not any(symmetry.swaps for symmetry in SYMMETRIES[Augment.FLIPS])
    rng = np.random.default_rng(0)
    for augment, allowed in SYMMETRIES.items():
        drawn = collections.Counter(sample_symmetry(augment, rng) for _ in range(800 * len(allowed)))
        assert set(drawn) == set(allowed)
        assert all(abs(count - 800) < 5 * 800**0.5 for count in drawn.values())
    assert [sample_symmetry(Augment.FLIPS, np.random.default_rng(s)) for s in range(20)] == [
        sample_symmetry(Augment.FLIPS, np.random.default_rng(s)) for s in range(20)
    ]


# --------------------------------------------------------------------------------------------- boxes
@given(boxes(), symmetries)
def test_pixels_and_boxes_move_together(box, symmetry):
    width, height, polygon = box
    moved = symmetry.record(_record(width, height, polygon))
    expected = symmetry.pixels(_filled(width, height, polygon))
    assert np.array_equal(_filled(moved.width, moved.height, moved.objects[0].polygon), expected)


@given(boxes(), symmetries, symmetries)
def test_polygons_stay_canonical_compose_and_keep_their_area(box, a, b):
    width, height, polygon = box
    once = a.record(_record(width, height, polygon))
    moved = once.objects[0].polygon
    assert moved.dtype == np.float32
    assert np.array_equal(moved, canonical(moved))
    assert shapely.Polygon(moved.reshape(4, 2)).area == shapely.Polygon(polygon.reshape(4, 2)).area
    twice, direct = b.record(once), a.then(b).record(_record(width, height, polygon))
    assert (twice.width, twice.height) == (direct.width, direct.height)
    assert np.array_equal(twice.objects[0].polygon, direct.objects[0].polygon)
    assert np.array_equal(a.inverse.record(once).objects[0].polygon, polygon)


def test_a_box_by_hand():
    """A ship in the top-left corner of 40 x 30 px: after a rotation by 90 degrees it is at the top right."""
    record = _record(40, 30, rect_to_polygon(1, 2, 5, 4))
    turned = Symmetry.ROTATE_90.record(record)
    assert (turned.width, turned.height) == (30, 40)
    assert turned.objects[0].polygon.tolist() == [26, 1, 28, 1, 28, 5, 26, 5]
    assert Symmetry.FLIP_LEFT_RIGHT.record(record).objects[0].polygon.tolist() == [35, 2, 39, 2, 39, 4, 35, 4]
    assert Symmetry.IDENTITY.record(record) is record


@given(boxes(), symmetries)
def test_only_size_and_polygons_change(box, symmetry):
    width, height, polygon = box
    before = _record(width, height, polygon, polygon)
    after = symmetry.record(before)
    assert {after.width, after.height} == {width, height}
    for name in set(Record.__dataclass_fields__) - {"width", "height", "objects"}:
        assert getattr(after, name) == getattr(before, name)
    for name in set(Object.__dataclass_fields__) - {"polygon"}:
        assert [getattr(x, name) for x in after.objects] == [getattr(x, name) for x in before.objects]


@given(boxes(), symmetries, st.sampled_from(BoxKind), st.integers(1, 4))
def test_the_text_of_moved_boxes_reads_back_as_the_moved_boxes(box, symmetry, kind, decimals):
    width, height, polygon = box
    record = symmetry.record(_record(width, height, polygon))
    square, moved = Square(record.width, record.height), record.objects[0].polygon
    text = format_boxes([moved], square=square, decimals=decimals, kind=kind)
    (read,) = parse(text).boxes
    # Compared as enclosing rectangles: an oriented box that rounding leaves without area is written axis-aligned.
    # Boxes are clipped to the square, and those without area are widened by a step.
    inside = square.to_pixels(np.clip(square.to_fractions(polygon_to_rect(moved)), 0, 1))
    step = 10.0**-decimals * square.side
    assert np.abs(np.array(polygon_to_rect(read.pixels(square))) - inside).max() <= 1.5 * step + 1e-4
    if kind is BoxKind.OBB and decimals == 4 and shapely.Polygon(moved.reshape(4, 2)).area > 1:
        written = np.clip(square.to_fractions(moved), 0, 1)
        assert read.coords == pytest.approx(written, abs=0.6e-4)


@given(st.lists(boxes(), min_size=1, max_size=6), st.sampled_from(BoxKind), st.integers(1, 4))
def test_the_texts_of_all_eight_have_the_same_length(boxes, kind, decimals):
    width, height = boxes[0][:2]
    record = _record(width, height, *(polygon for _, _, polygon in boxes))
    lengths = set()
    for symmetry in Symmetry:
        moved = symmetry.record(record)
        groups = collections.defaultdict(list)
        for item in moved.objects:
            groups[item.label].append(item.polygon)
        square = Square(moved.width, moved.height)
        lengths.add(len(format_detection(groups, square=square, decimals=decimals, kind=kind)))
    assert len(lengths) == 1


@given(st.floats(1, 800), st.floats(1, 600), st.floats(1, 90), st.floats(1, 90), st.floats(0, 3.2), symmetries)
def test_boxes_with_any_coordinates_keep_their_area(cx, cy, w, h, angle, symmetry):
    polygon = rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)
    moved = symmetry.polygon(polygon, width=800, height=600)
    areas = [shapely.Polygon(p.reshape(4, 2)).area for p in (polygon, moved)]
    assert areas[0] == pytest.approx(areas[1], rel=1e-3)
    back = symmetry.inverse.polygon(moved, width=600 if symmetry.swaps else 800, height=800 if symmetry.swaps else 600)
    assert np.abs(np.sort(back.reshape(4, 2), axis=0) - np.sort(polygon.reshape(4, 2), axis=0)).max() < 2e-4


# --------------------------------------------------------------------------------------------- texts
@pytest.mark.parametrize(
    "text",
    [
        "On the LEFT there is a road.", "the ship in the upper-right", "upperleft", "top_left", "bottommost", "topmost",
        "the lower half", "above the bridge", "cars below", "underneath it", "under the trees", "beneath",
        "to the north", "a northeastern suburb", "south-west", "westward", "easternmost", "NE of the runway",
        "upside", "facing down", "horizontally", "a vertical road", "anti-clockwise", "counterclockwise", "clockwise",
        "Is there a horizontal line?", "the second ship from the river", "the 3rd car", "turned by 30°", "row 2",
        "What is the orientation of the ship?", "in front of the church", "behind it", "right-hand side", "leftmost.",
        "45 degrees", "at 3 o'clock",
    ],
)  # fmt: skip
def test_directions_are_found(text):
    assert mentions_direction(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "a ship [0.12,0.30,0.44,0.51] in the image", "a bright light on a straight road", "a stop by a rooftop",
        "Please detect all objects in this image with oriented bounding boxes.", "an uphill slope", "coastal towns",
        "give the horizontal bounding box", "with horizontal boxes", "in the center", "a vast wilderness",
        "many cars are parked next to the building", "an overpass over a river", "support", "yeast", "20 ships",
        "on both sides of the road",
    ],
)  # fmt: skip
def test_other_words_are_not_directions(text):
    assert not mentions_direction(text)


def test_our_own_templates_and_class_names_mention_no_direction():
    templates = [*itertools.chain(*question_templates().values()), *answer_templates().values()]
    templates += [template.text for rows in json_templates().values() for template in rows]
    labels = [label for card in load_cards().values() for label in card.classes]
    assert len(templates) > 50
    assert len(labels) > 100
    assert [text for text in templates + labels if mentions_direction(text)] == []


def test_positions_in_synthetic_texts_are_found():
    """Only the centre is a position that no symmetry moves."""
    mentioned = collections.defaultdict(set)
    for record in SyntheticSource("train", 60, size=32):
        for turn in record.turns:
            kind = f"{turn.question_type}, {turn.answer}" if "center" in turn.answer else turn.question_type
            text = f"{turn.question} {turn.answer}"
            mentioned[f"{kind}, where" if re.search(r"in the (upper|lower)", text) else kind].add(
                mentions_direction(text)
            )
        for item in record.objects:
            place = re.search(r"in the (upper|lower)|most ", item.phrase)
            mentioned["phrase, where" if place else "phrase"].add(mentions_direction(item.phrase))
        for text in record.references:
            place = re.search(r"in the (upper|lower)|on the (left|right)", text)
            mentioned["caption, where" if place else "caption"].add(mentions_direction(text))
    placed = {"position", "object_class, where", "phrase, where", "caption, where"}
    assert {kind: found for kind, found in mentioned.items() if kind in placed} == {kind: {True} for kind in placed}
    others = {"position, center", "object_class", "phrase", "caption", "presence", "count", "sensor", "rural_urban"}
    assert {kind: found for kind, found in mentioned.items() if kind in others} == {kind: {False} for kind in others}


@pytest.mark.realdata
def test_real_texts_with_a_side_are_found_and_most_others_are_not(realdata):
    captions = json.loads((realdata / "optical/RSICD/dataset_rsicd.json").read_text())
    captions = [sentence["raw"] for image in captions["images"] for sentence in image["sentences"]]
    asked = json.loads((realdata / "optical/RSVQA-HR/USGS_split_train_questions.json").read_text())["questions"]
    asked = [row["question"] for row in asked if "question" in row]
    for texts, sided, most in ((captions, 1, 0.02), (asked, 100, 0.15)):
        found = [text for text in texts if mentions_direction(text)]
        must = [text for text in texts if re.search(r"\b(left|right|top|bottom|above|up|directions)\b", text.lower())]
        assert len(must) >= sided
        assert set(must) <= set(found)
        assert len(found) <= most * len(texts)


@pytest.mark.parametrize(
    ("task", "text", "answer", "holds"),
    [
        ("vqa", "How many ships are there?", "3", True),
        ("vqa", "Is a ship on the left?", "yes", False),
        ("vqa", "What is at [0.10,0.20,0.30,0.40]?", "a ship", False),  # the source's own text
        (
            "hbb",
            "Where is it?",
            "There is <p>one ship</p>[0.10,0.20,0.30,0.40] in the image.",
            True,
        ),  # our own boxes
        ("caption", "Describe it.", "A port (with ships).", True),
        ("caption", "Describe it.", "Ships north of a port.", False),
    ],
)
def test_questions_that_stay_true_under_all_symmetries(task, text, answer, holds):
    question = Question(
        id=f"r#{task}#0", record_id="r", task=task, question_type="", text=text, answer=answer, references=()
    )
    assert is_symmetry_invariant(question) is holds
