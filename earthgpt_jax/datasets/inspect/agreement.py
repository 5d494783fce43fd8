"""Compare a compilation, such as the released MMRS-1M, with the native source of the same images.

Images are matched by their bytes. For each pair of records, split, class, captions, answers and boxes are compared.
Boxes may differ by what the text format of the compilation rounds off.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from earthgpt_jax.boxes import polygon_to_rect
from earthgpt_jax.datasets.image_digests import image_digest
from earthgpt_jax.records import Object, Record, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One difference between a released record and its native record.

    Attributes:
        released, native: the ids of the two records.
        category: a short description without particulars, so that disagreements can be counted.
        details: the values that differ, the released one first.
    """

    released: str
    native: str
    category: str
    details: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """The result of a comparison.

    Attributes:
        shared: number of released images that the native source has.
        only_released: ids of the released records whose image the source lacks: it is from elsewhere, or re-encoded.
        disagreements: all differences between records of shared images.
    """

    shared: int
    only_released: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of disagreements in each category, the most frequent first."""
        return dict(collections.Counter(item.category for item in self.disagreements).most_common())


def compare(released: Iterable[Record], native: Iterable[Record], *, decimals: int = 2) -> Agreement:
    """Compare the records of two datasets that share images.

    The native records are kept in memory without their images.

    Args:
        decimals: decimals of the boxes in the release. A corner may differ by one step of these and one pixel.
    """
    source = {image_digest(record.image): dataclasses.replace(record, image=b"") for record in native if record.image}
    only_released: list[str] = []
    disagreements: list[Disagreement] = []
    shared = 0
    for record in released:
        counterpart = source.get(image_digest(record.image))
        if counterpart is None:
            only_released.append(record.id)
            continue
        shared += 1
        disagreements += [
            Disagreement(released=record.id, native=counterpart.id, category=category, details=details)
            for comparison in _COMPARISONS
            for category, details in comparison(record, counterpart, decimals)
        ]
    return Agreement(shared=shared, only_released=tuple(only_released), disagreements=tuple(disagreements))


_Differences = Iterator[tuple[str, str]]  # (category, details)


def _split(released: Record, native: Record, decimals: int) -> _Differences:
    if released.split == "train" and native.split != "train":
        yield f"trains on an image that the source holds out as {native.split}", f"{released.split}, {native.split}"


def _label(released: Record, native: Record, decimals: int) -> _Differences:
    if released.label and native.label and released.label != native.label:
        yield "another class", f"{released.label!r}, {native.label!r}"


def _captions(released: Record, native: Record, decimals: int) -> _Differences:
    if not (Task.CAPTION in released.tasks and Task.CAPTION in native.tasks):
        return
    here, there = (collections.Counter(map(_normalized, record.references)) for record in (released, native))
    for text in here - there:
        yield "a caption that the source lacks", repr(text)
    for text in there - here:
        yield "a caption is missing", repr(text)


def _answers(released: Record, native: Record, decimals: int) -> _Differences:
    if not (Task.VQA in released.tasks and Task.VQA in native.tasks):
        return
    answers = collections.defaultdict(set)
    for turn in native.turns:
        answers[_normalized(turn.question)].add(_normalized(turn.answer))
    for turn in released.turns:
        expected = answers.get(_normalized(turn.question))
        if expected is None:
            yield "a question that the source lacks", repr(turn.question)
        elif _normalized(turn.answer) not in expected:
            yield "another answer", f"{turn.question!r}: {turn.answer!r}, not {', '.join(map(repr, sorted(expected)))}"


def _boxes(released: Record, native: Record, decimals: int) -> _Differences:
    """Match each released box with the nearest native box that is not matched yet."""
    if not (_has_boxes(released) and _has_boxes(native)):
        return
    tolerance = max(released.width, released.height) / 10**decimals + 1
    unmatched = list(native.objects)
    for item in released.objects:
        nearest = min(unmatched, key=lambda other: _distance(item, other), default=None)
        if nearest is None or _distance(item, nearest) > tolerance:
            yield "a box that the source lacks", f"{item.label} at {_corners(item)}"
            continue
        unmatched = [other for other in unmatched if other is not nearest]
        both_have_classes = Task.HBB in released.tasks and Task.HBB in native.tasks
        if both_have_classes and item.label != nearest.label:
            yield "another class of a box", f"{item.label!r}, {nearest.label!r} at {_corners(nearest)}"
        if (
            not both_have_classes
            and item.phrase
            and nearest.phrase
            and _normalized(item.phrase) != _normalized(nearest.phrase)
        ):
            yield "another phrase of a box", f"{item.phrase!r}, {nearest.phrase!r} at {_corners(nearest)}"
    for item in unmatched:
        yield "a box is missing", f"{item.label} at {_corners(item)}"


_COMPARISONS: tuple[Callable[[Record, Record, int], _Differences], ...] = (
    _split, _label, _captions, _answers, _boxes,
)  # fmt: skip


def _has_boxes(record: Record) -> bool:
    return bool({Task.HBB, Task.OBB, Task.GROUNDING} & set(record.tasks))


def _distance(a: Object, b: Object) -> float:
    """Return the largest distance between corresponding sides of the enclosing rectangles, in pixels."""
    return float(np.abs(np.subtract(polygon_to_rect(a.polygon), polygon_to_rect(b.polygon))).max())


def _corners(item: Object) -> str:
    return ",".join(f"{value:g}" for value in polygon_to_rect(item.polygon))


def _normalized(text: str) -> str:
    """Return a text without differences that a compilation may introduce: case, spaces, punctuation at the end."""
    return " ".join(text.lower().split()).rstrip(" .?")
