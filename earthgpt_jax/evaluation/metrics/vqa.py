"""VQA accuracy by exact match, overall and by question type."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from earthgpt_jax.evaluation.metrics.classification import right
from earthgpt_jax.evaluation.predictions import Prediction


def vqa(predictions: Sequence[Prediction]) -> dict[str, float]:
    """`accuracy` over all questions (micro) and `accuracy_<type>` for each type."""
    by_kind: dict[str, list[bool]] = collections.defaultdict(list)
    for prediction in predictions:
        by_kind[prediction.kind].append(right(prediction))
    everything = [value for values in by_kind.values() for value in values]
    return {"accuracy": sum(everything) / len(everything)} | {
        f"accuracy_{kind}": sum(values) / len(values) for kind, values in sorted(by_kind.items()) if kind
    }
