"""COCO JSON: `bbox` x, y, w, h; with `orientation: rotated` the smallest rotated box around the segmentation."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from earthgpt_jax.geometry import min_area_rect, rect_to_polygon
from earthgpt_jax.mmrs.cards import Card, Orientation
from earthgpt_jax.mmrs.readers.events import Entry, Event, Kind, Native, Part, RawObject, Rejected, number


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    file = part.name(part.paths["annotations"])
    images, categories = (part.rows("annotations", key) for key in ("images", "categories"))
    names = {row.get("id"): str(row.get("name")) for row in categories}
    objects: dict[Any, list[RawObject]] = collections.defaultdict(list)
    for row in part.rows("annotations", "annotations"):
        objects[row.get("image_id")].append(_object(row, names, card.orientation))
    for row in images:
        name = str(row.get("file_name", ""))
        yield Entry(
            id=part.prefix + name.rsplit("/", 1)[-1].rsplit(".", 1)[0],
            image=name,
            file=file,
            split=part.split,
            size=(int(row.get("width", 0)), int(row.get("height", 0))),
            problem="" if name else "no file_name",
            objects=tuple(objects.pop(row.get("id"), ())),
        )
    yield from orphans(objects, file)


def orphans(objects: dict[Any, list[RawObject]], file: str) -> Iterator[Event]:
    """Annotations of images that the file does not list."""
    for image, rows in objects.items():
        yield Native(kind=Kind.OBJECT, count=len(rows))
        reason = f"missing pair: no image has the id {image!r}"
        yield Rejected(id=str(image), kind=Kind.OBJECT, reason=reason, file=file, count=len(rows))


def _object(row: dict[str, Any], names: dict[Any, str], orientation: Orientation) -> RawObject:
    name = names.get(row.get("category_id"), f"category {row.get('category_id')!r}")
    difficult = int(bool(row.get("iscrowd") or row.get("ignore")))
    try:
        polygon = _outline(row) if orientation is Orientation.ROTATED else _upright(row)
        return RawObject(name=name, polygon=polygon, difficult=difficult)
    except ValueError as error:
        return RawObject(name=name, polygon=None, problem=str(error))


def _upright(row: dict[str, Any]) -> np.ndarray:
    x, y, w, h = box_numbers(row, 4)
    if w <= 0 or h <= 0:
        raise ValueError(f"degenerate box: expected sides above 0, got {w:g} x {h:g}")
    return rect_to_polygon(x, y, x + w, y + h)


def _outline(row: dict[str, Any]) -> np.ndarray:
    rings = row.get("segmentation")
    if not isinstance(rings, list) or not rings or not all(isinstance(ring, list) for ring in rings):
        raise ValueError("no polygon in `segmentation`")
    numbers = [number(value) for ring in rings for value in ring]
    if len(numbers) % 2 or len(numbers) < 6:
        raise ValueError(f"degenerate box: expected 3 or more points, got {len(numbers)} numbers")
    try:
        return min_area_rect(np.array(numbers).reshape(-1, 2))
    except ValueError as error:
        raise ValueError(f"degenerate box: {error}") from error


def box_numbers(row: dict[str, Any], count: int) -> list[float]:
    """The `count` numbers of `bbox`."""
    values = row.get("bbox")
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"expected {count} numbers in bbox, got {values!r}")
    return [number(value) for value in values]
