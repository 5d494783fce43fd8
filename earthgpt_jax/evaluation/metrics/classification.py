"""Top-1 accuracy by exact match after normalisation.

Exact on purpose: substring and token-recall rules of published scorers count "no" inside "know" and any
answer that names enough labels as right.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Counts, Figures, Metric, ratio, rows_by
from earthgpt_jax.evaluation.predictions import Prediction

OTHER = "(no class)"  # an answer that names none of the classes


def normalise(text: str) -> str:
    """Lower case, `_` and `-` to spaces, other punctuation dropped, single spaces.

    A number keeps its decimal point and its minus: 1.5 is not 15, and -5 is not 5.
    """
    text = re.sub(r"_|(?<=\w)-|-(?!\d)", " ", text.lower())
    return " ".join(re.sub(r"(?!(?<=\d)\.(?=\d))(?!-\d)[^\w\s]", "", text).split())


def right(prediction: Prediction) -> bool:
    """Whether the answer is the truth or one of its declared synonyms, normalised; an empty answer never is."""
    given = normalise(prediction.prediction)
    return bool(given) and (given == normalise(prediction.answer) or given in map(normalise, prediction.synonyms))


def _counts(predictions: Sequence[Prediction]) -> Counts:
    return {"n": np.ones(len(predictions)), "right": np.array([right(p) for p in predictions], float)}


def _figures(sums: Counts) -> Figures:
    return {"top1": ratio(sums["right"], sums["n"])}


def _parts(predictions: Sequence[Prediction]) -> Mapping[str, Counts]:
    """By true class: `top1` is then the class's recall."""
    return rows_by([f"class: {normalise(p.answer)}" for p in predictions], _counts(predictions))


classification = Metric(counts=_counts, figures=_figures, parts=_parts)


def confusion(predictions: Sequence[Prediction]) -> tuple[list[str], list[str], np.ndarray]:
    """(true classes, answered classes, i[true, answered]); answers that are no true class of any go to the last column.

    A declared synonym counts as the class that it stands for.
    """
    rows = sorted({normalise(p.answer) for p in predictions})
    cells: collections.Counter[tuple[str, str]] = collections.Counter()
    for p in predictions:
        truth, given = normalise(p.answer), normalise(p.prediction)
        cells[truth, truth if right(p) else given if given in rows else OTHER] += 1
    columns = [*rows, OTHER]
    return rows, columns, np.array([[cells[row, column] for column in columns] for row in rows])
