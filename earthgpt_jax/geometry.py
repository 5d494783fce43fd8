"""Boxes: horizontal, oriented, polygons; pixels <-> padded square; text. The only place that knows a box grammar.

Conventions: pixels have x to the right and y down; a polygon is f32[8], x1,y1,...,x4,y4, clockwise on
screen from the corner with the smallest y (of equals, the smallest x); angles are radians, clockwise on screen.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import shapely

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class BoxKind(enum.StrEnum):
    HBB = "hbb"
    OBB = "obb"


# ------------------------------------------------------------------------------------------- polygons
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


def polygon_to_rect(polygon: np.ndarray) -> tuple[float, float, float, float]:
    """The enclosing horizontal box (x0, y0, x1, y1)."""
    points = np.asarray(polygon).reshape(-1, 2)
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x0, y0, x1, y1


def canonical(polygon: np.ndarray) -> np.ndarray:
    """The same quadrilateral, clockwise on screen from its top-most (then left-most) corner; idempotent."""
    points = np.asarray(polygon, np.float32).reshape(4, 2)
    following = np.roll(points, -1, axis=0)
    # The shoelace sum is positive for clockwise on screen, where y points down.
    if np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]) < 0:
        points = points[::-1]
    start = min(range(4), key=lambda i: (points[i, 1], points[i, 0]))
    return np.roll(points, -start, axis=0).reshape(-1)


def min_area_rect(points: np.ndarray) -> np.ndarray:
    """The smallest oriented box around f[N, 2] points, canonical."""
    rectangle = shapely.minimum_rotated_rectangle(shapely.MultiPoint(np.asarray(points, np.float64)))
    if rectangle.geom_type != "Polygon":
        raise ValueError(f"min_area_rect: the points span no area: {np.asarray(points).tolist()}")
    return canonical(np.asarray(rectangle.exterior.coords)[:4].reshape(-1))


def clipped(polygon: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> tuple[np.ndarray, float]:
    """What of a box is inside the rectangle x0, y0, x1, y1: `(polygon f32[8], share of its area)`, same coordinates.

    A box wholly inside comes back as it is. Of any other, the polygon is the smallest oriented box around what
    is inside: upright boxes stay upright and inside; a slanted one may keep a corner beyond the border.
    Nothing inside: share 0 and a polygon of NaN.

    Raises:
        ValueError: the polygon is no box (see `degenerate`).
    """
    if reason := degenerate(polygon, width=0, height=0):
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
        if not degenerate(corners, width=0, height=0):
            return corners, min(inside.area / whole.area, 1.0)
    return np.full(8, np.nan, np.float32), 0.0  # nothing, a touch, or a sliver too thin for its numbers


# Below what four decimals can write: the same function judges pixels and fractions of a square.
_NO_AREA = 1e-9


def degenerate(polygon: np.ndarray, *, width: int, height: int) -> str:
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


# --------------------------------------------------------------------------------------- padded square
@dataclasses.dataclass(frozen=True)
class Square:
    """The square that an image is padded to: fractions of it are what box texts hold.

    The shorter side is padded by floor(difference / 2) before it (EarthGPT's README; LLaMA2-Accessory).
    """

    width: int
    height: int

    @property
    def side(self) -> int:
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """Padding left of and above the image, in pixels."""
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def to_fractions(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Pixels of the original image -> fractions of the square; x and y alternate."""
        return ((np.asarray(coordinates, np.float64).reshape(-1, 2) + self.offset) / self.side).reshape(-1)

    def to_pixels(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """The inverse of `to_fractions`."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) * self.side - self.offset).reshape(-1)


# ------------------------------------------------------------------------------------------------ text
# Words whose plural the rules of `plural` and `singular` would get wrong.
_IRREGULAR = {
    "aircraft": "aircraft", "person": "people", "bus": "buses", "gas": "gases", "series": "series",
    "lens": "lenses", "barracks": "barracks", "dontcare": "dontcare",
}  # fmt: skip
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}


def _last_word(noun: str) -> tuple[str, str]:
    """`school bus` -> `("school ", "bus")`."""
    start = noun.rfind(" ") + 1
    return noun[:start], noun[start:]


def plural(noun: str) -> str:
    """More than one of a noun phrase: the last word changes."""
    start, last = _last_word(noun)
    if last in _IRREGULAR:
        return start + _IRREGULAR[last]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def singular(noun: str) -> str:
    """The inverse of `plural`."""
    start, last = _last_word(noun)
    if last in _SINGULAR:
        return start + _SINGULAR[last]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if re.search(r"(ss|x|z|ch|sh)es$", noun):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def counted(noun: str, count: int) -> str:
    """`two ships`; words up to ten, digits beyond."""
    number = _WORDS[count] if count < len(_WORDS) else str(count)
    return f"{number} {noun if count == 1 else plural(noun)}"


def format_boxes(polygons: Iterable[np.ndarray], *, square: Square, decimals: int, kind: BoxKind) -> str:
    """`[x0,y0,x1,y1;...]` in fractions of the padded square, or eight numbers a box for OBB.

    Boxes go from top to bottom, then from left to right, by their text's first corner as printed. A box that
    rounding leaves without area is widened by a step, so `parse` takes every box that is written.
    """
    rows = [_rounded(polygon, square=square, decimals=decimals, kind=kind) for polygon in polygons]
    rows.sort(key=lambda row: (row[1], row[0], row))
    return "[" + ";".join(",".join(f"{n / 10**decimals:.{decimals}f}" for n in row) for row in rows) + "]"


def _rounded(polygon: np.ndarray, *, square: Square, decimals: int, kind: BoxKind) -> list[int]:
    """A box in whole steps of 10**-decimals of the square's side, never without area."""
    numbers = polygon_to_rect(polygon) if kind is BoxKind.HBB else canonical(polygon)
    # Through text, which rounds the number itself; a product with 10**decimals would be rounded twice.
    steps = [int(f"{v:.{decimals}f}".replace(".", "")) for v in np.clip(square.to_fractions(numbers), 0.0, 1.0)]
    if kind is BoxKind.HBB:
        return _widened(steps, end=10**decimals)
    if not degenerate(np.divide(steps, 10**decimals), width=1, height=1):
        return steps
    # Its direction is lost to rounding: the enclosing upright rectangle.
    x0, y0, x1, y1 = _widened(polygon_to_rect(np.array(steps)), end=10**decimals)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _widened(rectangle: Sequence[float], *, end: int) -> list[int]:
    """A side of no length grows by a step to the right or down; at the square's `end`, to the left or up."""
    x0, y0, x1, y1 = map(int, rectangle)
    x0, y0 = min(x0, end - 1), min(y0, end - 1)
    return [x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)]


def format_detection(
    groups: Mapping[str, Sequence[np.ndarray]], *, square: Square, decimals: int, kind: BoxKind
) -> str:
    """`There are <p>two ships</p>[...] and <p>one airplane</p>[...] in the image.`, labels in alphabetical order."""
    items = [
        f"<p>{counted(label, len(polygons))}</p>" + format_boxes(polygons, square=square, decimals=decimals, kind=kind)
        for label, polygons in sorted(groups.items())
        if len(polygons)
    ]
    if not items:
        return "There are no objects in the image."
    verb = "is" if len(items) == 1 and items[0].startswith("<p>one ") else "are"
    listed = items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
    return f"There {verb} {listed} in the image."


@dataclasses.dataclass(frozen=True)
class ParsedBox:
    """A box read from text: label ("" where none was given), 4 or 8 fractions of the padded square."""

    label: str
    coords: tuple[float, ...]
    kind: BoxKind

    def pixels(self, square: Square) -> np.ndarray:
        """The polygon f32[8] in pixels of the original image."""
        polygon = rect_to_polygon(*self.coords) if self.kind is BoxKind.HBB else np.asarray(self.coords)
        return square.to_pixels(polygon).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a text says of boxes; `grammar` is "" where none was recognised."""

    grammar: str
    boxes: tuple[ParsedBox, ...]
    rejections: tuple[str, ...]


_BRACKET = re.compile(r"(?:<p>(?P<phrase>[^<>]*)</p>\s*)?\[(?P<body>[^\[\]]*)\]")
_NUMBER = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")


def _read_mmrs(text: str) -> Parsed:
    boxes, rejections = [], []
    end = 0
    for match in _BRACKET.finditer(text):
        rejections += _unclosed(text[end : match.start()])
        end = match.end()
        label = _label(match["phrase"] or "")
        for part in match["body"].split(";"):
            reason, box = _read_box(part, label)
            if box is None:
                rejections.append(f"{part.strip()!r}: {reason}")
            else:
                boxes.append(box)
    rejections += _unclosed(text[end:])
    return Parsed("mmrs", tuple(boxes), tuple(rejections))


def _unclosed(between: str) -> list[str]:
    """A rejection for each bracket that opens in text outside of complete brackets."""
    return [f"{'[' + part!r}: the bracket is not closed" for part in between.split("[")[1:]]


def _read_box(part: str, label: str) -> tuple[str, ParsedBox | None]:
    fields = part.split(",")
    if len(fields) not in (4, 8):
        return f"expected 4 or 8 numbers, got {len(fields)}", None
    bad = [field for field in fields if not _NUMBER.fullmatch(field)]
    if bad:
        return f"{bad[0].strip()!r} is not a number", None
    values = tuple(float(field) for field in fields)
    if max(values) > 1:
        return f"{max(values):g} is beyond the square", None
    if len(values) == 4:
        if values[0] >= values[2] or values[1] >= values[3]:
            return "no area: x0 < x1 and y0 < y1 expected", None
        return "", ParsedBox(label, values, BoxKind.HBB)
    reason = degenerate(np.asarray(values), width=1, height=1)
    return (reason, None) if reason else ("", ParsedBox(label, values, BoxKind.OBB))


def _label(phrase: str) -> str:
    """`13 ships` -> `ship`: the count goes, the noun becomes singular where the count was not one."""
    words = phrase.strip().lower().split()
    if words and (words[0].isdigit() or words[0] in _WORDS):
        noun = " ".join(words[1:])
        return noun if words[0] in ("1", "one") else singular(noun)
    return " ".join(words)


# A row a grammar: (name, does it look like it, reader). The first that fits reads.
_GRAMMARS: tuple[tuple[str, Callable[[str], bool], Callable[[str], Parsed]], ...] = (
    ("mmrs", lambda text: "[" in text, _read_mmrs),
)


def parse(text: str) -> Parsed:
    """Reads the boxes of an answer, strictly: whatever is not exactly a box is rejected with its reason."""
    for _, fits, read in _GRAMMARS:
        if fits(text):
            return read(text)
    return Parsed("", (), ())
