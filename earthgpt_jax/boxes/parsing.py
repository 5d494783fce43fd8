"""The result of parsing boxes, and the parser of MMRS's format. `formats` has all other formats."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from earthgpt_jax.boxes.frames import Frame
from earthgpt_jax.boxes.plurals import NUMBER_WORDS, singular
from earthgpt_jax.boxes.polygons import BoxKind, degeneracy, rect_to_polygon


@dataclasses.dataclass(frozen=True)
class ParsedBox:
    """A box that was read from text.

    Attributes:
        label: its class, lower case, and singular if the phrase has a count; "" if the text gives no class.
        coords: 4 (HBB) or 8 (OBB) fractions of the frame: the padded square, or the full image for models that do not
            pad.
        kind: HBB or OBB.
        span: position of its numbers in the text, `(start, end)` in characters. MMRS's format only; else (0, 0).
        noun: position of the noun in its phrase, as `span`; (0, 0) if there is none. Neither counts in comparisons.
    """

    label: str
    coords: tuple[float, ...]
    kind: BoxKind
    span: tuple[int, int] = dataclasses.field(default=(0, 0), compare=False)
    noun: tuple[int, int] = dataclasses.field(default=(0, 0), compare=False)

    def pixels(self, frame: Frame) -> np.ndarray:
        """Return the polygon f32[8] in pixels of the original image."""
        polygon = rect_to_polygon(*self.coords) if self.kind is BoxKind.HBB else np.asarray(self.coords)
        return frame.to_pixels(polygon).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The boxes of a text.

    Attributes:
        box_format: name of the format; `a|b` if several agree; "" if none was recognised.
        boxes: the boxes, in the order of the text.
        rejections: one message for each part of the text that looks like a box but is not one.
    """

    box_format: str
    boxes: tuple[ParsedBox, ...]
    rejections: tuple[str, ...]


_BRACKET = re.compile(r"(?:<p>(?P<phrase>[^<>]*)</p>\s*)?\[(?P<body>[^\[\]]*)\]")
_NUMBER = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")


def parse_mmrs(text: str) -> Parsed:
    """Parse `<p>two ships</p>[x0,y0,x1,y1;...]`: 4 or 8 fractions of the padded square; the phrase is optional."""
    boxes, rejections = [], []
    end = 0
    for match in _BRACKET.finditer(text):
        rejections += _unclosed(text[end : match.start()])
        end = match.end()
        label = _label(match["phrase"] or "")
        noun = _noun(match["phrase"] or "", match.start("phrase"))
        start = match.start("body")
        for part in match["body"].split(";"):
            reason, box = _parse_box(part, label)
            if box is None:
                rejections.append(f"{part.strip()!r}: {reason}")
            else:
                boxes.append(dataclasses.replace(box, span=(start, start + len(part)), noun=noun))
            start += len(part) + 1
    rejections += _unclosed(text[end:])
    return Parsed("mmrs", tuple(boxes), tuple(rejections))


def _unclosed(between: str) -> list[str]:
    """Return one rejection for each opening bracket in text that lies outside of complete brackets."""
    return [f"{text!r}: the bracket is not closed" for text in ("[" + part for part in between.split("[")[1:])]


def _parse_box(part: str, label: str) -> tuple[str, ParsedBox | None]:
    fields = part.split(",")
    if len(fields) not in (4, 8):
        return f"expected 4 or 8 numbers, got {len(fields)}", None
    bad = [field for field in fields if not _NUMBER.fullmatch(field)]
    if bad:
        return f"{bad[0].strip()!r} is not a number", None
    values = tuple(float(field) for field in fields)
    if max(values) > 1:
        return f"{max(values):g} exceeds the square, whose side is 1", None
    if len(values) == 4:
        if values[0] >= values[2] or values[1] >= values[3]:
            return "no area: x0 < x1 and y0 < y1 expected", None
        return "", ParsedBox(label, values, BoxKind.HBB)
    reason = degeneracy(np.asarray(values), width=1, height=1)
    return (reason, None) if reason else ("", ParsedBox(label, values, BoxKind.OBB))


def _is_count(word: str) -> bool:
    return word.isdigit() or word in NUMBER_WORDS


def _noun(phrase: str, start: int) -> tuple[int, int]:
    """Return the position of the words after the count, of a phrase that begins at `start` in the text."""
    words = list(re.finditer(r"\S+", phrase))
    if words and _is_count(words[0][0].lower()):
        words = words[1:]
    return (start + words[0].start(), start + words[-1].end()) if words else (0, 0)


def _label(phrase: str) -> str:
    """Return the class that a phrase names: `13 ships` -> `ship`, `one ship` -> `ship`, `ships` -> `ships`."""
    words = phrase.strip().lower().split()
    if words and _is_count(words[0]):
        noun = " ".join(words[1:])
        return noun if words[0] in ("1", "one") else singular(noun)
    return " ".join(words)
