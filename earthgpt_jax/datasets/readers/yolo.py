"""Read YOLO labels: one text file per image with lines `class cx cy w h`, in fractions of the image.

Class numbers index the card's classes, from 0. An empty file is an image without objects.
"""

from __future__ import annotations

from collections.abc import Iterator

from earthgpt_jax.boxes import rect_to_polygon
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, RawObject, is_index, parse_number
from earthgpt_jax.datasets.readers.object_lines import entries


def parse(part: Part, card: Card) -> Iterator[Entry]:
    return entries(part, lambda line: _object(line, card), fractions=True)


def _object(line: str, card: Card) -> RawObject:
    fields = line.split()
    name = fields[0]
    if is_index(name) and int(name) < len(card.classes):
        name = card.classes[int(name)]
    try:
        if len(fields) != 5:
            raise ValueError(f"expected `class cx cy w h`, got {line!r}")
        cx, cy, w, h = (parse_number(field) for field in fields[1:])
        if w <= 0 or h <= 0 or max(cx, cy, w, h) > 1 or min(cx, cy) < 0:
            raise ValueError(f"degenerate box: expected fractions and sides above 0, got {line!r}")
    except ValueError as error:
        return RawObject(name=name, polygon=None, problem=str(error))
    return RawObject(name=name, polygon=rect_to_polygon(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
