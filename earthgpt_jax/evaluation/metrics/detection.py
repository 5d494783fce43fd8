"""Precision, recall and F1 of detected boxes at IoU 0.5, matched one-to-one within each class; HBB or OBB."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics import class_averages
from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, ratio
from earthgpt_jax.evaluation.metrics.classification import normalize
from earthgpt_jax.evaluation.metrics.iou import THRESHOLD, ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import (
    box_in_pixels,
    frame_of,
    orientation_category,
    parse_answer,
    size_category,
    truth_box,
)
from earthgpt_jax.evaluation.predictions import Prediction


class Outcome(enum.StrEnum):
    """The result of matching: a box on its own object, a box without an object, or an object without a box."""

    TRUE_POSITIVE = "true_positive"
    FALSE_POSITIVE = "false_positive"
    FALSE_NEGATIVE = "false_negative"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """One outcome.

    Attributes:
        outcome: what the match is.
        label, size, orientation: class, COCO size and orientation of the object; of the box for a false positive. ""
            if unknown.
    """

    outcome: Outcome
    label: str = ""
    size: str = ""
    orientation: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMatches:
    """The matching of one image.

    Attributes:
        matches: one per predicted box and per object without a box; difficult objects are left out.
        hallucinated: number of boxes whose class has no object in the image.
        parsed: whether every box of the answer could be parsed.
    """

    matches: tuple[Match, ...]
    hallucinated: int
    parsed: bool

    def _count(self, outcome: Outcome) -> int:
        return sum(match.outcome is outcome for match in self.matches)

    @property
    def true_positives(self) -> int:
        return self._count(Outcome.TRUE_POSITIVE)

    @property
    def false_positives(self) -> int:
        return self._count(Outcome.FALSE_POSITIVE)

    @property
    def false_negatives(self) -> int:
        return self._count(Outcome.FALSE_NEGATIVE)


def match_boxes(prediction: Prediction, kind: BoxKind) -> ImageMatches:
    """Match boxes to objects of the same class, one-to-one, by descending IoU.

    A box of the other kind and a box that cannot be parsed are false positives. A difficult object is neither required
    nor penalized, as in Pascal VOC: it is never a false negative, and boxes on it (IoU of at least 0.5) that match no
    required object are ignored, however many there are.
    """
    parsed, frame = parse_answer(prediction), frame_of(prediction)
    matches: list[Match] = []
    boxes: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    traits: dict[str, list[_Traits]] = collections.defaultdict(list)
    for box in parsed.boxes:
        label = normalize(box.label)
        if box.kind is kind:
            boxes[label].append(box_in_pixels(box, frame))
            traits[label].append(_traits(boxes[label][-1], prediction))
        else:
            matches.append(Match(outcome=Outcome.FALSE_POSITIVE, label=label))
    matches += [Match(outcome=Outcome.FALSE_POSITIVE)] * len(parsed.rejections)

    required, difficult = (
        collections.defaultdict(list, _objects(prediction, kind, difficult=flag)) for flag in (False, True)
    )
    for label, truths in required.items():
        pairs = greedy_matching(ious(boxes[label], [truth for truth, _ in truths], kind))
        matched = set(pairs.values())
        matches += [
            Match(outcome=Outcome.TRUE_POSITIVE if j in matched else Outcome.FALSE_NEGATIVE, label=label, **of_object)
            for j, (_, of_object) in enumerate(truths)
        ]
        boxes[label] = [box for i, box in enumerate(boxes[label]) if i not in pairs]
        traits[label] = [of_box for i, of_box in enumerate(traits[label]) if i not in pairs]
    for label, unmatched in boxes.items():
        on_difficult = ious(unmatched, [truth for truth, _ in difficult[label]], kind) >= THRESHOLD
        matches += [
            Match(outcome=Outcome.FALSE_POSITIVE, label=label, **of_box)
            for of_box, objects in zip(traits[label], on_difficult, strict=True)
            if not objects.any()
        ]
    present = required.keys() | {label for label, objects in difficult.items() if objects}
    return ImageMatches(
        matches=tuple(matches),
        hallucinated=sum(normalize(box.label) not in present for box in parsed.boxes),
        parsed=not parsed.rejections and bool(parsed.boxes or states_no_objects(prediction.prediction)),
    )


_Traits = dict[str, str]  # field of `Match` -> value


def _traits(box: np.ndarray, prediction: Prediction) -> _Traits:
    return {"size": size_category(box, prediction), "orientation": orientation_category(box, prediction)}


def _objects(prediction: Prediction, kind: BoxKind, *, difficult: bool) -> dict[str, list[tuple[np.ndarray, _Traits]]]:
    """Return class -> (box, traits) of the difficult objects, or of the required ones."""
    groups: dict[str, list[tuple[np.ndarray, _Traits]]] = {}
    for item in prediction.objects:
        if item.difficult == difficult:
            box = truth_box(np.asarray(item.polygon), kind)
            groups.setdefault(normalize(item.label), []).append((box, _traits(box, prediction)))
    return groups


def greedy_matching(overlaps: np.ndarray) -> dict[int, int]:
    """Match boxes (rows) to objects (columns) one-to-one, the highest IoU first, down to IoU 0.5."""
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


def states_no_objects(text: str) -> bool:
    """Return whether an answer is the sentence that stands for an empty list of boxes."""
    return text.strip().lower().rstrip(".") == "there are no objects in the image"


def _outcome_counts(matches: Sequence[Sequence[Match]]) -> Statistics:
    return {
        **{
            outcome.value: np.array([sum(match.outcome is outcome for match in image) for image in matches], float)
            for outcome in Outcome
        },
        "n": np.ones(len(matches)),
    }


def _class_counts(matches: Sequence[Sequence[Match]]) -> Statistics:
    """Return the sums of `class_averages` of each class that has objects: objects, boxes, and both."""
    required = {Outcome.TRUE_POSITIVE, Outcome.FALSE_NEGATIVE}
    classes = sorted({match.label for image in matches for match in image if match.outcome in required})
    if not classes or len(classes) > class_averages.MAX_CLASSES:
        return {}
    number = {name: k for k, name in enumerate(classes)}
    tables = {outcome: np.zeros((len(matches), len(classes))) for outcome in Outcome}
    for row, image in enumerate(matches):
        for match in image:
            if match.label in number:
                tables[match.outcome][row, number[match.label]] += 1
    hit = tables[Outcome.TRUE_POSITIVE]
    columns = {
        "true": hit + tables[Outcome.FALSE_NEGATIVE], "claimed": hit + tables[Outcome.FALSE_POSITIVE], "hit": hit,
    }  # fmt: skip
    return {f"{what}:{name}": table[:, number[name]] for what, table in columns.items() for name in classes}


def _statistics(predictions: Sequence[Prediction], kind: BoxKind) -> Statistics:
    images = [match_boxes(prediction, kind) for prediction in predictions]
    return {
        **_outcome_counts([image.matches for image in images]),
        **_class_counts([image.matches for image in images]),
        "hallucinated": np.array([image.hallucinated for image in images], float),
        "parsed": np.array([image.parsed for image in images], float),
    }


def _compute(sums: Statistics) -> Values:
    """Compute the detection metrics, micro-averaged over images.

    - `precision`, `recall`, `f1`: in [0, 1]. In an image without objects every box is a false positive.
    - `macro_f1`: mean of the F1 of the classes that have objects, in [0, 1].
    - `boxes`, `objects`: the numbers that precision and recall are fractions of; difficult objects are left out.
    - `parse_rate`: fraction of answers in which every box could be parsed.
    - `hallucinated_boxes`: boxes per image whose class has no object in that image; 0 is best.
    """
    boxes = sums["true_positive"] + sums["false_positive"]
    objects = sums["true_positive"] + sums["false_negative"]
    precision, recall = ratio(sums["true_positive"], boxes), ratio(sums["true_positive"], objects)
    values = {
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "boxes": boxes,
        "objects": objects,
    }
    if class_averages.has_classes(sums):
        values["macro_f1"] = class_averages.macro_f1(sums)
    if "parsed" in sums:
        values |= {
            "parse_rate": ratio(sums["parsed"], sums["n"]),
            "hallucinated_boxes": ratio(sums["hallucinated"], sums["n"]),
        }
    return values


def _breakdown(predictions: Sequence[Prediction], kind: BoxKind) -> Mapping[str, Statistics]:
    """Group matches by COCO size, orientation and class; a false positive belongs to the groups that it claims."""
    images = [match_boxes(prediction, kind).matches for prediction in predictions]
    groups = {}
    for name, field in (("size", "size"), ("orientation", "orientation"), ("class", "label")):
        for key in sorted({getattr(match, field) for matches in images for match in matches} - {""}):
            groups[f"{name}: {key}"] = _outcome_counts(
                [[match for match in matches if getattr(match, field) == key] for matches in images]
            )
    return groups


def _support(name: str) -> tuple[str, ...]:
    """Return the outcomes that a value counts: an image without any of them has no influence on it."""
    boxes, objects = (Outcome.TRUE_POSITIVE, Outcome.FALSE_POSITIVE), (Outcome.TRUE_POSITIVE, Outcome.FALSE_NEGATIVE)
    return {"precision": boxes, "recall": objects, "f1": (*boxes, Outcome.FALSE_NEGATIVE)}.get(name, ("n",))


detection: Mapping[BoxKind, Metric] = {
    kind: Metric(
        statistics=functools.partial(_statistics, kind=kind),
        compute=_compute,
        breakdown=functools.partial(_breakdown, kind=kind),
        integers=frozenset({"boxes", "objects"}),
        unbounded=frozenset({"hallucinated_boxes"}),
        support=_support,
    )
    for kind in BoxKind
}
