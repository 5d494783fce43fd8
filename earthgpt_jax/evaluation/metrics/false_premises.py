"""Questions whose premise is false: boxes are asked for of something that is not there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Counts, Figures, Metric, ratio
from earthgpt_jax.evaluation.metrics.classification import right
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of
from earthgpt_jax.evaluation.predictions import Prediction


def _counts(predictions: Sequence[Prediction]) -> Counts:
    parsed = [boxes_of(prediction) for prediction in predictions]
    claims = np.array([len(p.boxes) + len(p.rejections) for p in parsed], float)
    return {
        "n": np.ones(len(predictions)),
        "refused": np.array([right(p) for p in predictions], float),
        "boxes": claims,
        "fooled": (claims > 0).astype(float),
    }


def _figures(sums: Counts) -> Figures:
    """`refused`: answered that there is none, as the truth says it; `fooled`: with at least one box;
    `hallucinated`: boxes an image, readable or not."""
    return {
        "refused": ratio(sums["refused"], sums["n"]),
        "fooled": ratio(sums["fooled"], sums["n"]),
        "hallucinated": ratio(sums["boxes"], sums["n"]),
    }


premises = Metric(counts=_counts, figures=_figures)
