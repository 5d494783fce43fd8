"""Visual grounding: the question names one object, the answer is one box. IoU is in pixels of the original image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import MMRS, BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, group_by, ratio
from earthgpt_jax.evaluation.metrics.classification import normalize
from earthgpt_jax.evaluation.metrics.iou import SLACK, ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import (
    box_area,
    box_in_pixels,
    frame_of,
    orientation_category,
    parse_answer,
    size_category,
    truth_box,
)
from earthgpt_jax.evaluation.predictions import Prediction, Truth

PERCENTS = (50, 60, 70, 80, 90)  # IoU thresholds of precision, in percent


def target(prediction: Prediction) -> Truth:
    """Return the object that a grounding question names.

    Raises:
        EarthGPTError: the prediction does not say which object that is.
    """
    if prediction.object_index is None:
        raise EarthGPTError(
            f"prediction {prediction.id}: a grounding question needs `object_index`, the index of its object in "
            "`objects`; got none"
        )
    return prediction.objects[prediction.object_index]


def _pair(prediction: Prediction) -> tuple[np.ndarray | None, np.ndarray]:
    """Return (predicted box, true box); the former is None unless the answer is exactly one admissible box.

    In the MMRS format the answer must be an axis-aligned box. Formats that write every box with an angle are compared
    as polygons.
    """
    polygon = np.asarray(target(prediction).polygon)
    parsed = parse_answer(prediction)
    oriented = len(parsed.boxes) == 1 and parsed.boxes[0].kind is BoxKind.OBB
    if len(parsed.boxes) != 1 or parsed.rejections or (oriented and prediction.box_format == MMRS):
        return None, truth_box(polygon, BoxKind.HBB)
    kind = parsed.boxes[0].kind
    return box_in_pixels(parsed.boxes[0], frame_of(prediction)), truth_box(polygon, kind)


def _pair_iou(box: np.ndarray | None, truth: np.ndarray) -> float:
    return 0.0 if box is None else float(ious([box], [truth], BoxKind.HBB if len(truth) == 4 else BoxKind.OBB)[0, 0])


def grounding_iou(prediction: Prediction) -> float | None:
    """Return the IoU of the answer with the object; None unless the answer is exactly one box of an admissible kind."""
    box, truth = _pair(prediction)
    return None if box is None else _pair_iou(box, truth)


def _statistics(predictions: Sequence[Prediction]) -> Statistics:
    pairs = [_pair(prediction) for prediction in predictions]
    overlaps = np.array([_pair_iou(*pair) for pair in pairs])
    areas = np.array([box_area(truth) + (0.0 if box is None else box_area(box)) for box, truth in pairs])
    intersection = areas * overlaps / (1 + overlaps)  # since IoU = intersection / (areas - intersection)
    return {
        "n": np.ones(len(pairs)),
        **{f"correct{p}": (overlaps >= p / 100 - SLACK).astype(float) for p in PERCENTS},
        "iou": overlaps,
        "intersection": intersection,
        "union": areas - intersection,
        "parsed": np.array([box is not None for box, _ in pairs], float),
    }


def _compute(sums: Statistics) -> Values:
    """Compute the grounding metrics, all in [0, 1]. An answer that cannot be parsed is wrong, with IoU 0.

    - `pr50` to `pr90`: fraction of answers with an IoU of at least 0.5 to 0.9 (precision at IoU).
    - `mean_iou`: mean IoU over the questions.
    - `cum_iou`: sum of intersections divided by sum of unions, so that large objects weigh most.
    - `parse_rate`: fraction of answers that are exactly one box.

    Source: Zhan et al. 2023 (DIOR-RSVG).
    """
    return {
        **{f"pr{p}": ratio(sums[f"correct{p}"], sums["n"]) for p in PERCENTS},
        "mean_iou": ratio(sums["iou"], sums["n"]),
        "cum_iou": ratio(sums["intersection"], sums["union"]),
        "parse_rate": ratio(sums["parsed"], sums["n"]),
    }


def _breakdown(predictions: Sequence[Prediction]) -> Mapping[str, Statistics]:
    """Group by COCO size, orientation and class of the object."""
    statistics = _statistics(predictions)
    targets = [target(prediction) for prediction in predictions]
    sizes = [
        size_category(truth_box(np.asarray(t.polygon), BoxKind.HBB), p)
        for t, p in zip(targets, predictions, strict=True)
    ]
    classes = [normalize(t.label) for t in targets]
    turned = [orientation_category(np.asarray(t.polygon), p) for t, p in zip(targets, predictions, strict=True)]
    groups: dict[str, Statistics] = {}
    for name, values in (("size", sizes), ("orientation", turned), ("class", classes)):
        groups |= group_by([f"{name}: {value}" if value else "" for value in values], statistics)
    return groups


grounding = Metric(statistics=_statistics, compute=_compute, breakdown=_breakdown)
