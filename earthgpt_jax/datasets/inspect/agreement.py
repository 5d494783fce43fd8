"""Where a released compilation and a native source disagree about the same images.

A compilation (the released MMRS-1M) holds copies of images with what somebody made of their annotations. Images are
the same if their bytes are; what a copy says is compared with what the source says, task by task. Boxes may differ by
what their text rounds off.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from earthgpt_jax.boxes import polygon_to_rect
from earthgpt_jax.datasets import image_digests
from earthgpt_jax.records import Object, Record, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disagreement:
    """`kind` is short and the same for the same thing, so that it can be counted; `text` has the particulars."""

    released: str
    native: str
    kind: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """The comparison of two sets.

    Attributes:
        same: images of the release that the source has, by their bytes.
        only_released: ids of records of the release whose image the source has not: another source's, or re-encoded.
        found: every disagreement about a shared image.
    """

    same: int
    only_released: tuple[str, ...]
    found: tuple[Disagreement, ...]

    def counts(self) -> dict[str, int]:
        """Disagreements a kind."""
        return dict(collections.Counter(item.kind for item in self.found).most_common())


def compare(released: Iterable[Record], native: Iterable[Record], *, decimals: int = 2) -> Agreement:
    """Compares record by record; of the native records only what they say is held, not their images.

    Args:
        decimals: of the boxes' text in the release; a corner may be off by one step and a pixel.
    """
    source = {
        image_digests.image_digest(record.image): dataclasses.replace(record, image=b"")
        for record in native
        if record.image
    }
    alone: list[str] = []
    found: list[Disagreement] = []
    same = 0
    for record in released:
        truth = source.get(image_digests.image_digest(record.image))
        if truth is None:
            alone.append(record.id)
            continue
        same += 1
        found += [
            Disagreement(released=record.id, native=truth.id, kind=kind, text=text)
            for validate_entry in _JUDGES
            for kind, text in validate_entry(record, truth, decimals)
        ]
    return Agreement(same=same, only_released=tuple(alone), found=tuple(found))


_Findings = Iterator[tuple[str, str]]


def _split(record: Record, truth: Record, decimals: int) -> _Findings:
    if record.split == "train" and truth.split != "train":
        yield f"trains on what the source holds out as {truth.split}", f"{record.split}, {truth.split}"


def _label(record: Record, truth: Record, decimals: int) -> _Findings:
    if record.label and truth.label and record.label != truth.label:
        yield "another class", f"{record.label!r}, {truth.label!r}"


def _captions(record: Record, truth: Record, decimals: int) -> _Findings:
    if not (Task.CAPTION in record.tasks and Task.CAPTION in truth.tasks):
        return
    mine, theirs = (collections.Counter(map(_plain, each.references)) for each in (record, truth))
    for text in mine - theirs:
        yield "a caption that the source has not", repr(text)
    for text in theirs - mine:
        yield "a caption is missing", repr(text)


def _answers(record: Record, truth: Record, decimals: int) -> _Findings:
    if not (Task.VQA in record.tasks and Task.VQA in truth.tasks):
        return
    answers = collections.defaultdict(set)
    for turn in truth.turns:
        answers[_plain(turn.question)].add(_plain(turn.answer))
    for turn in record.turns:
        known = answers.get(_plain(turn.question))
        if known is None:
            yield "a question that the source has not", repr(turn.question)
        elif _plain(turn.answer) not in known:
            yield "another answer", f"{turn.question!r}: {turn.answer!r}, not {', '.join(map(repr, sorted(known)))}"


def _boxes(record: Record, truth: Record, decimals: int) -> _Findings:
    """Each box of the release takes the nearest one of the source that is not taken yet."""
    if not (_has_boxes(record) and _has_boxes(truth)):
        return
    tolerance = max(record.width, record.height) / 10**decimals + 1
    left = list(truth.objects)
    for item in record.objects:
        near = min(left, key=lambda other: _distance(item, other), default=None)
        if near is None or _distance(item, near) > tolerance:
            yield "a box that the source has not", f"{item.label} at {_written(item)}"
            continue
        left = [other for other in left if other is not near]
        of_classes = Task.HBB in record.tasks and Task.HBB in truth.tasks
        if of_classes and item.label != near.label:
            yield "another class of a box", f"{item.label!r}, {near.label!r} at {_written(near)}"
        if not of_classes and item.phrase and near.phrase and _plain(item.phrase) != _plain(near.phrase):
            yield "another phrase of a box", f"{item.phrase!r}, {near.phrase!r} at {_written(near)}"
    for item in left:
        yield "a box is missing", f"{item.label} at {_written(item)}"


_JUDGES: tuple[Callable[[Record, Record, int], _Findings], ...] = (_split, _label, _captions, _answers, _boxes)


def _has_boxes(record: Record) -> bool:
    return bool({Task.HBB, Task.OBB, Task.GROUNDING} & set(record.tasks))


def _distance(a: Object, b: Object) -> float:
    """The largest difference of a side, in pixels."""
    return float(np.abs(np.subtract(polygon_to_rect(a.polygon), polygon_to_rect(b.polygon))).max())


def _written(item: Object) -> str:
    return ",".join(f"{value:g}" for value in polygon_to_rect(item.polygon))


def _plain(text: str) -> str:
    """Without what a compilation may change in passing: case, spaces, the last point."""
    return " ".join(text.lower().split()).rstrip(" .?")
