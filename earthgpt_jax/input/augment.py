"""Augmentation by flips and 90-degree rotations of an image and its boxes.

An image seen from above is equally likely in each of its eight symmetries (the dihedral group D4). No pixel is
interpolated, no box grows, and the text of boxes keeps its number of characters. Questions that a symmetry would make
false, such as those that say "left", are not augmented (`is_symmetry_invariant`).
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
    """An element of D4 as a 2 x 2 matrix that maps coordinates, relative to the image's centre.

    With x to the right and y down, rotations are clockwise on screen. `TRANSPOSE` keeps the top-left corner in place,
    `ANTITRANSPOSE` the top-right one.
    """

    IDENTITY = ((1, 0), (0, 1))
    FLIP_LEFT_RIGHT = ((-1, 0), (0, 1))
    FLIP_UP_DOWN = ((1, 0), (0, -1))
    ROTATE_180 = ((-1, 0), (0, -1))
    ROTATE_90 = ((0, -1), (1, 0))
    ROTATE_270 = ((0, 1), (-1, 0))
    TRANSPOSE = ((0, 1), (1, 0))
    ANTITRANSPOSE = ((0, -1), (-1, 0))

    @property
    def swaps(self) -> bool:
        """Whether width and height are swapped."""
        return self.value[0][0] == 0

    @property
    def inverse(self) -> Symmetry:
        """The symmetry that undoes this one."""
        return Symmetry(tuple(zip(*self.value, strict=True)))  # the transpose, because the matrix is orthogonal

    def then(self, other: Symmetry) -> Symmetry:
        """Return the composition: this symmetry first, then `other`."""
        product = np.array(other.value) @ np.array(self.value)
        return Symmetry(tuple(map(tuple, product.tolist())))

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Transform an image [h, w, ...] that is not yet padded to a square; returns [h, w, ...] or [w, h, ...]."""
        transformed = np.swapaxes(image, 0, 1) if self.swaps else image
        (x, y) = map(sum, self.value)
        return np.ascontiguousarray(transformed[::y, ::x])

    def polygon(self, polygon: np.ndarray, *, width: int, height: int) -> np.ndarray:
        """Transform a polygon f32[8] in pixels of an image of this size; returns a canonical f32[8]."""
        points = np.asarray(polygon, np.float64).reshape(4, 2)
        size = np.array((width, height))
        if self.swaps:
            points, size = points[:, ::-1], size[::-1]
        signs = np.sum(self.value, axis=1)
        return canonical(np.where(signs < 0, size - points, points).reshape(-1))

    def record(self, record: Record) -> Record:
        """Transform the boxes and the size of a record; its `image`, the file's bytes, stays."""
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
    Augment.FLIPS: (Symmetry.IDENTITY, Symmetry.FLIP_LEFT_RIGHT, Symmetry.FLIP_UP_DOWN, Symmetry.ROTATE_180),
    Augment.FLIPS_AND_ROTATIONS: tuple(Symmetry),
}


def sample_symmetry(augment: Augment, rng: np.random.Generator) -> Symmetry:
    """Draw one of the symmetries of a setting, uniformly."""
    symmetries = SYMMETRIES[augment]
    return symmetries[int(rng.integers(len(symmetries)))]


# Sides may be joined ("upperleft") and have any of the endings ("northeasternmost").
_SIDES = r"left|right|top|bottom|upper|lower|above|below|beneath|under|north|south|east|west|up|down|front|rear|back"
_ENDINGS = r"most|wards?|ern|erly|hand|sides?|neath|bound|s"
_DIRECTION = re.compile(
    rf"""(?<![a-z]) (?:
        (?:{_SIDES})+ (?:{_ENDINGS})*
      | (?-i: [NS][EW] )
      | (?:horizontal|vertical)(?:ly)? (?! \s+ (?:bounding\s+)? box )  # a box type, which no symmetry changes
      | (?:counter|anti)?clockwise | behind | ahead | diagonal(?:ly)?
      | directions? | orientations? | headings? | bearings? | azimuths? | angles? | degrees? | quadrants? | o'clock
      | first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth | last  # may count
      | (?:row|column) \s* [0-9]+
    ) (?![a-z]) | [0-9](?:st|nd|rd|th) (?![a-z]) | °""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip


def mentions_direction(text: str) -> bool:
    """Return whether a text may say something that a flip or a rotation makes false.

    The list of words is generous. "On the right track" costs one augmentation, whereas a missed "on the right" would
    train on a wrong answer. Box types ("horizontal bounding box") and coordinates are not directions.
    """
    return _DIRECTION.search(text) is not None


_SOURCE_TEXTS = frozenset({Task.VQA.value, Task.CAPTION.value})  # tasks whose texts come from the source


def is_symmetry_invariant(question: Question) -> bool:
    """Return whether a question and its answer stay true when the image and the record's boxes are transformed.

    They do not if they mention a direction, or if a source's own text contains boxes, which are not transformed.
    """
    text = f"{question.text}\n{question.answer}"
    may_quote_boxes = question.task in _SOURCE_TEXTS and any(bracket in text for bracket in "[({<")
    return not mentions_direction(text) and not (may_quote_boxes and _contains_boxes(text))


def _contains_boxes(text: str) -> bool:
    found = parse(text, box_format=AUTO)
    return bool(found.boxes or found.rejections)
