"""Grounding: one box asked for, one box expected. IoU in original pixels, continuous, no +1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.detection import THRESHOLD, hbb_ious
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.geometry import BoxKind, Square, parse, polygon_to_rect


def iou(prediction: Prediction) -> float | None:
    """IoU with the object asked for; None where the answer is not exactly one horizontal box."""
    if prediction.object_index is None:
        raise EarthGPTError(f"prediction {prediction.id}: expected the index of the object asked for, got none")
    parsed = parse(prediction.prediction)
    if len(parsed.boxes) != 1 or parsed.rejections or parsed.boxes[0].kind is not BoxKind.HBB:
        return None
    given = Square(prediction.width, prediction.height).to_pixels(parsed.boxes[0].coords)
    truth = polygon_to_rect(np.asarray(prediction.objects[prediction.object_index].polygon))
    return float(hbb_ious(given[None], np.array([truth]))[0, 0])


def grounding(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Pr@0.5 and mean IoU over all questions: what cannot be read is wrong, and its IoU is 0."""
    ious = [iou(prediction) for prediction in predictions]
    values = [value or 0.0 for value in ious]
    return {
        "pr50": sum(value >= THRESHOLD for value in values) / len(values),
        "mean_iou": sum(values) / len(values),
        "parse_rate": sum(value is not None for value in ious) / len(ious),
    }
