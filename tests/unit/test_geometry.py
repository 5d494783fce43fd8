import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.geometry import (
    BoxKind,
    Square,
    canonical,
    counted,
    degenerate,
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


def test_a_rotated_box_by_hand():
    # 4 wide, 2 high, a quarter turn clockwise on screen: now 2 wide, 4 high
    polygon = rotated_to_polygon(cx=10, cy=10, w=4, h=2, angle=math.pi / 2)
    np.testing.assert_allclose(polygon, [9, 8, 11, 8, 11, 12, 9, 12], atol=1e-5)
    # an eighth turn clockwise: the right end of the long side goes down
    polygon = rotated_to_polygon(cx=0, cy=0, w=2, h=0.0001, angle=math.pi / 4).reshape(4, 2)
    assert polygon[np.argmax(polygon[:, 0]), 1] > 0


def test_canonical_starts_at_the_top_and_goes_clockwise():
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0], [1, 0, 3, 2]):
        corners = np.array([[5, 0], [9, 4], [5, 8], [1, 4]], np.float32)[order]
        np.testing.assert_array_equal(canonical(corners.reshape(-1)), [5, 0, 9, 4, 5, 8, 1, 4])
    np.testing.assert_array_equal(canonical(np.array([4, 6, 0, 6, 0, 2, 4, 2])), [0, 2, 4, 2, 4, 6, 0, 6])


@given(cx=st.floats(-50, 50), cy=st.floats(-50, 50), w=st.floats(1, 40), h=st.floats(1, 40), angle=ANGLES)
@settings(deadline=None)
def test_rotation_by_half_a_turn_is_the_same_box_and_area_is_kept(cx, cy, w, h, angle):
    box = _shape(rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle))
    again = _shape(rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle + math.pi))
    swapped = _shape(rotated_to_polygon(cx=cx, cy=cy, w=h, h=w, angle=angle + math.pi / 2))
    assert box.area == pytest.approx(w * h, rel=1e-3)
    assert box.symmetric_difference(again).area < 1e-2 * box.area + 1e-2
    assert box.symmetric_difference(swapped).area < 1e-2 * box.area + 1e-2


@given(cx=st.floats(0, 50), cy=st.floats(0, 50), w=st.floats(2, 40), h=st.floats(2, 40), angle=ANGLES)
@settings(deadline=None)
def test_canonical_is_idempotent_and_min_area_rect_finds_a_rectangle_again(cx, cy, w, h, angle):
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
def test_pixels_to_square_and_back(width, height, x, y):
    square = Square(width, height)
    np.testing.assert_allclose(square.to_pixels(square.to_fractions([x, y])), [x, y], atol=1e-6)


@given(
    width=st.integers(64, 2000), ratio=st.floats(0.4, 2.5), decimals=st.integers(2, 4), angle=ANGLES,
    kind=st.sampled_from(BoxKind),
)  # fmt: skip
@settings(deadline=None)
def test_text_round_trip_is_within_half_a_step(width, ratio, decimals, angle, kind):
    height = round(width * ratio)
    square = Square(width, height)
    # Long enough that rounding cannot make it degenerate, and inside the image at any angle.
    w, h = 0.5 * min(width, height), 0.3 * min(width, height)
    polygon = rotated_to_polygon(cx=width / 2, cy=height / 2, w=w, h=h, angle=angle)
    text = format_boxes([polygon], square=square, decimals=decimals, kind=kind)
    parsed = parse(text)
    assert parsed.grammar == "mmrs" and not parsed.rejections and len(parsed.boxes) == 1
    expected = rect_to_polygon(*polygon_to_rect(polygon)) if kind is BoxKind.HBB else polygon
    half_a_step = 0.5 * 10**-decimals * square.side
    np.testing.assert_allclose(parsed.boxes[0].pixels(square), expected, atol=half_a_step + 2e-3)


def test_a_box_thinner_than_a_step_is_written_but_cannot_be_read_back():
    """A known limit: rounding leaves it no area, and the parser takes no box without area."""
    square = Square(64, 1920)
    text = format_boxes([rect_to_polygon(16, 955, 48, 964)], square=square, decimals=2, kind=BoxKind.HBB)
    assert parse(text).boxes == () and "no area" in parse(text).rejections[0]
    finer = format_boxes([rect_to_polygon(16, 955, 48, 964)], square=square, decimals=3, kind=BoxKind.HBB)
    assert len(parse(finer).boxes) == 1


def test_detection_text_and_back():
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
        ("[0.1,0.2,0.3,1.4]", "1.4 is beyond the square"),
        ("[0.1,0.2,0.3,0.4", "not closed"),
        ("[]", "expected 4 or 8 numbers"),
        ("[0.1,0.1,0.2,0.1,0.3,0.1,0.4,0.1]", "cross or coincide"),
        ("[-0.1,0.2,0.3,0.4]", "'-0.1' is not a number"),
        ("[nan,0.2,0.3,0.4]", "'nan' is not a number"),
    ],
)
def test_what_is_not_a_box_is_rejected_with_its_reason(text, reason):
    parsed = parse(text)
    assert not parsed.boxes and any(reason in rejection for rejection in parsed.rejections), parsed


def test_a_bad_box_does_not_take_the_good_ones_with_it():
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
    assert [counted("ship", n) for n in (1, 2, 10, 11)] == ["one ship", "two ships", "ten ships", "11 ships"]


def test_degenerate_says_why():
    box = rect_to_polygon(10, 10, 20, 20)
    assert degenerate(box, width=100, height=100) == ""
    assert degenerate(box - 12, width=100, height=100) == ""  # partly outside is fine
    assert "outside" in degenerate(box + 200, width=100, height=100)
    assert degenerate(rect_to_polygon(1, 1, 1, 5), width=9, height=9)
    assert "finite" in degenerate(np.array([np.nan] * 8), width=9, height=9)
    assert "cross" in degenerate(np.array([0, 0, 5, 5, 5, 0, 0, 5.0]), width=9, height=9)
