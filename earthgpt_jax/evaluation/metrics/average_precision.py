"""Average precision (AP) per class: Pascal VOC's two rules at any IoU, with bootstrap intervals.

COCO's AP is in `coco_ap`; `average_precisions` returns both.

Boxes written as text are ranked by confidence only if the model's confidences are known. Where they are not, all boxes
have equal confidence, and any order among them would be arbitrary. Boxes of equal confidence therefore enter the
precision-recall curve together, as one point; with a single confidence, AP is precision times recall.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.classification import normalize
from earthgpt_jax.evaluation.metrics.coco_ap import coco_ap, coco_intervals
from earthgpt_jax.evaluation.metrics.intervals import bootstrap_weights, fraction_interval, image_indices
from earthgpt_jax.evaluation.metrics.iou import SLACK, ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import (
    box_confidences,
    box_in_pixels,
    frame_of,
    parse_answer,
    truth_box,
)
from earthgpt_jax.evaluation.predictions import Prediction

_MAX_WEIGHTS = 50_000_000  # bootstrap weights held in memory at a time


class Interpolation(enum.StrEnum):
    """How AP is read off the curve. VOC07: mean of the best precision at 11 recalls. VOC12: area under the monotone
    curve."""

    VOC07 = "voc07"
    VOC12 = "voc12"


class ClassMatching(enum.StrEnum):
    """Whether a box must have the class of its object."""

    REQUIRED = "required"
    IGNORED = "ignored"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedBoxes:
    """The predicted boxes of one class over all images, and how many objects there are to find.

    Attributes:
        confidences: f[D].
        correct: bool[D]. Boxes on difficult objects are left out.
        images: i[D], index of the prediction that each box belongs to.
        objects: f[n], number of required (not difficult) objects of each prediction.
    """

    confidences: np.ndarray
    correct: np.ndarray
    images: np.ndarray
    objects: np.ndarray


def average_precisions(predictions: Sequence[Prediction], kind: BoxKind) -> dict[str, float]:
    """Compute every AP of one detection task, in [0, 1]; means over the classes that have objects.

    - `ap50`, `ap40`: VOC12 rule at IoU 0.5, and at IoU 0.4 as in EarthGPT's paper.
    - `ap50_voc07`, `ap40_voc07`: the same with the VOC07 rule.
    - `ap40_any_class`: as `ap40`, but classes are ignored.
    - `map_nc`: VOC07 rule at IoU 0.5 with equal confidences, for models that give none (Li et al. 2025); boxes form one
      point of the curve, so that it does not depend on their order.
    - `ap50_constant`, `ap40_constant`: as `ap50` and `ap40`, but with equal confidences; only if the predictions have
      confidences.
    - `coco_ap...`: pycocotools.

    Source: Everingham et al. 2010 (VOC), VOCdevkit.
    """
    ranked = {percent: rank_boxes(predictions, kind, threshold=percent / 100) for percent in (50, 40)}
    values = {}
    for percent, classes in ranked.items():
        values[f"ap{percent}"] = _mean(classes, Interpolation.VOC12)
        values[f"ap{percent}_voc07"] = _mean(classes, Interpolation.VOC07)
    any_class = rank_boxes(predictions, kind, threshold=0.4, matching=ClassMatching.IGNORED)
    values["ap40_any_class"] = _mean(any_class, Interpolation.VOC12)
    equal = {p: {label: with_equal_confidences(b) for label, b in classes.items()} for p, classes in ranked.items()}
    values["map_nc"] = _mean(equal[50], Interpolation.VOC07)
    if any(p.confidences for p in predictions):
        values |= {f"ap{p}_constant": _mean(classes, Interpolation.VOC12) for p, classes in equal.items()}
    return values | coco_ap(predictions, kind)


def _mean(classes: Mapping[str, RankedBoxes], rule: Interpolation) -> float:
    return float(mean_average_precision(classes, rule)[0])


def ap_intervals(predictions: Sequence[Prediction], kind: BoxKind, *, samples: int) -> dict[str, list[float]]:
    """Return the 95 % intervals of `ap50`, `ap40` and COCO's APs by bootstrap over images (see `intervals`)."""
    image = image_indices([p.record_id for p in predictions])
    values: dict[int, list[np.ndarray]] = {50: [], 40: []}
    ranked = {percent: rank_boxes(predictions, kind, threshold=percent / 100) for percent in values}
    columns = max(
        len(predictions), *(len(boxes.correct) for classes in ranked.values() for boxes in classes.values()), 1
    )
    step = max(1, _MAX_WEIGHTS // columns)
    weights = bootstrap_weights(image, samples=samples)
    for start in range(0, samples, step):
        chunk = np.stack([next(weights) for _ in range(min(step, samples - start))])[:, image].astype(float)
        for percent, parts in values.items():
            parts.append(mean_average_precision(ranked[percent], Interpolation.VOC12, chunk))
    images = len(np.unique(image[[bool(p.objects) for p in predictions]])) or 1
    return {
        f"ap{percent}": fraction_interval(
            _mean(ranked[percent], Interpolation.VOC12), np.concatenate(parts), images=images
        )
        for percent, parts in values.items()
    } | coco_intervals(predictions, kind, samples=samples)


def rank_boxes(
    predictions: Sequence[Prediction],
    kind: BoxKind,
    *,
    threshold: float = 0.5,
    matching: ClassMatching = ClassMatching.REQUIRED,
) -> dict[str, RankedBoxes]:
    """Match the boxes of each class to objects by Pascal VOC's rule (VOCdevkit, VOCevaldet.m).

    A box is assigned to the object that it overlaps most. The first box on an object, by confidence, is correct; later
    ones are wrong; boxes on a difficult object are left out.

    Args:
        predictions: answers of one task, each about one image.
        kind: kind of boxes to match; boxes of the other kind are ignored.
        threshold: minimum IoU of a correct box.
        matching: whether classes must agree.

    Returns:
        Class -> its ranked boxes; the single class "" if classes are ignored.
    """
    rows: dict[str, list[tuple[float, bool, int]]] = collections.defaultdict(list)
    objects: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(len(predictions)))

    def class_of(label: str) -> str:
        return "" if matching is ClassMatching.IGNORED else normalize(label)

    for image, prediction in enumerate(predictions):
        truths = collections.defaultdict(list)
        for item in prediction.objects:
            truths[class_of(item.label)].append((truth_box(np.asarray(item.polygon), kind), item.difficult))
            objects[class_of(item.label)][image] += not item.difficult
        boxes = collections.defaultdict(list)
        for box, confidence in zip(parse_answer(prediction).boxes, box_confidences(prediction), strict=True):
            if box.kind is kind:
                boxes[class_of(box.label)].append((box_in_pixels(box, frame_of(prediction)), float(confidence)))
        for label, group in boxes.items():
            verdicts = _verdicts(group, truths[label], kind, threshold)
            rows[label] += [
                (c, correct, image) for (_, c), correct in zip(group, verdicts, strict=True) if correct is not None
            ]
    ranked = {}
    for label in sorted(rows.keys() | objects.keys()):
        columns = np.array(rows[label], dtype=float).reshape(-1, 3)
        ranked[label] = RankedBoxes(
            confidences=columns[:, 0],
            correct=columns[:, 1] > 0,
            images=columns[:, 2].astype(int),
            objects=objects[label],
        )
    return ranked


def _verdicts(
    boxes: Sequence[tuple[np.ndarray, float]],
    truths: Sequence[tuple[np.ndarray, bool]],
    kind: BoxKind,
    threshold: float,
) -> list[bool | None]:
    """Return whether each box is correct; None for a box on a difficult object."""
    verdicts: list[bool | None] = [False] * len(boxes)
    if not truths:
        return verdicts
    overlaps = ious([box for box, _ in boxes], [truth for truth, _ in truths], kind)
    taken: set[int] = set()
    for i in np.argsort([-confidence for _, confidence in boxes], kind="stable"):
        j = int(overlaps[i].argmax())
        if overlaps[i, j] < threshold - SLACK:
            continue
        verdicts[i] = None if truths[j][1] else j not in taken
        taken.add(j)
    return verdicts


def precision_recall_curve(ranked: RankedBoxes) -> tuple[np.ndarray, np.ndarray]:
    """Return (recall, precision), f[K] each, at the K distinct confidences in descending order."""
    recall, precision = _precision_recall(ranked, np.ones((1, len(ranked.objects))))
    return recall[0], precision[0]


def _precision_recall(ranked: RankedBoxes, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (recall, precision), f[B, K] each, for image weights f[B, n]."""
    _, level = np.unique(-ranked.confidences, return_inverse=True)
    levels = int(level.max()) + 1 if len(level) else 0
    if levels == 1:  # counts per image suffice: a matrix product whose size does not depend on the number of boxes
        size = len(ranked.objects)
        tables = [np.bincount(ranked.images, chosen, minlength=size) for chosen in (ranked.correct, ~ranked.correct)]
        correct, wrong = (weights @ table[:, None] for table in tables)
    else:
        order = np.argsort(level, kind="stable")
        last = np.searchsorted(level[order], np.arange(levels), side="right") - 1
        box_weights = weights[:, ranked.images[order]]
        correct, wrong = (
            (box_weights * chosen[order]).cumsum(axis=1)[:, last] for chosen in (ranked.correct, ~ranked.correct)
        )
    objects = (weights @ ranked.objects)[:, None]
    return correct / np.maximum(objects, 1e-12), correct / np.maximum(correct + wrong, 1e-12)


def average_precision(ranked: RankedBoxes, rule: Interpolation, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the AP of one class, f[B] in [0, 1]; NaN where it has no objects.

    Args:
        ranked: the boxes of the class.
        rule: how AP is read off the curve.
        weights: bootstrap weights of the images, f[B, n]; default: one sample in which every image counts once.
    """
    weights = np.ones((1, len(ranked.objects))) if weights is None else weights
    recall, precision = _precision_recall(ranked, weights)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # best precision at this recall or a higher one
    if rule is Interpolation.VOC12:
        steps = np.diff(recall, axis=1, prepend=0.0)
        values = (steps * best).sum(axis=1)
    else:
        values = np.mean(
            [np.where(recall >= t - 1e-9, best, 0.0).max(axis=1, initial=0.0) for t in np.linspace(0, 1, 11)], axis=0
        )
    return np.where(weights @ ranked.objects > 0, values, np.nan)


def mean_average_precision(
    ranked: Mapping[str, RankedBoxes], rule: Interpolation, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean AP over the classes that have objects, f[B] in [0, 1]; 0 if no class has any."""
    values = [average_precision(boxes, rule, weights) for boxes in ranked.values() if boxes.objects.sum()]
    if not values:
        return np.zeros(1 if weights is None else len(weights))
    table = np.stack(values)
    defined = np.isfinite(table)
    return np.where(defined, table, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)


def with_equal_confidences(ranked: RankedBoxes) -> RankedBoxes:
    """Return the same boxes, all with the same confidence."""
    return dataclasses.replace(ranked, confidences=np.ones_like(ranked.confidences))
