"""Detection from text: precision, recall and F1 at IoU 0.5, one-to-one, per class, HBB or OBB."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.base import Counts, Figures, Metric, ratio
from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.metrics.iou import THRESHOLD, ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of, frame_of, numbers, pixels_of, size_of
from earthgpt_jax.evaluation.predictions import Prediction


class Outcome(enum.StrEnum):
    """What becomes of a box or an object: a box with an object of its own, a box too many, an object without a box."""

    RIGHT = "right"
    SPURIOUS = "spurious"
    MISSED = "missed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One outcome; label and size are the object's, of a spurious box its own ("" where it has none)."""

    outcome: Outcome
    label: str = ""
    size: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched:
    """One image: what became of boxes and objects, and whether every box could be read.

    Attributes:
        hallucinated: boxes of classes that have no object in the image.
    """

    events: tuple[Event, ...]
    hallucinated: int
    parsed: bool

    def _count(self, outcome: Outcome) -> int:
        return sum(event.outcome is outcome for event in self.events)

    @property
    def right(self) -> int:
        return self._count(Outcome.RIGHT)

    @property
    def spurious(self) -> int:
        return self._count(Outcome.SPURIOUS)

    @property
    def missed(self) -> int:
        return self._count(Outcome.MISSED)


def matching(prediction: Prediction, kind: BoxKind) -> Matched:
    """One-to-one matching by descending IoU among boxes and objects of the same label.

    A box of the other kind, or one that cannot be read, is a claim too, and spurious.
    A difficult object is neither required nor punished: it is never missed, and boxes that match no
    required object but lie on it (IoU at least 0.5) do not count, however many (as in Pascal VOC).
    """
    parsed, frame = boxes_of(prediction), frame_of(prediction)
    events: list[Event] = []
    found: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    sizes: dict[str, list[str]] = collections.defaultdict(list)
    for box in parsed.boxes:
        label = normalise(box.label)
        if box.kind is kind:
            found[label].append(pixels_of(box, frame))
            sizes[label].append(size_of(found[label][-1], prediction))
        else:
            events.append(Event(outcome=Outcome.SPURIOUS, label=label))
    events += [Event(outcome=Outcome.SPURIOUS)] * len(parsed.rejections)

    required, difficult = (
        collections.defaultdict(list, _objects(prediction, kind, difficult=flag)) for flag in (False, True)
    )
    for label, truths in required.items():
        overlaps = ious(found[label], [truth for truth, _ in truths], kind)
        pairs = greedy(overlaps)
        served = set(pairs.values())
        events += [
            Event(outcome=Outcome.RIGHT if j in served else Outcome.MISSED, label=label, size=size)
            for j, (_, size) in enumerate(truths)
        ]
        found[label] = [box for i, box in enumerate(found[label]) if i not in pairs]
        sizes[label] = [size for i, size in enumerate(sizes[label]) if i not in pairs]
    for label, boxes in found.items():
        on = ious(boxes, [truth for truth, _ in difficult[label]], kind) >= THRESHOLD
        events += [
            Event(outcome=Outcome.SPURIOUS, label=label, size=size)
            for size, objects in zip(sizes[label], on, strict=True)
            if not objects.any()
        ]
    present = required.keys() | {label for label, objects in difficult.items() if objects}
    return Matched(
        events=tuple(events),
        hallucinated=sum(normalise(box.label) not in present for box in parsed.boxes),
        parsed=not parsed.rejections and bool(parsed.boxes or says_none(prediction.prediction)),
    )


def _objects(prediction: Prediction, kind: BoxKind, *, difficult: bool) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Label -> (numbers of a box, its size) of the required, or of the difficult objects."""
    groups: dict[str, list[tuple[np.ndarray, str]]] = {}
    for item in prediction.objects:
        if item.difficult == difficult:
            box = numbers(np.asarray(item.polygon), kind)
            groups.setdefault(normalise(item.label), []).append((box, size_of(box, prediction)))
    return groups


def greedy(overlaps: np.ndarray) -> dict[int, int]:
    """The boxes (rows) that get an object of their own (columns), best pairs first."""
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for flat in np.argsort(-overlaps, axis=None, kind="stable"):
        i, j = divmod(int(flat), overlaps.shape[1])
        if overlaps[i, j] < THRESHOLD:
            break
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return pairs


def says_none(text: str) -> bool:
    """The one sentence that means an empty list."""
    return text.strip().lower().rstrip(".") == "there are no objects in the image"


def _tally(matched: Sequence[Sequence[Event]]) -> Counts:
    return {
        **{
            outcome.value: np.array([sum(event.outcome is outcome for event in events) for events in matched], float)
            for outcome in Outcome
        },
        "n": np.ones(len(matched)),
    }


def _counts(predictions: Sequence[Prediction], kind: BoxKind) -> Counts:
    matched = [matching(prediction, kind) for prediction in predictions]
    return {
        **_tally([m.events for m in matched]),
        "hallucinated": np.array([m.hallucinated for m in matched], float),
        "parsed": np.array([m.parsed for m in matched], float),
    }


def _figures(sums: Counts) -> Figures:
    """Micro-averaged over images; an image without objects counts the boxes claimed in it.

    `boxes` and `objects` are what precision and recall are shares of (difficult objects left out). `hallucinated` is
    the number of boxes an image whose class has no object there.
    """
    claimed, there = sums["right"] + sums["spurious"], sums["right"] + sums["missed"]
    precision, recall = ratio(sums["right"], claimed), ratio(sums["right"], there)
    figures = {
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "boxes": claimed,
        "objects": there,
    }
    if "parsed" in sums:
        figures |= {
            "parse_rate": ratio(sums["parsed"], sums["n"]),
            "hallucinated": ratio(sums["hallucinated"], sums["n"]),
        }
    return figures


def _parts(predictions: Sequence[Prediction], kind: BoxKind) -> Mapping[str, Counts]:
    """Of each class and COCO size; a spurious box is of the class and size that it claims."""
    matched = [matching(prediction, kind).events for prediction in predictions]
    groups = {}
    for name in ("size", "class"):
        field = {"size": "size", "class": "label"}[name]
        for key in sorted({getattr(event, field) for events in matched for event in events} - {""}):
            groups[f"{name}: {key}"] = _tally(
                [[event for event in events if getattr(event, field) == key] for events in matched]
            )
    return groups


detection: Mapping[BoxKind, Metric] = {
    kind: Metric(
        counts=functools.partial(_counts, kind=kind),
        figures=_figures,
        parts=functools.partial(_parts, kind=kind),
        whole=frozenset({"boxes", "objects"}),
    )
    for kind in BoxKind
}
