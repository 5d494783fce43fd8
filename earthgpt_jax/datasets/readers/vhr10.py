"""Read NWPU VHR-10: one text file per image with lines `(x1,y1),(x2,y2),c`.

Coordinates are pixels, and classes are numbered from 1. Spaces may occur anywhere in a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from earthgpt_jax.boxes import rect_to_polygon
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, RawObject, is_index, parse_number
from earthgpt_jax.datasets.readers.object_lines import entries

_ROW = re.compile(r"\(([^(),]*),([^(),]*)\),\(([^(),]*),([^(),]*)\),(\d+)")


def parse(part: Part, card: Card) -> Iterator[Entry]:
    return entries(part, lambda line: _object(line, card))


def _object(line: str, card: Card) -> RawObject:
    match = _ROW.fullmatch(re.sub(r"\s", "", line))
    if not match:
        return RawObject(name="", polygon=None, problem=f"expected (x1,y1),(x2,y2),c, got {line!r}")
    index = int(match[5]) if is_index(match[5]) else 0
    name = card.classes[index - 1] if 1 <= index <= len(card.classes) else match[5]
    try:
        x0, y0, x1, y1 = (parse_number(match[i]) for i in range(1, 5))
        if x0 >= x1 or y0 >= y1:
            raise ValueError(f"degenerate box: expected min < max, got {line!r}")
    except ValueError as error:
        return RawObject(name=name, polygon=None, problem=str(error))
    return RawObject(name=name, polygon=rect_to_polygon(x0, y0, x1, y1))
