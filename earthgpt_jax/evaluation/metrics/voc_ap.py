"""Average precision: Pascal VOC's two rules at IoU 0.5 and 0.4, by class; COCO's is in `coco`.

An answer in text ranks its boxes only if the model's own confidences are known. Where they are not, all are equal, and
a ranking would be made of nothing but the order of boxes: boxes of one confidence count together, as one point of the
curve. With a single confidence the area under it is precision times recall.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.metrics.iou import SLACK, ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of, frame_of, numbers, pixels_of
from earthgpt_jax.evaluation.predictions import Prediction


class Interpolation(enum.StrEnum):
    """VOC07: the mean of the best precisions at 11 recalls. VOC12: the area under the monotone curve."""

    VOC07 = "voc07"
    VOC12 = "voc12"


class Labels(enum.StrEnum):
    """Whether a box must have its object's class."""

    MATCH = "match"
    IGNORE = "ignore"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
    """The boxes of one class over all images, and the number of objects that are to be found.

    Attributes:
        confidences: f[D].
        hits: bool[D]; boxes on difficult objects are left out.
        images: i[D], which prediction each is of.
        objects: f[n], required objects of each prediction.
    """

    confidences: np.ndarray
    hits: np.ndarray
    images: np.ndarray
    objects: np.ndarray


def confidences_of(prediction: Prediction) -> np.ndarray:
    """One a box that could be read; 1 for all where none are given.

    Raises:
        EarthGPTError: another number of them, or one that is not finite.
    """
    boxes = boxes_of(prediction).boxes
    given = np.asarray(prediction.confidences or [1.0] * len(boxes), float)
    if len(given) != len(boxes) or not np.isfinite(given).all():
        raise EarthGPTError(
            f"prediction {prediction.id}: expected a finite confidence for each of {len(boxes)} boxes, "
            f"got {list(prediction.confidences)}"
        )
    return given


def rank(
    predictions: Sequence[Prediction], kind: BoxKind, *, threshold: float = 0.5, labels: Labels = Labels.MATCH
) -> dict[str, Ranked]:
    """Each class's boxes with VOC's verdicts: a box belongs to the object that it overlaps most, the first box of an
    object is right, later ones are wrong, boxes on a difficult object do not count (VOCdevkit, VOCevaldet.m)."""
    found: dict[str, list[tuple[float, bool, int]]] = collections.defaultdict(list)
    objects: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(len(predictions)))

    def name(label: str) -> str:
        return "" if labels is Labels.IGNORE else normalise(label)

    for place, prediction in enumerate(predictions):
        truths = collections.defaultdict(list)
        for item in prediction.objects:
            truths[name(item.label)].append((numbers(np.asarray(item.polygon), kind), item.difficult))
            objects[name(item.label)][place] += not item.difficult
        boxes = collections.defaultdict(list)
        for box, confidence in zip(boxes_of(prediction).boxes, confidences_of(prediction), strict=True):
            if box.kind is kind:
                boxes[name(box.label)].append((pixels_of(box, frame_of(prediction)), float(confidence)))
        for label, group in boxes.items():
            verdicts = _verdicts(group, truths[label], kind, threshold)
            found[label] += [(c, hit, place) for (_, c), hit in zip(group, verdicts, strict=True) if hit is not None]
    ranked = {}
    for label in sorted(found.keys() | objects.keys()):
        columns = np.array(found[label], dtype=float).reshape(-1, 3)
        ranked[label] = Ranked(
            confidences=columns[:, 0], hits=columns[:, 1] > 0, images=columns[:, 2].astype(int), objects=objects[label]
        )
    return ranked


def _verdicts(
    boxes: Sequence[tuple[np.ndarray, float]],
    truths: Sequence[tuple[np.ndarray, bool]],
    kind: BoxKind,
    threshold: float,
) -> list[bool | None]:
    """Right, wrong, or None for a box on a difficult object."""
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


def curve(ranked: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision) at each distinct confidence, the highest first; empty where nothing is to be found."""
    recall, precision = _points(ranked, np.ones((1, len(ranked.objects))))
    return recall[0], precision[0]


def _points(ranked: Ranked, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f[B, K] of weights f[B, n] of the images."""
    _, level = np.unique(-ranked.confidences, return_inverse=True)
    levels = int(level.max()) + 1 if len(level) else 0
    if levels == 1:  # one product of matrices, whatever the number of boxes
        size = len(ranked.objects)
        tables = [np.bincount(ranked.images, kinds, minlength=size) for kinds in (ranked.hits, ~ranked.hits)]
        right, wrong = (weights @ table[:, None] for table in tables)
    else:
        order = np.argsort(level, kind="stable")
        last = np.searchsorted(level[order], np.arange(levels), side="right") - 1
        drawn = weights[:, ranked.images[order]]
        right, wrong = ((drawn * kinds[order]).cumsum(axis=1)[:, last] for kinds in (ranked.hits, ~ranked.hits))
    there = (weights @ ranked.objects)[:, None]
    return right / np.maximum(there, 1e-12), right / np.maximum(right + wrong, 1e-12)


def average_precision(ranked: Ranked, rule: Interpolation, weights: np.ndarray | None = None) -> np.ndarray:
    """f[B] over bootstrap weights f[B, n] of the images, by default one sample of all; NaN without objects."""
    weights = np.ones((1, len(ranked.objects))) if weights is None else weights
    recall, precision = _points(ranked, weights)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or beyond
    if rule is Interpolation.VOC12:
        steps = np.diff(recall, axis=1, prepend=0.0)
        values = (steps * best).sum(axis=1)
    else:
        values = np.mean(
            [np.where(recall >= t - 1e-9, best, 0.0).max(axis=1, initial=0.0) for t in np.linspace(0, 1, 11)], axis=0
        )
    return np.where(weights @ ranked.objects > 0, values, np.nan)


def mean_average_precision(
    ranked: Mapping[str, Ranked], rule: Interpolation, weights: np.ndarray | None = None
) -> np.ndarray:
    """Over the classes that have objects; 0 where no class has."""
    values = [average_precision(item, rule, weights) for item in ranked.values() if item.objects.sum()]
    if not values:
        return np.zeros(1 if weights is None else len(weights))
    table = np.stack(values)
    there = np.isfinite(table)
    return np.where(there, table, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)


def constant(ranked: Ranked) -> Ranked:
    """The same boxes, all of one confidence."""
    return dataclasses.replace(ranked, confidences=np.ones_like(ranked.confidences))
