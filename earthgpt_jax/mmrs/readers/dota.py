"""DOTA labelTxt, one file an image: `x1 y1 ... x4 y4 class [difficult]`, pixels.

`imagesource:` and `gsd:` header lines may stand first (tiles and DOTA 2.0 have none). Corners may lie
outside of the image. In tiles, difficult 2 marks an object cut by the tile's border.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from earthgpt_jax.mmrs.cards import Card
from earthgpt_jax.mmrs.readers.events import Entry, Part, RawObject, number

_HEADERS = ("imagesource", "gsd", "acquisition dates")


def parse(part: Part, card: Card) -> Iterator[Entry]:
    for path, text in part.texts("annotations", ".txt"):
        lines = [line.strip() for line in text.splitlines()]
        yield Entry(
            id=part.prefix + path.stem,
            image=path.stem,
            file=part.name(path),
            split=part.split,
            objects=tuple(_object(line) for line in lines if line and not _is_header(line)),
        )


def _is_header(line: str) -> bool:
    name, colon, _ = line.partition(":")
    return bool(colon) and name.strip().lower() in _HEADERS


def _object(line: str) -> RawObject:
    fields = line.split()
    if len(fields) < 9:
        return RawObject(name="", polygon=None, problem=f"expected 8 coordinates and a class, got {len(fields)} fields")
    try:
        polygon = np.array([number(field) for field in fields[:8]])
        difficult = int(number(fields[9])) if len(fields) > 9 else 0
    except ValueError as error:
        return RawObject(name=fields[8], polygon=None, problem=str(error))
    return RawObject(name=fields[8], polygon=polygon, difficult=difficult)
