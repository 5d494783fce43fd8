"""Top-1 accuracy by exact match after normalisation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from earthgpt_jax.evaluation.predictions import Prediction


def normalise(text: str) -> str:
    """Lower case, `_` and `-` to spaces, other punctuation dropped, single spaces."""
    text = re.sub(r"[_\-]", " ", text.lower())
    return " ".join(re.sub(r"[^\w\s]", "", text).split())


def right(prediction: Prediction) -> bool:
    return normalise(prediction.prediction) == normalise(prediction.answer)


def classification(predictions: Sequence[Prediction]) -> dict[str, float]:
    return {"top1": sum(map(right, predictions)) / len(predictions)}
