"""Accuracy of scene classification by exact match after normalization, and averages over classes.

Exact match is deliberate: substring and token-recall rules of published scorers count "no" inside "know", and accept
any answer that lists enough class names.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics import class_averages
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


def has_several_labels(predictions: Sequence[Prediction]) -> bool:
    """Return whether questions are answered with several labels: a true answer has a comma."""
    return any("," in p.answer for p in predictions)


def _correct(predictions: Sequence[Prediction]) -> Statistics:
    return {"n": np.ones(len(predictions)), "correct": np.array([is_correct(p) for p in predictions], float)}


def _statistics(predictions: Sequence[Prediction]) -> Statistics:
    if has_several_labels(predictions):
        return _label_statistics(predictions)
    columns = _correct(predictions)
    truths = [normalize(p.answer) for p in predictions]
    answers = [truth if right else normalize(p.prediction)
               for p, truth, right in zip(predictions, truths, columns["correct"], strict=True)]  # fmt: skip
    return {**columns, **class_averages.class_statistics([{t} for t in truths], [{a} for a in answers])}


def _label_statistics(predictions: Sequence[Prediction]) -> Statistics:
    truths, answers = ([{normalize(label) for label in class_averages.split_labels(text)} for text in texts]
                       for texts in ([p.answer for p in predictions], [p.prediction for p in predictions]))  # fmt: skip
    columns = class_averages.class_statistics(truths, answers)
    classes = {name for names in truths for name in names}
    return {
        "n": np.ones(len(predictions)),
        "correct": np.array([truth == answer for truth, answer in zip(truths, answers, strict=True)], float),
        "other_labels": np.array([len(answer - classes) for answer in answers], float),
        **columns,
    }


def _compute(sums: Statistics) -> Values:
    """Compute `top1`, the fraction of correct answers, in [0, 1], and averages over classes (`class_averages`).

    Where true answers are several labels, separated by commas, an answer is correct if it has exactly these labels.
    """
    values = {"top1": ratio(sums["correct"], sums["n"])}
    if not class_averages.has_classes(sums):
        return values
    return values | (class_averages.multi_label if "other_labels" in sums else class_averages.single_label)(sums)


def _breakdown(predictions: Sequence[Prediction]) -> Mapping[str, Statistics]:
    """Group by true class; `top1` of a class is its recall."""
    if has_several_labels(predictions):
        return {}
    return group_by([f"class: {normalize(p.answer)}" for p in predictions], _correct(predictions))


classification = Metric(
    statistics=_statistics, compute=_compute, breakdown=_breakdown, unbounded=frozenset({"kappa"})
)  # fmt: skip


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
