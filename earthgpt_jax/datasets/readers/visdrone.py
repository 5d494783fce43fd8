"""Read VisDrone: one text file per image with lines `x,y,w,h,score,class,truncation,occlusion`.

Coordinates are pixels, and classes are numbered from 1. Class 0 marks a region whose objects are not annotated
("ignored regions"), and class 11 is "others"; the card drops both by these names. A score of 0 excludes a box from
evaluation, so the object is marked difficult. Lines may end in a comma.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from earthgpt_jax.boxes import rect_to_polygon
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, RawObject, is_index, parse_number
from earthgpt_jax.datasets.readers.object_lines import entries

_IGNORED = "ignored regions"


def parse(part: Part, card: Card) -> Iterator[Entry]:
    names = (_IGNORED, *card.classes, "others")
    for entry in entries(part, lambda line: _object(line, names)):
        yield dataclasses.replace(entry, complete=all(item.name != _IGNORED for item in entry.objects))


def _object(line: str, names: Sequence[str]) -> RawObject:
    fields = [field.strip() for field in line.removesuffix(",").split(",")]
    if len(fields) != 8:
        return RawObject(name="", polygon=None, problem=f"expected 8 fields, got {line!r}")
    name = fields[5]
    if is_index(name) and int(name) < len(names):
        name = names[int(name)]
    try:
        x, y, w, h, score = (parse_number(field) for field in fields[:5])
        if w <= 0 or h <= 0:
            raise ValueError(f"degenerate box: expected sides above 0, got {w:g} x {h:g}")
    except ValueError as error:
        return RawObject(name=name, polygon=None, problem=str(error))
    return RawObject(name=name, polygon=rect_to_polygon(x, y, x + w, y + h), difficult=int(score == 0))
