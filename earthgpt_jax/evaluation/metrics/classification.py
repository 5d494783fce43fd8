"""Top-1 accuracy of scene classification by exact match after normalization.

Exact match is deliberate: substring and token-recall rules of published scorers count "no" inside "know", and accept
any answer that lists enough class names.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, group_by, ratio
from earthgpt_jax.evaluation.predictions import Prediction

OTHER = "(no class)"  # column of the confusion matrix for answers that are not a class name


def normalize(text: str) -> str:
    """Lower-case, replace `_` and `-` by spaces, drop other punctuation, and collapse spaces.

    Numbers keep their decimal point and minus sign: 1.5 is not 15, and -5 is not 5. A whole number loses its decimals:
    3.0 is 3.
    """
    text = re.sub(r"_|(?<=\w)-|-(?!\d)", " ", text.lower())
    text = re.sub(r"(?<![\d.])(\d+)\.0+(?![\d.]*\d)", r"\1", text)
    return " ".join(re.sub(r"(?!(?<=\d)\.(?=\d))(?!-\d)[^\w\s]", "", text).split())


def is_correct(prediction: Prediction) -> bool:
    """Return whether the normalized answer equals the truth or a declared synonym; an empty answer never does."""
    answer = normalize(prediction.prediction)
    return bool(answer) and (
        answer == normalize(prediction.answer) or answer in map(normalize, prediction.synonyms)
    )  # fmt: skip


def _statistics(predictions: Sequence[Prediction]) -> Statistics:
    return {"n": np.ones(len(predictions)), "correct": np.array([is_correct(p) for p in predictions], float)}


def _compute(sums: Statistics) -> Values:
    """Compute `top1`: the fraction of correct answers, in [0, 1]."""
    return {"top1": ratio(sums["correct"], sums["n"])}


def _breakdown(predictions: Sequence[Prediction]) -> Mapping[str, Statistics]:
    """Group by true class; `top1` of a class is its recall."""
    return group_by([f"class: {normalize(p.answer)}" for p in predictions], _statistics(predictions))


classification = Metric(statistics=_statistics, compute=_compute, breakdown=_breakdown)


def confusion_matrix(predictions: Sequence[Prediction]) -> tuple[list[str], list[str], np.ndarray]:
    """Count answers by true and predicted class.

    A declared synonym counts as the class that it stands for. An answer that is not a true class of any prediction
    goes to the last column, `OTHER`.

    Returns:
        (true classes, predicted classes, i[true, predicted]).
    """
    classes = sorted({normalize(p.answer) for p in predictions})
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for p in predictions:
        truth, answer = normalize(p.answer), normalize(p.prediction)
        counts[truth, truth if is_correct(p) else answer if answer in classes else OTHER] += 1
    columns = [*classes, OTHER]
    return classes, columns, np.array([[counts[row, column] for column in columns] for row in classes])
