"""Boxes as polygons in pixels: made, brought into canonical form, judged, clipped."""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
import shapely

_NEXT = [1, 2, 3, 0]  # the corner behind each; `np.roll` takes ten times as long


class BoxKind(enum.StrEnum):
    HBB = "hbb"
    OBB = "obb"


def rect_to_polygon(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """A horizontal box's four corners, f32[8], clockwise from the top left."""
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float32)


def rotated_to_polygon(*, cx: float, cy: float, w: float, h: float, angle: float) -> np.ndarray:
    """An oriented box's corners, canonical; `w` lies along `angle` (radians, clockwise on screen)."""
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
    """Centre, sides and angle; `w >= h` lies along `angle`, radians in [-pi/2, pi/2), clockwise on screen.

    The long side's direction has the period pi. Of a square, whose directions have the period pi/2, `angle` is
    that of the side in [-pi/4, pi/4).
    """

    cx: float
    cy: float
    w: float
    h: float
    angle: float


# Sides that differ by less (relatively) are those of a square: coordinates are f32.
_SQUARE = 1e-4


def polygon_to_rotated(polygon: np.ndarray) -> RotatedBox:
    """The smallest oriented box around a quadrilateral; of a rectangle, itself.

    Raises:
        ValueError: the polygon spans no area.
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
    """The enclosing horizontal box (x0, y0, x1, y1)."""
    points = np.asarray(polygon).reshape(-1, 2)
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x0, y0, x1, y1


def canonical(polygon: np.ndarray) -> np.ndarray:
    """The same quadrilateral, clockwise on screen from its top-most (then left-most) corner; idempotent."""
    points = np.asarray(polygon, np.float32).reshape(4, 2)
    following = points[_NEXT]
    # The shoelace sum is positive for clockwise on screen, where y points down.
    if np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]) < 0:
        points = points[::-1]
    start = min(range(4), key=lambda i: (points[i, 1], points[i, 0]))
    return np.concatenate([points[start:], points[:start]]).reshape(-1)


def area(polygon: np.ndarray) -> float:
    """Of a quadrilateral, in squares of its own unit."""
    x, y = np.asarray(polygon, np.float64).reshape(4, 2).T
    return abs(float(np.dot(x, y[_NEXT]) - np.dot(x[_NEXT], y))) / 2


def min_area_rect(points: np.ndarray) -> np.ndarray:
    """The smallest oriented box around f[N, 2] points, canonical."""
    rectangle = shapely.minimum_rotated_rectangle(shapely.MultiPoint(np.asarray(points, np.float64)))
    if rectangle.geom_type != "Polygon":
        raise ValueError(f"min_area_rect: the points span no area: {np.asarray(points).tolist()}")
    return canonical(np.asarray(rectangle.exterior.coords)[:4].reshape(-1))


def clip(polygon: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> tuple[np.ndarray, float]:
    """What of a box is inside the rectangle x0, y0, x1, y1: `(polygon f32[8], share of its area)`, same coordinates.

    A box wholly inside comes back as it is. Of any other, the polygon is the smallest oriented box around what
    is inside: upright boxes stay upright and inside; a slanted one may keep a corner beyond the border.
    Nothing inside: share 0 and a polygon of NaN.

    Raises:
        ValueError: the polygon is no box (see `degenerate`).
    """
    if reason := degeneracy(polygon, width=0, height=0):
        raise ValueError(f"clipped: {reason}: {np.asarray(polygon).tolist()}")
    whole = shapely.Polygon(np.asarray(polygon, np.float64).reshape(4, 2))
    window = shapely.box(x0, y0, x1, y1)
    if window.covers(whole):
        return canonical(polygon), 1.0
    inside = whole.intersection(window)
    upright = whole.equals(whole.envelope)  # exactly so afterwards too
    around = inside.envelope if upright else shapely.minimum_rotated_rectangle(inside)
    if around.area:
        corners = canonical(np.asarray(around.exterior.coords)[:4].reshape(-1))
        if not degeneracy(corners, width=0, height=0):
            return corners, min(inside.area / whole.area, 1.0)
    return np.full(8, np.nan, np.float32), 0.0  # nothing, a touch, or a sliver too thin for its numbers


# Below what four decimals can write: the same function judges pixels and fractions of a square.
_NO_AREA = 1e-9


def degeneracy(polygon: np.ndarray, *, width: int, height: int) -> str:
    """Why a box cannot be used; "" if it can. Corners a little outside of the image are fine."""
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
