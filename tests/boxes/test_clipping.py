"""Clipping a box to a rectangle, as at the border of a tile, compared with shapely's intersection."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.boxes import clip, degeneracy, polygon_to_rect, rect_to_polygon, rotated_to_polygon

COORDINATES = st.floats(-100, 200)
SIDES = st.floats(0.5, 150)
WINDOW = (0.0, 0.0, 100.0, 80.0)


def _shape(polygon):
    return shapely.Polygon(np.asarray(polygon, np.float64).reshape(4, 2))


@given(x=COORDINATES, y=COORDINATES, w=SIDES, h=SIDES)
@settings(deadline=None)
def test_an_axis_aligned_box_is_cut_at_the_border(x, y, w, h):
    box = rect_to_polygon(x, y, x + w, y + h)
    polygon, share = clip(box, *WINDOW)
    inside = _shape(box).intersection(shapely.box(*WINDOW))
    assert share == pytest.approx(inside.area / _shape(box).area, abs=1e-6) or np.isnan(polygon).all()
    if share:
        np.testing.assert_allclose(polygon, rect_to_polygon(*inside.bounds), atol=1e-4)
        left, top, right, bottom = polygon_to_rect(polygon)
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80


@given(cx=COORDINATES, cy=COORDINATES, w=SIDES, h=SIDES, angle=st.floats(-4, 4))
@settings(deadline=None)
def test_an_oriented_box_becomes_the_smallest_around_the_part_inside(cx, cy, w, h, angle):
    box = rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)
    polygon, share = clip(box, *WINDOW)
    inside = _shape(box).intersection(shapely.box(*WINDOW))
    assert 0 <= share <= 1
    if not share:
        assert np.isnan(polygon).all() and inside.area < 1e-2
        return
    assert not degeneracy(polygon, width=100, height=80)
    assert share == pytest.approx(inside.area / _shape(box).area, abs=1e-6)
    assert inside.difference(_shape(polygon)).area < 1e-3 * inside.area + 1e-3
    # Never larger than the box, nor than the axis-aligned rectangle around the part.
    assert _shape(polygon).area <= min(_shape(box).area, inside.envelope.area) * 1.001 + 1e-3


def test_a_box_inside_keeps_its_corners_even_if_it_is_not_a_rectangle():
    trapezium = np.array([10, 10, 30, 12, 28, 30, 12, 25], np.float32)
    polygon, share = clip(trapezium, *WINDOW)
    assert share == 1 and polygon.tolist() == trapezium.tolist()


def test_boxes_outside_or_touching_have_no_share_and_invalid_boxes_raise():
    for box in (rect_to_polygon(200, 0, 210, 10), rect_to_polygon(100, 0, 110, 10)):
        polygon, share = clip(box, *WINDOW)
        assert share == 0 and np.isnan(polygon).all()
    with pytest.raises(ValueError, match="coincide"):
        clip(np.array([0, 0, 1, 0, 1, 0, 0, 0.0]), *WINDOW)
