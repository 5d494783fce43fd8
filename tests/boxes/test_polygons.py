import math

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from earthgpt_jax.boxes import (
    BoxKind,
    Square,
    canonical,
    count_phrase,
    degeneracy,
    format_boxes,
    format_detection,
    min_area_rect,
    parse,
    plural,
    polygon_to_rect,
    rect_to_polygon,
    rotated_to_polygon,
    singular,
)

SIZES = st.integers(1, 4000)
ANGLES = st.floats(-7, 7)


def _shape(polygon: np.ndarray) -> shapely.Polygon:
    return shapely.Polygon(np.asarray(polygon, np.float64).reshape(4, 2))


def test_a_rotated_box_computed_by_hand():
    # 4 wide, 2 high; rotated by 90 degrees it is 2 wide, 4 high
    polygon = rotated_to_polygon(cx=10, cy=10, w=4, h=2, angle=math.pi / 2)
    np.testing.assert_allclose(polygon, [9, 8, 11, 8, 11, 12, 9, 12], atol=1e-5)
    # rotated clockwise by 45 degrees: the right end of the long side moves down
    polygon = rotated_to_polygon(cx=0, cy=0, w=2, h=0.0001, angle=math.pi / 4).reshape(4, 2)
    assert polygon[np.argmax(polygon[:, 0]), 1] > 0


def test_canonical_starts_at_the_top_and_goes_clockwise():
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0], [1, 0, 3, 2]):
        corners = np.array([[5, 0], [9, 4], [5, 8], [1, 4]], np.float32)[order]
        np.testing.assert_array_equal(canonical(corners.reshape(-1)), [5, 0, 9, 4, 5, 8, 1, 4])
    np.testing.assert_array_equal(canonical(np.array([4, 6, 0, 6, 0, 2, 4, 2])), [0, 2, 4, 2, 4, 6, 0, 6])


@given(cx=st.floats(-50, 50), cy=st.floats(-50, 50), w=st.floats(1, 40), h=st.floats(1, 40), angle=ANGLES)
@settings(deadline=None)
def test_rotation_by_180_degrees_gives_the_same_box_and_keeps_the_area(cx, cy, w, h, angle):
    box = _shape(rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle))
    again = _shape(rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle + math.pi))
    swapped = _shape(rotated_to_polygon(cx=cx, cy=cy, w=h, h=w, angle=angle + math.pi / 2))
    assert box.area == pytest.approx(w * h, rel=1e-3)
    assert box.symmetric_difference(again).area < 1e-2 * box.area + 1e-2
    assert box.symmetric_difference(swapped).area < 1e-2 * box.area + 1e-2


@given(cx=st.floats(0, 50), cy=st.floats(0, 50), w=st.floats(2, 40), h=st.floats(2, 40), angle=ANGLES)
@settings(deadline=None)
def test_canonical_is_idempotent_and_min_area_rect_recovers_a_rectangle(cx, cy, w, h, angle):
    polygon = rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)
    np.testing.assert_array_equal(canonical(polygon), polygon)
    found = _shape(min_area_rect(polygon.reshape(4, 2)))
    assert found.symmetric_difference(_shape(polygon)).area < 2e-2 * w * h


def test_the_square_of_a_wide_and_a_high_image():
    assert Square(5, 2).offset == (0, 1)  # floor(3 / 2)
    assert Square(2, 5).offset == (1, 0)
    # EarthGPT's README: x0,y0,w,h = 10,20,30,40 in 100 x 200: pad_x0 = 50, side 200
    np.testing.assert_allclose(Square(100, 200).to_fractions([10, 20, 40, 60]), [0.3, 0.1, 0.45, 0.3])


@given(width=SIZES, height=SIZES, x=st.floats(-10, 5000), y=st.floats(-10, 5000))
def test_pixels_and_fractions_of_the_square_round_trip(width, height, x, y):
    square = Square(width, height)
    np.testing.assert_allclose(square.to_pixels(square.to_fractions([x, y])), [x, y], atol=1e-6)


@st.composite
def _boxes(draw: st.DrawFn) -> tuple[Square, np.ndarray]:
    """An image of 16..4096 px and any box inside it that has an area, possibly very thin."""
    width, height = draw(st.integers(16, 4096)), draw(st.integers(16, 4096))
    cx, cy = draw(st.floats(0.001, 0.999)) * width, draw(st.floats(0.001, 0.999)) * height
    diagonal = 2 * draw(st.floats(1e-4, 1)) * min(cx, cy, width - cx, height - cy)
    slant = draw(st.floats(1e-4, math.pi / 2 - 1e-4))  # angle of the diagonal to `angle`: gives thin boxes and squares
    angle = draw(st.sampled_from([0.0, math.pi / 4, math.pi / 2]) | ANGLES)
    w, h = diagonal * math.cos(slant), diagonal * math.sin(slant)
    polygon = rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)
    assume(not degeneracy(polygon, width=width, height=height))
    return Square(width, height), polygon


@given(box=_boxes(), decimals=st.integers(1, 4), kind=st.sampled_from(BoxKind))
@settings(deadline=None, max_examples=300)
def test_every_box_is_parsed_as_it_was_rounded_or_with_the_smallest_area(box, decimals, kind):
    square, polygon = box
    expected = rect_to_polygon(*polygon_to_rect(polygon)) if kind is BoxKind.HBB else polygon
    parsed = parse(format_boxes([polygon], square=square, decimals=decimals, kind=kind))
    assert parsed.box_format == "mmrs" and not parsed.rejections and [b.kind for b in parsed.boxes] == [kind]
    read, step = parsed.boxes[0].pixels(square), 10**-decimals * square.side
    fractions = np.clip(square.to_fractions(expected), 0, 1)
    rounded = np.array([float(f"{value:.{decimals}f}") for value in fractions])
    if degeneracy(rounded, width=1, height=1):
        np.testing.assert_allclose(polygon_to_rect(read), polygon_to_rect(expected), atol=1.5 * step + 2e-3)
    else:
        np.testing.assert_allclose(read, expected, atol=0.5 * step + 2e-3)


@pytest.mark.parametrize(
    ("corners", "hbb"),
    [
        ((50, 20.1, 60, 20.3), "[0.50,0.20,0.60,0.21]"),  # no height: widened downwards
        ((50.1, 20, 50.3, 30), "[0.50,0.20,0.51,0.30]"),  # no width: widened to the right
        ((50.1, 20.1, 50.3, 20.3), "[0.50,0.20,0.51,0.21]"),
        ((99.7, 20, 100, 30), "[0.99,0.20,1.00,0.30]"),  # at the right edge: widened to the left
        ((99.7, 99.7, 100, 100), "[0.99,0.99,1.00,1.00]"),
        ((0, 0, 0.1, 0.1), "[0.00,0.00,0.01,0.01]"),
        ((100, 20, 105, 30), "[0.99,0.20,1.00,0.30]"),  # only touches the image
    ],
)
def test_a_box_whose_area_is_lost_to_rounding_is_widened_by_one_step(corners, hbb):
    box, options = rect_to_polygon(*corners), {"square": Square(100, 100), "decimals": 2}
    assert format_boxes([box], kind=BoxKind.HBB, **options) == hbb
    x0, y0, x1, y1 = hbb.strip("[]").split(",")
    assert format_boxes([box], kind=BoxKind.OBB, **options) == f"[{x0},{y0},{x1},{y0},{x1},{y1},{x0},{y1}]"


def test_an_oriented_box_whose_area_is_lost_to_rounding_becomes_its_enclosing_rectangle():
    line = np.array([10.1, 10, 30.1, 30, 29.9, 30, 9.9, 10])
    options = {"square": Square(100, 100), "kind": BoxKind.OBB}
    assert format_boxes([line], decimals=2, **options) == "[0.10,0.10,0.30,0.10,0.30,0.30,0.10,0.30]"
    assert format_boxes([line], decimals=3, **options) == "[0.099,0.100,0.101,0.100,0.301,0.300,0.299,0.300]"


@pytest.mark.parametrize("kind", BoxKind)
def test_the_count_in_the_text_is_the_number_of_boxes_even_for_tiny_ones(kind):
    ships = [rect_to_polygon(x, x, x + 3, x + 1) for x in (0, 1000, 1001, 4093)]
    text = format_detection({"ship": ships}, square=Square(4096, 4096), decimals=2, kind=kind)
    assert "<p>four ships</p>" in text and len(parse(text).boxes) == 4 and not parse(text).rejections


def test_detection_text_round_trips():
    square = Square(100, 100)
    ships = [rect_to_polygon(50, 60, 70, 80), rect_to_polygon(10, 20, 30, 40)]
    groups = {"ship": ships, "airplane": [rect_to_polygon(0, 0, 100, 100)]}
    text = format_detection(groups, square=square, decimals=2, kind=BoxKind.HBB)
    assert text == (
        "There are <p>one airplane</p>[0.00,0.00,1.00,1.00] and "
        "<p>two ships</p>[0.10,0.20,0.30,0.40;0.50,0.60,0.70,0.80] in the image."
    )
    assert [(box.label, box.kind) for box in parse(text).boxes] == [
        ("airplane", "hbb"),
        ("ship", "hbb"),
        ("ship", "hbb"),
    ]
    one = format_detection({"ship": ships[:1]}, square=square, decimals=3, kind=BoxKind.OBB)
    assert one.startswith("There is <p>one ship</p>[0.500,0.600,0.700,0.600,")
    none = format_detection({}, square=square, decimals=2, kind=BoxKind.HBB)
    assert none == "There are no objects in the image." and parse(none).boxes == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[0.1,0.2,0.3]", "expected 4 or 8 numbers, got 3"),
        ("[0.1,0.2,0.3,x]", "'x' is not a number"),
        ("[0.5,0.2,0.3,0.4]", "no area"),
        ("[0.1,0.2,0.3,1.4]", "1.4 exceeds the square"),
        ("[0.1,0.2,0.3,0.4", "not closed"),
        ("[]", "expected 4 or 8 numbers"),
        ("[0.1,0.1,0.2,0.1,0.3,0.1,0.4,0.1]", "cross or coincide"),
        ("[-0.1,0.2,0.3,0.4]", "'-0.1' is not a number"),
        ("[nan,0.2,0.3,0.4]", "'nan' is not a number"),
    ],
)
def test_malformed_boxes_are_rejected_with_the_reason(text, reason):
    parsed = parse(text)
    assert not parsed.boxes and any(reason in rejection for rejection in parsed.rejections), parsed


def test_a_malformed_box_does_not_affect_the_others():
    parsed = parse("<p>13 ships</p>[0.1,0.1,0.2,0.2;0.3,0.3] and <p>1 bus</p>[0.5,0.5,0.6,0.6]")
    assert [box.label for box in parsed.boxes] == ["ship", "bus"]
    assert len(parsed.rejections) == 1


@given(st.text(max_size=60))
def test_parse_never_raises(text):
    parse(text)


@pytest.mark.parametrize(
    "noun",
    ["ship", "bus", "storage tank", "tennis court", "aircraft", "person", "ferry", "airplane", "bridge", "glass",
     "windmill", "box", "harbor", "ground track field"],
)  # fmt: skip
def test_plural_and_singular_are_inverse(noun):
    assert singular(plural(noun)) == noun


def test_counts_are_words_up_to_ten():
    assert [count_phrase("ship", n) for n in (1, 2, 10, 11)] == ["one ship", "two ships", "ten ships", "11 ships"]


def test_degeneracy_gives_the_reason():
    box = rect_to_polygon(10, 10, 20, 20)
    assert degeneracy(box, width=100, height=100) == ""
    assert degeneracy(box - 12, width=100, height=100) == ""  # partly outside is fine
    assert "outside" in degeneracy(box + 200, width=100, height=100)
    assert degeneracy(rect_to_polygon(1, 1, 1, 5), width=9, height=9)
    assert "finite" in degeneracy(np.array([np.nan] * 8), width=9, height=9)
    assert "cross" in degeneracy(np.array([0, 0, 5, 5, 5, 0, 0, 5.0]), width=9, height=9)
