"""Questions with a false premise: the model is asked for boxes of objects that are not in the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, ratio
from earthgpt_jax.evaluation.metrics.classification import is_correct
from earthgpt_jax.evaluation.metrics.parsed_boxes import parse_answer
from earthgpt_jax.evaluation.predictions import Prediction


def _statistics(predictions: Sequence[Prediction]) -> Statistics:
    parsed = [parse_answer(prediction) for prediction in predictions]
    boxes = np.array([len(p.boxes) + len(p.rejections) for p in parsed], float)
    return {
        "n": np.ones(len(predictions)),
        "refused": np.array([is_correct(p) for p in predictions], float),
        "boxes": boxes,
        "with_boxes": (boxes > 0).astype(float),
    }


def _compute(sums: Statistics) -> Values:
    """Compute the false-premise metrics.

    - `refusal_rate`: fraction of questions answered with the expected "There are no ... in the image", in [0, 1].
    - `hallucination_rate`: fraction of questions answered with at least one box, in [0, 1]; 0 is best.
    - `hallucinated_boxes`: boxes per question, including those that cannot be parsed; 0 is best.
    """
    return {
        "refusal_rate": ratio(sums["refused"], sums["n"]),
        "hallucination_rate": ratio(sums["with_boxes"], sums["n"]),
        "hallucinated_boxes": ratio(sums["boxes"], sums["n"]),
    }


false_premises = Metric(statistics=_statistics, compute=_compute, unbounded=frozenset({"hallucinated_boxes"}))
