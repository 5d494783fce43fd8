"""Grounding: one box asked for, one box expected. IoU in original pixels, continuous, no +1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import MMRS, BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.base import Counts, Figures, Metric, ratio, rows_by
from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.metrics.iou import SLACK, ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of, extent, frame_of, numbers, pixels_of, size_of
from earthgpt_jax.evaluation.predictions import Prediction, Truth

PERCENT = (50, 60, 70, 80, 90)


def target(prediction: Prediction) -> Truth:
    """The object asked for."""
    if prediction.object_index is None:
        raise EarthGPTError(f"prediction {prediction.id}: expected the index of the object asked for, got none")
    return prediction.objects[prediction.object_index]


def _pair(prediction: Prediction) -> tuple[np.ndarray | None, np.ndarray]:
    """(the box answered, the box asked for); None where the answer is not exactly one box that may be answered.

    Grammars that write every box with an angle are answered to in polygons; in ours, an upright box is asked for.
    """
    polygon = np.asarray(target(prediction).polygon)
    parsed = boxes_of(prediction)
    oriented = len(parsed.boxes) == 1 and parsed.boxes[0].kind is BoxKind.OBB
    if len(parsed.boxes) != 1 or parsed.rejections or (oriented and prediction.box_format == MMRS):
        return None, numbers(polygon, BoxKind.HBB)
    kind = parsed.boxes[0].kind
    return pixels_of(parsed.boxes[0], frame_of(prediction)), numbers(polygon, kind)


def _iou(given: np.ndarray | None, truth: np.ndarray) -> float:
    return (
        0.0 if given is None else float(ious([given], [truth], BoxKind.HBB if len(truth) == 4 else BoxKind.OBB)[0, 0])
    )


def iou(prediction: Prediction) -> float | None:
    """IoU with the object asked for; None where the answer is not exactly one box of the kind asked for."""
    given, truth = _pair(prediction)
    return None if given is None else _iou(given, truth)


def _counts(predictions: Sequence[Prediction]) -> Counts:
    pairs = [_pair(prediction) for prediction in predictions]
    overlaps = np.array([_iou(*pair) for pair in pairs])
    areas = np.array([extent(t) + (0.0 if g is None else extent(g)) for g, t in pairs])
    shared = areas * overlaps / (1 + overlaps)  # of IoU = shared / (areas - shared)
    return {
        "n": np.ones(len(pairs)),
        **{f"hits{p}": (overlaps >= p / 100 - SLACK).astype(float) for p in PERCENT},
        "iou": overlaps,
        "shared": shared,
        "joined": areas - shared,
        "parsed": np.array([g is not None for g, _ in pairs], float),
    }


def _figures(sums: Counts) -> Figures:
    """Over all questions: what cannot be read is wrong, and its IoU is 0.

    `pr50` to `pr90`: share with that IoU in percent; `mean_iou`; `cum_iou`, all intersections by all unions, in which
    large objects count most (Yang et al. 2022, RSVG).
    """
    return {
        **{f"pr{p}": ratio(sums[f"hits{p}"], sums["n"]) for p in PERCENT},
        "mean_iou": ratio(sums["iou"], sums["n"]),
        "cum_iou": ratio(sums["shared"], sums["joined"]),
        "parse_rate": ratio(sums["parsed"], sums["n"]),
    }


def _parts(predictions: Sequence[Prediction]) -> Mapping[str, Counts]:
    counts = _counts(predictions)
    asked = [target(prediction) for prediction in predictions]
    sizes = [size_of(numbers(np.asarray(t.polygon), BoxKind.HBB), p) for t, p in zip(asked, predictions, strict=True)]
    classes = [normalise(t.label) for t in asked]
    return rows_by([f"size: {size}" if size else "" for size in sizes], counts) | rows_by(
        [f"class: {label}" if label else "" for label in classes], counts
    )


grounding = Metric(counts=_counts, figures=_figures, parts=_parts)
