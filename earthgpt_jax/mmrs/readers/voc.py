"""PASCAL VOC XML, one file an image: upright boxes, rotated boxes in two dialects, polygons.

Rotated: `robndbox` (roLabelImg, HIT-UAV: cx, cy, w, h, angle in radians, clockwise on screen) and
`rotated_bndbox` (SSDD: four corners x1..y4, which are the truth here, beside OpenCV's angle in degrees).
Pixel coordinates stay as written: releases disagree on whether they begin at 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from earthgpt_jax.geometry import min_area_rect, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.mmrs.cards import Card
from earthgpt_jax.mmrs.readers.events import Entry, Part, RawObject, number, whole

Element = ElementTree.Element


def parse_upright(part: Part, card: Card) -> Iterator[Entry]:
    return _parse(part, _upright)


def parse_rotated(part: Part, card: Card) -> Iterator[Entry]:
    return _parse(part, _rotated)


def parse_polygons(part: Part, card: Card) -> Iterator[Entry]:
    return _parse(part, _outline)


def _parse(part: Part, box: Callable[[Element], np.ndarray]) -> Iterator[Entry]:
    for path, text in part.texts("annotations", ".xml"):
        yield _entry(path, text, box, part)


def _entry(path: Path, text: str, box: Callable[[Element], np.ndarray], part: Part) -> Entry:
    # The pair is made by the file's stem: <filename> is wrong in some releases, without suffix in others.
    name, file = path.stem, part.name(path)
    identity = part.prefix + name
    try:
        root = ElementTree.fromstring(text.lstrip("\ufeff \r\n"))
    except ElementTree.ParseError as error:
        return Entry(id=identity, image=name, file=file, problem=f"not XML: {error}")
    return Entry(
        id=identity,
        image=name,
        file=file,
        split=part.split,
        size=(whole(root.findtext("size/width")), whole(root.findtext("size/height"))),
        objects=tuple(_object(item, box) for item in root.iter("object")),
    )


def _object(item: Element, box: Callable[[Element], np.ndarray]) -> RawObject:
    name = (item.findtext("name") or "").strip()
    difficult = whole(item.findtext("difficult"))
    try:
        return RawObject(name=name, polygon=box(item), difficult=difficult)
    except ValueError as error:
        return RawObject(name=name, polygon=None, problem=str(error))


def _numbers(item: Element, tag: str, names: str) -> list[float]:
    element = item.find(tag)
    if element is None:
        raise ValueError(f"no <{tag}>")
    return [number(element.findtext(name)) for name in names.split()]


def _upright(item: Element) -> np.ndarray:
    x0, y0, x1, y1 = _numbers(item, "bndbox", "xmin ymin xmax ymax")
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"degenerate box: expected min < max, got {x0:g},{y0:g},{x1:g},{y1:g}")
    return rect_to_polygon(x0, y0, x1, y1)


def _rotated(item: Element) -> np.ndarray:
    if item.find("rotated_bndbox") is not None:
        return np.array(_numbers(item, "rotated_bndbox", "x1 y1 x2 y2 x3 y3 x4 y4"))
    cx, cy, w, h, angle = _numbers(item, "robndbox", "cx cy w h angle")
    if w <= 0 or h <= 0:
        raise ValueError(f"degenerate box: expected sides above 0, got {w:g} x {h:g}")
    return rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)


def _outline(item: Element) -> np.ndarray:
    points = [[number(value) for value in (point.text or "").split(",")] for point in item.iterfind("segm/point")]
    if len(points) < 3 or any(len(point) != 2 for point in points):
        raise ValueError(f"degenerate box: expected 3 or more points x,y, got {len(points)}")
    try:
        return min_area_rect(np.array(points))
    except ValueError as error:
        raise ValueError(f"degenerate box: {error}") from error
