"""Top-1 accuracy by exact match after normalisation.

Exact on purpose: substring and token-recall rules of published scorers count "no" inside "know" and any
answer that names enough labels as right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from earthgpt_jax.evaluation.predictions import Prediction


def normalise(text: str) -> str:
    """Lower case, `_` and `-` to spaces, other punctuation dropped, single spaces.

    A number keeps its decimal point and its minus: 1.5 is not 15, and -5 is not 5.
    """
    text = re.sub(r"_|(?<=\w)-|-(?!\d)", " ", text.lower())
    return " ".join(re.sub(r"(?!(?<=\d)\.(?=\d))(?!-\d)[^\w\s]", "", text).split())


def right(prediction: Prediction) -> bool:
    """Whether the answer is the truth, both normalised; an empty answer never is."""
    given = normalise(prediction.prediction)
    return bool(given) and given == normalise(prediction.answer)


def classification(predictions: Sequence[Prediction]) -> dict[str, float]:
    return {"top1": sum(map(right, predictions)) / len(predictions)}
