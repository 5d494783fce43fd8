"""HIT-UAV's JSON, nearly COCO, in two dialects.

`normal_json.json`: list under `annotation`, bbox x, y, w, h. `rotate_json.json`: list under `annotations`,
bbox cx, cy, w, h, angle (radians, clockwise on screen). Both name images by `filename`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.geometry import rect_to_polygon, rotated_to_polygon
from earthgpt_jax.mmrs.cards import Card
from earthgpt_jax.mmrs.readers.coco import box_numbers, orphans
from earthgpt_jax.mmrs.readers.events import Entry, Event, Part, RawObject


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    path = part.paths["annotations"]
    content = part.load_json("annotations", dict)
    dialects = {"annotation": _upright, "annotations": _rotated}
    found = [key for key in dialects if isinstance(content.get(key), list)]
    if len(found) != 1:
        raise EarthGPTError(f"{path}: expected one list, `annotation` or `annotations`; got {sorted(content)}")
    box = dialects[found[0]]
    names = {row.get("id"): str(row.get("name")) for row in part.rows("annotations", "categories")}
    objects: dict[Any, list[RawObject]] = collections.defaultdict(list)
    for row in content[found[0]]:
        name = names.get(row.get("category_id"), f"category {row.get('category_id')!r}")
        try:
            raw = RawObject(name=name, polygon=box(row), difficult=int(bool(row.get("difficult"))))
        except ValueError as error:
            raw = RawObject(name=name, polygon=None, problem=str(error))
        objects[row.get("image_id")].append(raw)
    for row in part.rows("annotations", "images"):
        name = str(row.get("filename", ""))
        yield Entry(
            id=part.prefix + name.rsplit(".", 1)[0],
            image=name,
            file=part.name(path),
            split=part.split,
            size=(int(row.get("width", 0)), int(row.get("height", 0))),
            problem="" if name else "no filename",
            objects=tuple(objects.pop(row.get("id"), ())),
        )
    yield from orphans(objects, part.name(path))


def _upright(row: dict[str, Any]) -> np.ndarray:
    x, y, w, h = box_numbers(row, 4)
    return rect_to_polygon(x, y, x + _side(w), y + _side(h))


def _rotated(row: dict[str, Any]) -> np.ndarray:
    cx, cy, w, h, angle = box_numbers(row, 5)
    return rotated_to_polygon(cx=cx, cy=cy, w=_side(w), h=_side(h), angle=angle)


def _side(length: float) -> float:
    if length <= 0:
        raise ValueError(f"degenerate box: expected sides above 0, got {length:g}")
    return length
