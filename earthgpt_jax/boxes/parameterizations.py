"""What the numbers of a box mean in the various grammars, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes.polygons import degeneracy, polygon_to_rect, polygon_to_rotated, rotated_to_polygon

Numbers = Sequence[float]


# A meaning takes the numbers of one box as fractions (an angle: degrees) and gives 4 or 8 fractions.
def upright(numbers: Numbers) -> Numbers:
    x0, y0, x1, y1 = numbers
    if x0 >= x1 or y0 >= y1:
        raise ValueError("no area: x0 < x1 and y0 < y1 expected")
    return numbers


def corners(numbers: Numbers) -> Numbers:
    if reason := degeneracy(np.asarray(numbers), width=1, height=1):
        raise ValueError(reason)
    return numbers


def turned(numbers: Numbers, *, sign: int) -> Numbers:
    """The un-rotated box and degrees that it is turned by about its centre; without an angle, upright."""
    x0, y0, x1, y1 = upright(numbers[:4])
    if len(numbers) == 4:
        return numbers
    return _rotated((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, sign * numbers[4])


def centred(numbers: Numbers) -> Numbers:
    cx, cy, w, h, degrees = numbers
    if not w or not h:
        raise ValueError("no area: w > 0 and h > 0 expected")
    return _rotated(cx, cy, w, h, degrees)


def diagonal(numbers: Numbers) -> Numbers:
    """The corners nearest to and farthest from the origin, and the angle of a side."""
    x0, y0, x1, y1, degrees = numbers
    angle, dx, dy = math.radians(degrees), x1 - x0, y1 - y0
    w = abs(dx * math.cos(angle) + dy * math.sin(angle))
    h = abs(dy * math.cos(angle) - dx * math.sin(angle))
    if min(w, h) < 1e-6 or math.hypot(x0, y0) >= math.hypot(x1, y1):
        raise ValueError("no area, or the first corner is not the nearest to the origin")
    return _rotated((x0 + x1) / 2, (y0 + y1) / 2, w, h, degrees)


def _rotated(cx: float, cy: float, w: float, h: float, degrees: float) -> Numbers:
    return rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=math.radians(degrees)).tolist()


# The inverse: a polygon in fractions as the numbers of one box.
def to_rect(polygon: np.ndarray) -> Numbers:
    return polygon_to_rect(polygon)


def to_corners(polygon: np.ndarray) -> Numbers:
    return polygon.tolist()


def to_turned(polygon: np.ndarray, *, sign: int) -> Numbers:
    cx, cy, w, h, degrees = to_centred(polygon)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, sign * degrees


def to_centred(polygon: np.ndarray) -> Numbers:
    box = polygon_to_rotated(polygon)
    return box.cx, box.cy, box.w, box.h, math.degrees(box.angle)


def to_diagonal(polygon: np.ndarray) -> Numbers:
    points = polygon.reshape(4, 2)
    near = int(np.argmin(np.hypot(*points.T)))
    return *points[near].tolist(), *points[(near + 2) % 4].tolist(), to_centred(polygon)[4]
