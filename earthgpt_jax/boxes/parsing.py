"""Text as boxes: what is read, and the grammar of MMRS. The others are in `grammars`."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from earthgpt_jax.boxes.frames import Frame
from earthgpt_jax.boxes.plurals import WORDS, singular
from earthgpt_jax.boxes.polygons import BoxKind, degeneracy, rect_to_polygon


@dataclasses.dataclass(frozen=True)
class ParsedBox:
    """A box read from text: label ("" where none was given), 4 or 8 fractions of the frame.

    The frame is what the model was shown: the padded square, or the whole image for models that do not pad.
    `span` and `noun` are where its numbers and the noun of its phrase stand in the text, `(start, end)` in characters;
    empty where there is none, and outside of MMRS's grammar. Boxes are equal wherever they stand.
    """

    label: str
    coords: tuple[float, ...]
    kind: BoxKind
    span: tuple[int, int] = dataclasses.field(default=(0, 0), compare=False)
    noun: tuple[int, int] = dataclasses.field(default=(0, 0), compare=False)

    def pixels(self, square: Frame) -> np.ndarray:
        """The polygon f32[8] in pixels of the original image."""
        polygon = rect_to_polygon(*self.coords) if self.kind is BoxKind.HBB else np.asarray(self.coords)
        return square.to_pixels(polygon).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a text says of boxes; `grammar` is "" where none was recognised."""

    box_format: str
    boxes: tuple[ParsedBox, ...]
    rejections: tuple[str, ...]


_BRACKET = re.compile(r"(?:<p>(?P<phrase>[^<>]*)</p>\s*)?\[(?P<body>[^\[\]]*)\]")
_NUMBER = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")


def read_mmrs(text: str) -> Parsed:
    """`<p>two ships</p>[x0,y0,x1,y1;...]`, four or eight fractions of the padded square; the phrase may be missing."""
    boxes, rejections = [], []
    end = 0
    for match in _BRACKET.finditer(text):
        rejections += _unclosed(text[end : match.start()])
        end = match.end()
        label = _label(match["phrase"] or "")
        noun = _noun(match["phrase"] or "", match.start("phrase"))
        start = match.start("body")
        for part in match["body"].split(";"):
            reason, box = _read_box(part, label)
            if box is None:
                rejections.append(f"{part.strip()!r}: {reason}")
            else:
                boxes.append(dataclasses.replace(box, span=(start, start + len(part)), noun=noun))
            start += len(part) + 1
    rejections += _unclosed(text[end:])
    return Parsed("mmrs", tuple(boxes), tuple(rejections))


def _unclosed(between: str) -> list[str]:
    """A rejection for each bracket that opens in text outside of complete brackets."""
    return [f"{text!r}: the bracket is not closed" for text in ("[" + part for part in between.split("[")[1:])]


def _read_box(part: str, label: str) -> tuple[str, ParsedBox | None]:
    fields = part.split(",")
    if len(fields) not in (4, 8):
        return f"expected 4 or 8 numbers, got {len(fields)}", None
    bad = [field for field in fields if not _NUMBER.fullmatch(field)]
    if bad:
        return f"{bad[0].strip()!r} is not a number", None
    values = tuple(float(field) for field in fields)
    if max(values) > 1:
        return f"{max(values):g} is beyond the square", None
    if len(values) == 4:
        if values[0] >= values[2] or values[1] >= values[3]:
            return "no area: x0 < x1 and y0 < y1 expected", None
        return "", ParsedBox(label, values, BoxKind.HBB)
    reason = degeneracy(np.asarray(values), width=1, height=1)
    return (reason, None) if reason else ("", ParsedBox(label, values, BoxKind.OBB))


def _counts(word: str) -> bool:
    return word.isdigit() or word in WORDS


def _noun(phrase: str, start: int) -> tuple[int, int]:
    """Where the words behind the count are, `(start, end)`, of a phrase that begins at `start` of its text."""
    words = list(re.finditer(r"\S+", phrase))
    if words and _counts(words[0][0].lower()):
        words = words[1:]
    return (start + words[0].start(), start + words[-1].end()) if words else (0, 0)


def _label(phrase: str) -> str:
    """`13 ships` -> `ship`: the count goes, the noun becomes singular where the count was not one."""
    words = phrase.strip().lower().split()
    if words and _counts(words[0]):
        noun = " ".join(words[1:])
        return noun if words[0] in ("1", "one") else singular(noun)
    return " ".join(words)
