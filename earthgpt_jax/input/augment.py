"""Flips and quarter turns of an image together with its boxes, and the texts that they would make false.

An image seen from above is as likely in any of its eight symmetries (the dihedral group D4): no pixel is
interpolated, no box grows, and the text of boxes keeps its number of characters. Whoever says "left" must not be
flipped: see `holds_turned`.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping

import numpy as np

from earthgpt_jax.boxes import AUTO, canonical, parse
from earthgpt_jax.config import Augment
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.records import Record, Task


class Symmetry(enum.Enum):
    """An element of D4, as the rows of its matrix: what x and y of the result are, seen from the image's centre.

    x is to the right and y down, so turns are clockwise on screen. `TRANSPOSE` keeps the top-left corner,
    `ANTITRANSPOSE` the top-right one.
    """

    IDENTITY = ((1, 0), (0, 1))
    LEFT_RIGHT = ((-1, 0), (0, 1))
    UP_DOWN = ((1, 0), (0, -1))
    HALF_TURN = ((-1, 0), (0, -1))
    QUARTER_TURN = ((0, -1), (1, 0))
    THREE_QUARTER_TURN = ((0, 1), (-1, 0))
    TRANSPOSE = ((0, 1), (1, 0))
    ANTITRANSPOSE = ((0, -1), (-1, 0))

    @property
    def swaps(self) -> bool:
        """Width becomes height."""
        return self.value[0][0] == 0

    @property
    def inverse(self) -> Symmetry:
        return Symmetry(tuple(zip(*self.value, strict=True)))  # orthogonal: the transposed matrix

    def then(self, other: Symmetry) -> Symmetry:
        """This one first, `other` behind it."""
        product = np.array(other.value) @ np.array(self.value)
        return Symmetry(tuple(map(tuple, product.tolist())))

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """[h, w, ...] -> [h, w, ...] or [w, h, ...], contiguous; of the image before it is padded to a square."""
        turned = np.swapaxes(image, 0, 1) if self.swaps else image
        (x, y) = map(sum, self.value)
        return np.ascontiguousarray(turned[::y, ::x])

    def polygon(self, polygon: np.ndarray, *, width: int, height: int) -> np.ndarray:
        """f32[8] in pixels of an image of this size -> canonical f32[8] in pixels of the result."""
        points = np.asarray(polygon, np.float64).reshape(4, 2)
        size = np.array((width, height))
        if self.swaps:
            points, size = points[:, ::-1], size[::-1]
        signs = np.sum(self.value, axis=1)
        return canonical(np.where(signs < 0, size - points, points).reshape(-1))

    def record(self, record: Record) -> Record:
        """The record of the result, boxes and size; its `image` stays the bytes of the file, for `pixels`."""
        if self is Symmetry.IDENTITY:
            return record
        width, height = record.width, record.height
        return dataclasses.replace(
            record,
            width=height if self.swaps else width,
            height=width if self.swaps else height,
            objects=tuple(
                dataclasses.replace(item, polygon=self.polygon(item.polygon, width=width, height=height))
                for item in record.objects
            ),
        )


SYMMETRIES: Mapping[Augment, tuple[Symmetry, ...]] = {
    Augment.NONE: (Symmetry.IDENTITY,),
    Augment.FLIPS: (Symmetry.IDENTITY, Symmetry.LEFT_RIGHT, Symmetry.UP_DOWN, Symmetry.HALF_TURN),
    Augment.FLIPS_AND_ROTATIONS: tuple(Symmetry),
}


def sample_symmetry(augment: Augment, rng: np.random.Generator) -> Symmetry:
    """One of what is allowed, each as likely."""
    allowed = SYMMETRIES[augment]
    return allowed[int(rng.integers(len(allowed)))]


# Words run together (`upperleft`) and with any of the endings (`northeasternmost`).
_SIDES = r"left|right|top|bottom|upper|lower|above|below|beneath|under|north|south|east|west|up|down|front|rear|back"
_ENDINGS = r"most|wards?|ern|erly|hand|sides?|neath|bound|s"
_DIRECTION = re.compile(
    rf"""(?<![a-z]) (?:
        (?:{_SIDES})+ (?:{_ENDINGS})*
      | (?-i: [NS][EW] )
      | (?:horizontal|vertical)(?:ly)? (?! \s+ (?:bounding\s+)? box )  # a kind of box, which it stays
      | (?:counter|anti)?clockwise | behind | ahead | diagonal(?:ly)?
      | directions? | orientations? | headings? | bearings? | azimuths? | angles? | degrees? | quadrants? | o'clock
      | first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth | last  # counted from a side
      | (?:row|column) \s* [0-9]+
    ) (?![a-z]) | [0-9](?:st|nd|rd|th) (?![a-z]) | °""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip


def mentions_direction(text: str) -> bool:
    """Whether a text may say something that a flip or a turn makes false.

    Words alone decide, and more of them than needed: "on the right track" costs an augmentation, a missed "on the
    right" would teach a lie. Kinds of boxes ("horizontal bounding box") and their numbers are no directions.
    """
    return _DIRECTION.search(text) is not None


_AS_WRITTEN = frozenset({Task.VQA.value, Task.CAPTION.value})  # kinds in a source's own words


def is_symmetry_invariant(question: Question) -> bool:
    """Whether a question and its answer stay true when the image and the record's boxes are flipped or turned.

    Not where they speak of a direction, or where a source's own words quote boxes, which nobody turns.
    """
    said = f"{question.text}\n{question.answer}"
    quoted = question.task in _AS_WRITTEN and any(mark in said for mark in "[({<")
    return not mentions_direction(said) and not (quoted and _boxes(said))


def _boxes(text: str) -> bool:
    found = parse(text, box_format=AUTO)
    return bool(found.boxes or found.rejections)
