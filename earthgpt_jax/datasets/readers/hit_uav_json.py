"""Read the two JSON files of HIT-UAV, which are close to COCO's format.

`normal_json.json` has its annotations under `annotation`, with bbox [x, y, w, h]. `rotate_json.json` has them under
`annotations`, with bbox [cx, cy, w, h, angle] (radians, clockwise on screen). Both name images by `filename`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from earthgpt_jax.boxes import rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.coco import box_numbers, entries, horizontal_box
from earthgpt_jax.datasets.readers.events import Entry, Event, Part


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    content = part.load_json("annotations", dict)
    box_of = {"annotation": horizontal_box, "annotations": _rotated_box}
    keys = [key for key in box_of if isinstance(content.get(key), list)]
    if len(keys) != 1:
        path = part.paths["annotations"]
        raise EarthGPTError(f"{path}: expected one list, `annotation` or `annotations`; got {sorted(content)}")
    yield from entries(part, annotations=keys[0], file_name="filename", box=box_of[keys[0]])


def _rotated_box(row: dict[str, Any]) -> np.ndarray:
    cx, cy, w, h, angle = box_numbers(row, 5)
    if w <= 0 or h <= 0:
        raise ValueError(f"degenerate box: expected sides above 0, got {w:g} x {h:g}")
    return rotated_to_polygon(cx=cx, cy=cy, w=w, h=h, angle=angle)
