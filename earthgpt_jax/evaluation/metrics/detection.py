"""Detection from text: precision, recall and F1 at IoU 0.5, one-to-one, per class, HBB or OBB."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import shapely

from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.geometry import BoxKind, Square, parse, polygon_to_rect

# IoU of a hit. The slack is for rounding alone: 0.5 in exact numbers may come out as 0.4999999.
THRESHOLD = 0.5 - 1e-6


def hbb_ious(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU matrix f[M, N] of boxes f[M, 4] and f[N, 4] (x0, y0, x1, y1), continuous coordinates."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, two)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def obb_ious(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU matrix f[M, N] of polygons f[M, 8] and f[N, 8], by shapely; invalid polygons have IoU 0."""
    polygons = [np.asarray(shapely.polygons(boxes.reshape(-1, 4, 2))) for boxes in (one, two)]
    result = np.zeros((len(one), len(two)))
    valid = np.logical_and.outer(*(shapely.is_valid(shapes) for shapes in polygons))
    i, j = np.nonzero(valid)
    a, b = polygons[0][i], polygons[1][j]
    shared = shapely.area(shapely.intersection(a, b))
    result[i, j] = shared / np.maximum(shapely.area(a) + shapely.area(b) - shared, 1e-12)
    return result


_OVERLAP: Mapping[BoxKind, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    BoxKind.HBB: hbb_ious,
    BoxKind.OBB: obb_ious,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched:
    """One image: right boxes, boxes too many, objects missed, and whether every box could be read."""

    right: int
    spurious: int
    missed: int
    parsed: bool


def matching(prediction: Prediction, kind: BoxKind) -> Matched:
    """One-to-one matching by descending IoU among boxes and objects of the same label.

    A box of the other kind, or one that cannot be read, is a claim too, and spurious.
    A difficult object is neither required nor punished: it is never missed, and boxes that match no
    required object but lie on it (IoU at least 0.5) do not count, however many (as in Pascal VOC).
    """
    parsed = parse(prediction.prediction)
    square = Square(prediction.width, prediction.height)
    boxes: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for box in parsed.boxes:
        if box.kind is kind:
            boxes[normalise(box.label)].append(square.to_pixels(box.coords))
    required: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    difficult: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for item in prediction.objects:
        corners = np.asarray(item.polygon, np.float64)
        numbers = np.asarray(polygon_to_rect(corners)) if kind is BoxKind.HBB else corners
        (difficult if item.difficult else required)[normalise(item.label)].append(numbers)

    right = ignored = 0
    for label, found in boxes.items():
        hit = _greedy(_ious(found, required[label], kind))
        right += len(hit)
        on_difficult = np.any(_ious(found, difficult[label], kind) >= THRESHOLD, axis=1).tolist()
        ignored += sum(on_difficult[i] for i in range(len(found)) if i not in hit)
    claims = len(parsed.boxes) + len(parsed.rejections)
    return Matched(
        right=right,
        spurious=claims - right - ignored,
        missed=sum(map(len, required.values())) - right,
        parsed=not parsed.rejections and bool(parsed.boxes or says_none(prediction.prediction)),
    )


def _ious(found: list[np.ndarray], truths: list[np.ndarray], kind: BoxKind) -> np.ndarray:
    """f[M, N], with N = 0 where there is no such object."""
    return _OVERLAP[kind](np.stack(found), np.stack(truths)) if truths else np.zeros((len(found), 0))


def _greedy(ious: np.ndarray) -> set[int]:
    """The boxes (rows) that get an object of their own (columns), best pairs first."""
    rows: set[int] = set()
    columns: set[int] = set()
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        i, j = divmod(int(flat), ious.shape[1])
        if ious[i, j] < THRESHOLD:
            break
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
    return rows


def says_none(text: str) -> bool:
    """The one sentence that means an empty list."""
    return text.strip().lower().rstrip(".") == "there are no objects in the image"


def detection(predictions: Sequence[Prediction], kind: BoxKind) -> dict[str, float]:
    """Micro-averaged over images; an image without objects counts the boxes claimed in it.

    `boxes` and `objects` are what precision and recall are shares of (difficult objects left out).
    """
    matched = [matching(prediction, kind) for prediction in predictions]
    right, spurious, missed = (sum(getattr(m, name) for m in matched) for name in ("right", "spurious", "missed"))
    precision = right / (right + spurious) if right + spurious else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "boxes": right + spurious,
        "objects": right + missed,
        "parse_rate": sum(m.parsed for m in matched) / len(matched),
    }
