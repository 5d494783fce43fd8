"""Boxes as polygons: conversions, canonical form, area, clipping, and validation."""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
import shapely

_NEXT = [1, 2, 3, 0]  # index of the next corner; `np.roll` takes ten times as long


class BoxKind(enum.StrEnum):
    """Horizontal (axis-aligned) or oriented bounding box."""

    HBB = "hbb"
    OBB = "obb"


def rect_to_polygon(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Return the corners of a horizontal box, f32[8], clockwise from the top left."""
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float32)


def rotated_to_polygon(*, cx: float, cy: float, w: float, h: float, angle: float) -> np.ndarray:
    """Return the corners of an oriented box, canonical f32[8]; `w` is along `angle` (radians, clockwise on screen)."""
    along = np.array([math.cos(angle), math.sin(angle)]) * w / 2
    across = np.array([-math.sin(angle), math.cos(angle)]) * h / 2
    centre = np.array([cx, cy])
    corners = [
        centre - along - across,
        centre + along - across,
        centre + along + across,
        centre - along + across,
    ]
    return canonical(np.concatenate(corners))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedBox:
    """An oriented box as centre, sides and angle.

    Attributes:
        cx, cy: centre.
        w, h: long and short side, `w >= h`.
        angle: direction of the long side, radians in [-pi/2, pi/2), clockwise on screen. For a square, whose sides are
            equivalent, radians in [-pi/4, pi/4).
    """

    cx: float
    cy: float
    w: float
    h: float
    angle: float


# Relative difference up to which two sides count as equal; coordinates are float32.
_SQUARE = 1e-4


def polygon_to_rotated(polygon: np.ndarray) -> RotatedBox:
    """Return the smallest oriented box around a quadrilateral; for a rectangle, the rectangle itself.

    Raises:
        ValueError: the polygon has no area.
    """
    corners = min_area_rect(np.asarray(polygon).reshape(-1, 2)).astype(np.float64).reshape(4, 2)
    along, across = corners[1] - corners[0], corners[2] - corners[1]
    w, h = float(np.hypot(*along)), float(np.hypot(*across))
    angle, period = math.atan2(along[1], along[0]), math.pi
    if abs(w - h) <= _SQUARE * max(w, h):
        period = math.pi / 2
    elif w < h:
        w, h, angle = h, w, angle + math.pi / 2
    cx, cy = corners.mean(axis=0).tolist()
    return RotatedBox(cx=cx, cy=cy, w=w, h=h, angle=(angle + period / 2) % period - period / 2)


def polygon_to_rect(polygon: np.ndarray) -> tuple[float, float, float, float]:
    """Return the enclosing horizontal box (x0, y0, x1, y1)."""
    points = np.asarray(polygon).reshape(-1, 2)
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x0, y0, x1, y1


def canonical(polygon: np.ndarray) -> np.ndarray:
    """Return the quadrilateral, f32[8], clockwise on screen from its top-most (then left-most) corner; idempotent."""
    points = np.asarray(polygon, np.float32).reshape(4, 2)
    following = points[_NEXT]
    # The shoelace sum is positive for a clockwise order on screen, because y points down.
    if np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]) < 0:
        points = points[::-1]
    start = min(range(4), key=lambda i: (points[i, 1], points[i, 0]))
    return np.concatenate([points[start:], points[:start]]).reshape(-1)


def area(polygon: np.ndarray) -> float:
    """Return the area of a quadrilateral, in squared units of its coordinates."""
    x, y = np.asarray(polygon, np.float64).reshape(4, 2).T
    return abs(float(np.dot(x, y[_NEXT]) - np.dot(x[_NEXT], y))) / 2


def min_area_rect(points: np.ndarray) -> np.ndarray:
    """Return the smallest oriented box around points f[N, 2], canonical f32[8].

    Raises:
        ValueError: the points have no area.
    """
    rectangle = shapely.minimum_rotated_rectangle(shapely.MultiPoint(np.asarray(points, np.float64)))
    if rectangle.geom_type != "Polygon":
        raise ValueError(f"min_area_rect: the points have no area: {np.asarray(points).tolist()}")
    return canonical(np.asarray(rectangle.exterior.coords)[:4].reshape(-1))


def clip(polygon: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> tuple[np.ndarray, float]:
    """Clip a box to the rectangle x0, y0, x1, y1 and return `(polygon f32[8], share of the area that is inside)`.

    A box that is completely inside is returned unchanged. Otherwise the polygon is the smallest oriented box around the
    part inside: an axis-aligned box stays axis-aligned and inside; an oriented box may have a corner outside. If
    nothing is inside, the share is 0 and the polygon NaN.

    Raises:
        ValueError: the polygon is not a valid box (see `degeneracy`).
    """
    if reason := degeneracy(polygon, width=0, height=0):
        raise ValueError(f"clip: {reason}: {np.asarray(polygon).tolist()}")
    whole = shapely.Polygon(np.asarray(polygon, np.float64).reshape(4, 2))
    window = shapely.box(x0, y0, x1, y1)
    if window.covers(whole):
        return canonical(polygon), 1.0
    inside = whole.intersection(window)
    axis_aligned = whole.equals(whole.envelope)
    around = inside.envelope if axis_aligned else shapely.minimum_rotated_rectangle(inside)
    if around.area:
        corners = canonical(np.asarray(around.exterior.coords)[:4].reshape(-1))
        if not degeneracy(corners, width=0, height=0):
            return corners, min(inside.area / whole.area, 1.0)
    return np.full(8, np.nan, np.float32), 0.0  # outside, touching, or too thin for float32


# Less than four decimals can express: the function is used for pixels and for fractions of a square.
_NO_AREA = 1e-9


def degeneracy(polygon: np.ndarray, *, width: int, height: int) -> str:
    """Return why a box is unusable, or "" if it is usable. Corners may lie outside of the image.

    Args:
        polygon: f[8].
        width, height: size of the image, which the box must overlap; 0: not checked.
    """
    points = np.asarray(polygon, np.float64)
    if points.shape != (8,):
        return f"expected 8 coordinates, got {points.size}"
    if not np.all(np.isfinite(points)):
        return "a coordinate is not finite"
    shape = shapely.Polygon(points.reshape(4, 2))
    if not shape.is_valid:
        return "its sides cross or coincide"
    if shape.area < _NO_AREA:
        return "zero area"
    if width and height and not shape.intersects(shapely.box(0, 0, width, height)):
        return f"outside of the {width}x{height} image"
    return ""
