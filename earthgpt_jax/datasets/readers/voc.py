"""Read XML annotations with one file per image: PASCAL VOC and the formats derived from it.

`DIALECTS` lists the formats. They differ in how a box is written:

- `bndbox`: a horizontal box (PASCAL VOC).
- `robndbox`: cx, cy, w, h and an angle in radians, clockwise on screen (roLabelImg, HIT-UAV), or four corners starting
  at the top left (DIOR-R, MAR20).
- `rotated_bndbox`: four corners x1..y4 (SSDD). OpenCV's angle in degrees is also given, but not used.
- `points`: a closed ring of points, the first one repeated at the end (FAIR1M).
- `mbox_*`: centre, sides and an angle in radians, clockwise on screen, along the ship (HRSC2016).
- `bndbox`, or `pixels` in a frame without objects, which also has an element for one (SIRST-V2).

Pixel coordinates are kept as written, because releases disagree on whether they start at 0 or 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from earthgpt_jax.boxes import min_area_rect, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, RawObject, int_or_zero, parse_number

Element = ElementTree.Element
_CORNER_TAGS = " ".join(f"{axis}_{corner}" for corner in ("left_top", "right_top", "right_bottom", "left_bottom")
                    for axis in "xy")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """Tag paths of one XML format.

    Attributes:
        box: returns the corners of an object element, f64[8], pixels; raises ValueError if it has no valid box.
        root: the outermost tag, in upper or lower case. Files with another root are rejected, because they would
            otherwise read as images without objects.
        item: tag of one object.
        name: tag of its class, inside the object.
        phrase: tag of its description, inside the object; "" if the format has none.
        size: tags of the image's width and height, inside the root.
        no_object: tag inside an object that stands for "nothing here"; "" if the format has none.
    """

    box: Callable[[Element], np.ndarray]
    root: str = "annotation"
    item: str = "object"
    name: str = "name"
    phrase: str = ""
    size: tuple[str, str] = ("size/width", "size/height")
    no_object: str = ""

    def objects(self, root: Element) -> Iterator[Element]:
        """Yield the elements of the objects of an annotation."""
        for item in root.iter(self.item):
            if not self.no_object or item.find(self.no_object) is None:
                yield item


def parse(part: Part, card: Card) -> Iterator[Entry]:
    for path, text in part.texts("annotations", ".xml"):
        yield entry(path, text, DIALECTS[card.format], part)


def entry(path: Path, text: str, dialect: Dialect, part: Part) -> Entry:
    """Return the entry of one file, with a `problem` if it is invalid."""
    # Images are found by the stem of the XML file: in some releases <filename> is wrong or lacks the suffix.
    name, file = path.stem, part.name(path)
    entry_id = part.prefix + name
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        # A few lines of nested entities expand to gigabytes, or overflow the parser's stack.
        return Entry(id=entry_id, image=name, file=file, problem="has a document type declaration")
    try:
        root = ElementTree.fromstring(text.lstrip("\ufeff \r\n"))
    except ElementTree.ParseError as error:
        return Entry(id=entry_id, image=name, file=file, problem=f"not XML: {error}")
    if root.tag.lower() != dialect.root.lower():
        problem = f"expected <{dialect.root}>, got <{root.tag}>: another format"
        return Entry(id=entry_id, image=name, file=file, problem=problem)
    width, height = (int_or_zero(root.findtext(tag)) for tag in dialect.size)
    return Entry(
        id=entry_id,
        image=name,
        file=file,
        split=part.split,
        size=(width, height),
        objects=tuple(_object(item, dialect) for item in dialect.objects(root)),
    )


def _object(item: Element, dialect: Dialect) -> RawObject:
    name = (item.findtext(dialect.name) or "").strip()
    difficult = int_or_zero(item.findtext("difficult"))
    phrase = " ".join((item.findtext(dialect.phrase) or "").split()) if dialect.phrase else ""
    try:
        if dialect.phrase and not phrase:
            raise ValueError(f"no <{dialect.phrase}>")
        return RawObject(name=name, polygon=dialect.box(item), difficult=difficult, phrase=phrase)
    except ValueError as error:
        return RawObject(name=name, polygon=None, problem=str(error))


def _numbers(item: Element, tag: str, names: str) -> list[float]:
    element = item.find(tag)
    if element is None:
        raise ValueError(f"no <{tag}>")
    return [parse_number(element.findtext(name)) for name in names.split()]


def horizontal_box(item: Element) -> np.ndarray:
    """Return the corners of `bndbox`, f64[8].

    Raises:
        ValueError: the box is missing or degenerate.
    """
    x0, y0, x1, y1 = _numbers(item, "bndbox", "xmin ymin xmax ymax")
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"degenerate box: expected min < max, got {x0:g},{y0:g},{x1:g},{y1:g}")
    return rect_to_polygon(x0, y0, x1, y1)


def _rotated_box(item: Element) -> np.ndarray:
    if item.find("rotated_bndbox") is not None:
        return np.array(_numbers(item, "rotated_bndbox", "x1 y1 x2 y2 x3 y3 x4 y4"))
    if item.find("robndbox/x_left_top") is not None:
        return np.array(_numbers(item, "robndbox", _CORNER_TAGS))
    return _corners(*_numbers(item, "robndbox", "cx cy w h angle"))


def _mbox(item: Element) -> np.ndarray:
    cx, cy, w, h, angle = (parse_number(item.findtext(f"mbox_{name}")) for name in ("cx", "cy", "w", "h", "ang"))
    return _corners(cx, cy, w, h, angle)


def _corners(cx: float, cy: float, w: float, h: float, angle: float) -> np.ndarray:
    if w <= 0 or h <= 0:
        raise ValueError(f"degenerate box: expected sides above 0, got {w:g} x {h:g}")
    return rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)


def _ring(item: Element) -> np.ndarray:
    points = _points(item, "points/point")
    if len(points) == 5 and points[0] == points[-1]:
        points = points[:-1]
    if len(points) != 4:
        raise ValueError(f"degenerate box: expected 4 points, the first repeated, got {len(points)}")
    return np.array(points).reshape(-1)


def _points(item: Element, path: str) -> list[list[float]]:
    points = [[parse_number(value) for value in (point.text or "").split(",")] for point in item.iterfind(path)]
    if any(len(point) != 2 for point in points):
        raise ValueError(f"bad number: expected points x,y, got {points}")
    return points


def _polygon_box(item: Element) -> np.ndarray:
    points = _points(item, "segm/point")
    if len(points) < 3:
        raise ValueError(f"degenerate box: expected 3 or more points x,y, got {len(points)}")
    try:
        return min_area_rect(np.array(points))
    except ValueError as error:
        raise ValueError(f"degenerate box: {error}") from error


DIALECTS: Mapping[str, Dialect] = {
    "voc": Dialect(box=horizontal_box),
    "rotated_voc": Dialect(box=_rotated_box),
    "polygon_voc": Dialect(box=_polygon_box),
    "fair1m": Dialect(box=_ring, name="possibleresult/name"),
    "sirst": Dialect(box=horizontal_box, no_object="pixels"),
    "hrsc": Dialect(
        box=_mbox,
        root="HRSC_Image",
        item="HRSC_Object",
        name="Class_ID",
        size=("Img_SizeWidth", "Img_SizeHeight"),
    ),
}
