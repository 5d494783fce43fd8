"""Parameterizations: what the numbers of a box stand for, in both directions.

A decoder takes the numbers of one box, as fractions of the image and an angle in degrees, and returns 4 numbers
(x0, y0, x1, y1; axis-aligned) or 8 (a polygon). It raises ValueError with the reason if they do not describe a box. An
encoder (`to_...`) is its inverse: it takes a polygon in fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes.polygons import degeneracy, polygon_to_rect, polygon_to_rotated, rotated_to_polygon

Numbers = Sequence[float]


# ---------------------------------------------------------------------------------------------- decoders
def axis_aligned(numbers: Numbers) -> Numbers:
    """Decode x0, y0, x1, y1."""
    x0, y0, x1, y1 = numbers
    if x0 >= x1 or y0 >= y1:
        raise ValueError("no area: x0 < x1 and y0 < y1 expected")
    return numbers


def corners(numbers: Numbers) -> Numbers:
    """Decode the eight coordinates of four corners."""
    if reason := degeneracy(np.asarray(numbers), width=1, height=1):
        raise ValueError(reason)
    return numbers


def by_length(numbers: Numbers) -> Numbers:
    """Decode four numbers as `axis_aligned`, eight as `corners`."""
    return axis_aligned(numbers) if len(numbers) == 4 else corners(numbers)


def rotated_rect(numbers: Numbers, *, sign: int) -> Numbers:
    """Decode x0, y0, x1, y1 of a box before its rotation about its centre, and the angle; four numbers: no rotation.

    Args:
        sign: 1 if positive angles are clockwise on screen, -1 if they are counter-clockwise.
    """
    x0, y0, x1, y1 = axis_aligned(numbers[:4])
    if len(numbers) == 4:
        return numbers
    return _polygon((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, sign * numbers[4])


def center_size_angle(numbers: Numbers) -> Numbers:
    """Decode cx, cy, w, h and the angle, clockwise on screen."""
    cx, cy, w, h, degrees = numbers
    if not w or not h:
        raise ValueError("no area: w > 0 and h > 0 expected")
    return _polygon(cx, cy, w, h, degrees)


def diagonal_angle(numbers: Numbers) -> Numbers:
    """Decode the corners nearest to and farthest from the origin, and the angle of one side."""
    x0, y0, x1, y1, degrees = numbers
    angle, dx, dy = math.radians(degrees), x1 - x0, y1 - y0
    w = abs(dx * math.cos(angle) + dy * math.sin(angle))
    h = abs(dy * math.cos(angle) - dx * math.sin(angle))
    if min(w, h) < 1e-6 or math.hypot(x0, y0) >= math.hypot(x1, y1):
        raise ValueError("no area, or the first corner is not the nearest to the origin")
    return _polygon((x0 + x1) / 2, (y0 + y1) / 2, w, h, degrees)


def _polygon(cx: float, cy: float, w: float, h: float, degrees: float) -> Numbers:
    return rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=math.radians(degrees)).tolist()


# ---------------------------------------------------------------------------------------------- encoders
def to_axis_aligned(polygon: np.ndarray) -> Numbers:
    """Encode as the enclosing x0, y0, x1, y1."""
    return polygon_to_rect(polygon)


def to_corners(polygon: np.ndarray) -> Numbers:
    """Encode as the eight coordinates of the corners."""
    return polygon.tolist()


def to_rotated_rect(polygon: np.ndarray, *, sign: int) -> Numbers:
    """Encode for `rotated_rect`."""
    cx, cy, w, h, degrees = to_center_size_angle(polygon)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, sign * degrees


def to_center_size_angle(polygon: np.ndarray) -> Numbers:
    """Encode for `center_size_angle`."""
    box = polygon_to_rotated(polygon)
    return box.cx, box.cy, box.w, box.h, math.degrees(box.angle)


def to_diagonal_angle(polygon: np.ndarray) -> Numbers:
    """Encode for `diagonal_angle`."""
    points = polygon.reshape(4, 2)
    nearest = int(np.argmin(np.hypot(*points.T)))
    return *points[nearest].tolist(), *points[(nearest + 2) % 4].tolist(), to_center_size_angle(polygon)[4]
