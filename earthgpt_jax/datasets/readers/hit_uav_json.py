"""HIT-UAV's JSON, nearly COCO, in two dialects.

`normal_json.json`: list under `annotation`, bbox x, y, w, h. `rotate_json.json`: list under `annotations`,
bbox cx, cy, w, h, angle (radians, clockwise on screen). Both name images by `filename`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from earthgpt_jax.boxes import rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.coco import box_numbers, entries, upright
from earthgpt_jax.datasets.readers.events import Entry, Event, Part


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    content = part.load_json("annotations", dict)
    dialects = {"annotation": upright, "annotations": _rotated}
    found = [key for key in dialects if isinstance(content.get(key), list)]
    if len(found) != 1:
        path = part.paths["annotations"]
        raise EarthGPTError(f"{path}: expected one list, `annotation` or `annotations`; got {sorted(content)}")
    yield from entries(part, annotations=found[0], file_name="filename", box=dialects[found[0]])


def _rotated(row: dict[str, Any]) -> np.ndarray:
    cx, cy, w, h, angle = box_numbers(row, 5)
    if w <= 0 or h <= 0:
        raise ValueError(f"degenerate box: expected sides above 0, got {w:g} x {h:g}")
    return rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)
