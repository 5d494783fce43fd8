"""Frames: padded square, full image, tile and resized copy; overlaps compared with shapely."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.boxes import FullImage, Square, Window, area, polygon_to_rect, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.evaluation.metrics.iou import hbb_ious, obb_ious

SIZES = st.integers(1, 4000)
PLACES = st.floats(-100, 5000)


@given(SIZES, SIZES, PLACES, PLACES, st.floats(-3000, 3000), st.floats(-3000, 3000), st.floats(0.01, 20))
@settings(deadline=None)
def test_every_frame_round_trips(width, height, x, y, left, top, scale):
    point = [x, y]
    for frame in (Square(width, height), FullImage(width, height)):
        np.testing.assert_allclose(frame.to_pixels(frame.to_fractions(point)), point, atol=1e-6)
    for window in (Window(x=left, y=top), Window(scale=scale), Window(x=left, y=top, scale=scale)):
        np.testing.assert_allclose(window.to_pixels(window.to_window(point)), point, atol=1e-5)


@given(SIZES, SIZES, PLACES, PLACES, st.integers(1, 2000))
@settings(deadline=None)
def test_the_resized_square_has_the_fractions_of_the_square(width, height, x, y, side):
    square = Square(width, height)
    resized = square.resized(side).to_window([x, y])
    np.testing.assert_allclose(resized / side, square.to_fractions([x, y]), atol=1e-6)


def test_frames_computed_by_hand():
    assert Window(x=512, y=0).to_window([600, 20]).tolist() == [88, 20]  # a tile
    assert Window(scale=0.5).to_window([600, 20]).tolist() == [300, 10]  # half the size
    assert Square(200, 100).resized(50).to_window([0, 0]).tolist() == [0, 12.5]  # 50 px of padding above
    assert FullImage(200, 100).to_fractions([50, 50]).tolist() == [0.25, 0.5]


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.5, 40), st.floats(0.5, 40), st.floats(-4, 4))
@settings(deadline=None)
def test_area_equals_shapelys(cx, cy, w, h, angle):
    polygon = rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)
    assert area(polygon) == pytest.approx(shapely.Polygon(polygon.reshape(4, 2)).area, rel=1e-6)


BOXES = st.lists(
    st.tuples(st.floats(0, 60), st.floats(0, 60), st.floats(2, 40), st.floats(2, 40), st.floats(-4, 4)),
    min_size=1, max_size=4,
)  # fmt: skip


@given(BOXES, BOXES)
@settings(deadline=None, max_examples=60)
def test_overlaps_equal_shapelys(one, two):
    oriented = [[rotated_to_polygon(cx=x, cy=y, w=w, h=h, angle=a) for x, y, w, h, a in boxes] for boxes in (one, two)]
    axis_aligned = [[rect_to_polygon(*polygon_to_rect(polygon)) for polygon in polygons] for polygons in oriented]
    rects = [np.array([polygon_to_rect(polygon) for polygon in polygons]) for polygons in oriented]
    for found, (left, right) in (
        (obb_ious(*(np.stack(polygons).astype(np.float64) for polygons in oriented)), oriented),
        (hbb_ious(*rects), axis_aligned),
    ):
        for i, a in enumerate(left):
            for j, b in enumerate(right):
                p, q = (shapely.Polygon(np.asarray(polygon, np.float64).reshape(4, 2)) for polygon in (a, b))
                assert found[i, j] == pytest.approx(p.intersection(q).area / p.union(q).area, abs=1e-5)
                assert 0 <= found[i, j] <= 1 + 1e-9
