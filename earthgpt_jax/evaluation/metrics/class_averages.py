"""Averages over classes: mean recall, macro F1, Cohen's kappa; and the figures of answers with several labels.

Each is computed from three sums per class: how often it is true, claimed, and both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Statistics, Values, ratio

MAX_CLASSES = 300  # above, true answers are free text, whose average over "classes" says nothing
_SUMS = ("true", "claimed", "hit")


def class_statistics(truths: Sequence[Collection[str]], answers: Sequence[Collection[str]]) -> Statistics:
    """Return the three statistics of each class that is true somewhere; {} if there are too many classes.

    Args:
        truths, answers: the labels of each question.
    """
    classes = sorted({name for names in truths for name in names})
    if not classes or len(classes) > MAX_CLASSES:
        return {}
    tables = [np.array([[name in names for name in classes] for names in rows], float) for rows in (truths, answers)]
    columns = (*tables, tables[0] * tables[1])
    return {
        f"{what}:{name}": table[:, k]
        for what, table in zip(_SUMS, columns, strict=True)
        for k, name in enumerate(classes)
    }


def _per_class(sums: Statistics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (true, claimed, hit), f[classes, ...] each."""
    true, claimed, hit = (
        np.stack([column for name, column in sums.items() if name.startswith(f"{what}:")]) for what in _SUMS
    )
    return true, claimed, hit


def has_classes(sums: Statistics) -> bool:
    """Return whether `class_statistics` are among the statistics."""
    return any(name.startswith("true:") for name in sums)


def _mean_over_present(values: np.ndarray, true: np.ndarray) -> np.ndarray:
    present = true > 0
    return ratio(np.where(present, values, 0).sum(axis=0), present.sum(axis=0))


def macro_f1(sums: Statistics) -> np.ndarray:
    """Return the mean of the F1 of the classes that are true somewhere, in [0, 1]."""
    true, claimed, hit = _per_class(sums)
    return _mean_over_present(ratio(2 * hit, true + claimed), true)


def single_label(sums: Statistics) -> Values:
    """Compute averages over the classes that are true somewhere.

    - `mean_recall`: mean of the recalls of the classes (average accuracy, AA; balanced accuracy), in [0, 1].
    - `macro_f1`: mean of the F1 of the classes, in [0, 1].
    - `kappa`: Cohen's kappa, the agreement beyond chance, in [-1, 1]; answers that are no class agree with nothing.
    """
    true, claimed, hit = _per_class(sums)
    expected = ratio((true * claimed).sum(axis=0), sums["n"] ** 2)
    observed = ratio(hit.sum(axis=0), sums["n"])
    return {
        "mean_recall": _mean_over_present(ratio(hit, true), true),
        "macro_f1": macro_f1(sums),
        "kappa": ratio(observed - expected, 1 - expected),
    }


def multi_label(sums: Statistics) -> Values:
    """Compute the figures of answers with several labels, all in [0, 1].

    - `multilabel_precision`, `_recall`, `_f1`: over all labels (micro average); labels that are no class count as
      wrong claims.
    - `multilabel_macro_f1`: mean of the F1 of the classes.
    - `multilabel_map`: mean over the classes of the AP of an answer without scores, which ranks the images that claim
      the class before all others: recall times precision, and the rest of the recall times the frequency of the class
      (scikit-learn's `average_precision_score` of 0 and 1).
    """
    true, claimed, hit = _per_class(sums)
    hits, labels, claims = hit.sum(axis=0), true.sum(axis=0), claimed.sum(axis=0) + sums["other_labels"]
    recall = ratio(hit, true)
    average = recall * ratio(hit, claimed) + (1 - recall) * ratio(true, sums["n"])
    return {
        "multilabel_precision": ratio(hits, claims),
        "multilabel_recall": ratio(hits, labels),
        "multilabel_f1": ratio(2 * hits, claims + labels),
        "multilabel_macro_f1": macro_f1(sums),
        "multilabel_map": _mean_over_present(average, true),
    }


def split_labels(text: str) -> list[str]:
    """Split an answer with several labels at commas, semicolons, line breaks and a last `and`."""
    parts = re.split(r"[,;\n]|\band\b", text)
    return [part for part in (part.strip().rstrip(".").strip() for part in parts) if part]
