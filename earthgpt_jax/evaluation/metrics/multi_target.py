"""Grounding of phrases with several targets, or none: the answer is a set of boxes, whose classes do not matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, ratio
from earthgpt_jax.evaluation.metrics.detection import greedy_matching
from earthgpt_jax.evaluation.metrics.iou import ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import box_in_pixels, frame_of, parse_answer
from earthgpt_jax.evaluation.predictions import Prediction


def _polygons(prediction: Prediction) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the predicted and the true boxes as polygons f64[8] in pixels; the true ones as their kind requires.

    Axis-aligned answers are compared with the enclosing axis-aligned boxes of the targets.
    """
    frame, parsed = frame_of(prediction), parse_answer(prediction).boxes
    boxes = [box_in_pixels(box, frame) for box in parsed]
    truths = [np.asarray(item.polygon, float) for item in prediction.objects]
    if all(box.kind is BoxKind.HBB for box in parsed):
        corners = [truth.reshape(4, 2) for truth in truths]
        truths = [_rect(*c.min(axis=0), *c.max(axis=0)) for c in corners]
    return [_rect(*box) if len(box) == 4 else box for box in boxes], truths


def _rect(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], float)


def _union(polygons: Sequence[np.ndarray]) -> shapely.Geometry:
    shapes = [shapely.Polygon(polygon.reshape(4, 2)) for polygon in polygons]
    return shapely.union_all([shape for shape in shapes if shape.is_valid])


def _row(prediction: Prediction) -> dict[str, float]:
    boxes, truths = _polygons(prediction)
    hits = len(greedy_matching(ious(boxes, truths, BoxKind.OBB))) if boxes and truths else 0
    claims = len(boxes) + len(parse_answer(prediction).rejections)
    f1 = 2 * hits / (claims + len(truths)) if claims + len(truths) else 1.0
    areas = [_union(polygons) for polygons in (boxes, truths)]
    shared, total = float(areas[0].intersection(areas[1]).area), float(areas[0].union(areas[1]).area)
    iou = shared / total if total else float(claims == len(truths) == 0)
    return {
        "n": 1.0, "f1": f1, "exact": float(f1 == 1), "iou": iou, "intersection": shared, "union": total,
        "with_targets": float(bool(truths)), "iou_with_targets": iou * bool(truths),
        "parsed": float(not parse_answer(prediction).rejections),
    }  # fmt: skip


def _statistics(predictions: Sequence[Prediction]) -> Statistics:
    rows = [_row(p) for p in predictions]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {"n": np.zeros(0)}


def _compute(sums: Statistics) -> Values:
    """Compute the figures of phrases with several targets, all in [0, 1].

    - `set_f1`: mean over the phrases of the F1 of their boxes, matched one-to-one at IoU 0.5; 1 if neither the answer
      nor the truth has a box.
    - `exact`: fraction of phrases with an F1 of 1 (Pr@(F1=1, IoU>=0.5)).
    - `miou`: mean IoU of the areas of all predicted and all true boxes, over the phrases with targets; `giou`: the same
      over all phrases, where no box for no target is 1; `ciou`: sum of intersections divided by sum of unions.
    - `parse_rate`: fraction of answers whose boxes can all be parsed.

    Source: Liu et al. 2023 (GRES), He et al. 2023 (GREC).
    """
    return {
        "set_f1": ratio(sums["f1"], sums["n"]),
        "exact": ratio(sums["exact"], sums["n"]),
        "miou": ratio(sums["iou_with_targets"], sums["with_targets"]),
        "giou": ratio(sums["iou"], sums["n"]),
        "ciou": ratio(sums["intersection"], sums["union"]),
        "parse_rate": ratio(sums["parsed"], sums["n"]),
    }


multi_target = Metric(statistics=_statistics, compute=_compute)
