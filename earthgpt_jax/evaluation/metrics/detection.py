"""Detection from text: precision, recall and F1 at IoU 0.5, one-to-one, per class, HBB or OBB."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import shapely

from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.geometry import BoxKind, Square, parse, polygon_to_rect

THRESHOLD = 0.5


def hbb_ious(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU matrix f[M, N] of boxes f[M, 4] and f[N, 4] (x0, y0, x1, y1), continuous coordinates."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, two)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def obb_ious(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU matrix f[M, N] of polygons f[M, 8] and f[N, 8], by shapely; invalid polygons have IoU 0."""
    polygons = [shapely.polygons(boxes.reshape(-1, 4, 2)) for boxes in (one, two)]
    valid = np.logical_and.outer(*(shapely.is_valid(shapes) for shapes in polygons))
    result = np.zeros((len(one), len(two)))
    for i, j in zip(*np.nonzero(valid), strict=True):
        shared = polygons[0][i].intersection(polygons[1][j]).area
        result[i, j] = shared / max(polygons[0][i].area + polygons[1][j].area - shared, 1e-12)
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched:
    """One image: right boxes, boxes too many, objects missed, and whether every box could be read."""

    right: int
    spurious: int
    missed: int
    parsed: bool


def matching(prediction: Prediction, kind: BoxKind) -> Matched:
    """One-to-one matching by descending IoU among boxes of the same label.

    A difficult object is neither required nor punished: unmatched it is not missed, and a box on it
    is neither right nor spurious.
    """
    parsed = parse(prediction.prediction)
    square = Square(prediction.width, prediction.height)
    boxes: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    wrong_kind = 0
    for box in parsed.boxes:
        if box.kind is kind:
            boxes[box.label].append(_numbers(box.pixels(square), kind))
        else:
            wrong_kind += 1
    truths: dict[str, list[tuple[np.ndarray, bool]]] = collections.defaultdict(list)
    for item in prediction.objects:
        truths[item.label].append((_numbers(np.asarray(item.polygon), kind), item.difficult))

    right, ignored, required = 0, 0, sum(not item.difficult for item in prediction.objects)
    for label, found in boxes.items():
        wanted = truths.get(label, [])
        if not wanted:
            continue
        overlap = {BoxKind.HBB: hbb_ious, BoxKind.OBB: obb_ious}[kind]
        ious = overlap(np.stack(found), np.stack([numbers for numbers, _ in wanted]))
        used_boxes, used_truths = set(), set()
        for flat in np.argsort(-ious, axis=None, kind="stable"):
            i, j = divmod(int(flat), len(wanted))
            if ious[i, j] < THRESHOLD:
                break
            if i in used_boxes or j in used_truths:
                continue
            used_boxes.add(i)
            used_truths.add(j)
            if wanted[j][1]:
                ignored += 1
            else:
                right += 1
    total = sum(map(len, boxes.values())) + wrong_kind
    readable = not parsed.rejections and bool(parsed.boxes or says_none(prediction.prediction))
    return Matched(right=right, spurious=total - right - ignored, missed=required - right, parsed=readable)


def says_none(text: str) -> bool:
    """The one sentence that means an empty list."""
    return text.strip().lower().rstrip(".") == "there are no objects in the image"


def _numbers(polygon: np.ndarray, kind: BoxKind) -> np.ndarray:
    return np.asarray(polygon_to_rect(polygon) if kind is BoxKind.HBB else polygon, np.float64)


def detection(predictions: Sequence[Prediction], kind: BoxKind) -> dict[str, float]:
    """Micro-averaged over images; an image without objects counts the boxes claimed in it."""
    matched = [matching(prediction, kind) for prediction in predictions]
    right, spurious, missed = (sum(getattr(m, name) for m in matched) for name in ("right", "spurious", "missed"))
    precision = right / (right + spurious) if right + spurious else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "parse_rate": sum(m.parsed for m in matched) / len(matched),
    }
