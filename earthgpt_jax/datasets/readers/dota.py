"""Read DOTA `labelTxt` files and the similar files of UCAS-AOD: one text file per image, one object per line.

DOTA: `x1 y1 ... x4 y4 class [difficult]` in pixels, after optional header lines `imagesource:` and `gsd:` (tiles and
DOTA 2.0 have none). Corners may lie outside the image. In tiles, difficult 2 marks an object cut by the tile border.

UCAS-AOD: `x1 y1 ... x4 y4 theta x y w h`. The corners are used; the angle (degrees) and the horizontal box (top left,
width, height) are ignored. The class is that of the folder, given as `label` in the card's layout.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, RawObject, parse_number
from earthgpt_jax.datasets.readers.object_lines import entries

_HEADERS = ("imagesource", "gsd", "acquisition dates")


def parse(part: Part, card: Card) -> Iterator[Entry]:
    return entries(part, _object)


def parse_ucas_aod(part: Part, card: Card) -> Iterator[Entry]:
    return entries(part, lambda line: _ucas_object(line, part.label))


def _is_header(line: str) -> bool:
    name, colon, _ = line.partition(":")
    return bool(colon) and name.strip().lower() in _HEADERS


def _object(line: str) -> RawObject | None:
    if _is_header(line):
        return None
    fields = line.split()
    if len(fields) < 9:
        return RawObject(name="", polygon=None, problem=f"expected 8 coordinates and a class, got {len(fields)} fields")
    try:
        polygon = np.array([parse_number(field) for field in fields[:8]])
        difficult = int(parse_number(fields[9])) if len(fields) > 9 else 0
    except ValueError as error:
        return RawObject(name=fields[8], polygon=None, problem=str(error))
    return RawObject(name=fields[8], polygon=polygon, difficult=difficult)


def _ucas_object(line: str, label: str) -> RawObject:
    fields = line.split()
    try:
        if len(fields) != 13:
            raise ValueError(f"expected 8 coordinates, an angle and x, y, w, h, got {len(fields)} fields")
        return RawObject(name=label, polygon=np.array([parse_number(field) for field in fields[:8]]))
    except ValueError as error:
        return RawObject(name=label, polygon=None, problem=str(error))
