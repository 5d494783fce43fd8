"""VQA accuracy by exact match, overall and by question type; counts also by bins and by distance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes.plurals import WORDS
from earthgpt_jax.evaluation.metrics.base import Counts, Figures, Metric, ratio, rows_by
from earthgpt_jax.evaluation.metrics.classification import normalise, right
from earthgpt_jax.evaluation.predictions import Prediction

# Upper ends of the bins that RSVQA-LR's counts are put into (Lobry et al. 2020): 0, 1-10, 11-100, 101-1000, more.
_BINS = (0, 10, 100, 1000)
_YES_NO = ("yes", "no")


def number(text: str) -> int | None:
    """The count that an answer is, in digits or as a word up to ten; None if it is anything else."""
    text = normalise(text)
    if text in WORDS:
        return WORDS.index(text)
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _counts(predictions: Sequence[Prediction]) -> Counts:
    n = len(predictions)
    hits = np.array([right(p) for p in predictions], float)
    columns = {"n": np.ones(n), "right": hits}
    for kind in sorted({p.kind for p in predictions} - {""}):
        of_kind = np.array([p.kind == kind for p in predictions], float)
        columns |= {f"n_{kind}": of_kind, f"right_{kind}": hits * of_kind}
    truths, given = ([number(text) for text in texts] for texts in zip(
        *((p.answer, p.prediction) for p in predictions), strict=True))  # fmt: skip
    if any(truth is not None for truth in truths):
        columns |= {
            "counts": np.array([t is not None for t in truths], float),
            "counts_read": np.array([None not in pair for pair in zip(truths, given, strict=True)], float),
            "counts_binned": np.array([_same_bin(*pair) for pair in zip(truths, given, strict=True)], float),
            "counts_off": np.array([_off(*pair) for pair in zip(truths, given, strict=True)], float),
            "counts_right": np.array([t is not None and t == g for t, g in zip(truths, given, strict=True)], float),
        }
    if any(normalise(p.answer) == "no" for p in predictions):
        no = np.array([normalise(p.answer) == "no" for p in predictions])
        columns |= {
            "premises": no.astype(float),
            "believed": np.array([normalise(p.prediction) == "yes" for p in predictions]) * no.astype(float),
        }
    return columns


def _same_bin(truth: int | None, given: int | None) -> bool:
    return truth is not None and given is not None and bool(
        np.searchsorted(_BINS, truth) == np.searchsorted(_BINS, given)
    )  # fmt: skip


def _off(truth: int | None, given: int | None) -> int:
    return abs(truth - given) if truth is not None and given is not None else 0


def _figures(sums: Counts) -> Figures:
    """`accuracy` over all questions (micro), `accuracy_<type>` for each type, `accuracy_macro` their mean.

    Of questions whose answer is a number: `count_exact` (a number word is its digits), `count_binned` in RSVQA's bins,
    `count_mae` over the answers that are numbers, whose share is `count_read`. `yes_to_no` is the share of questions
    to be answered `no` that are answered `yes`: what is not there is said to be.
    """
    kinds = [name.removeprefix("n_") for name in sums if name.startswith("n_")]
    by_kind = {f"accuracy_{kind}": ratio(sums[f"right_{kind}"], sums[f"n_{kind}"]) for kind in kinds}
    figures = {"accuracy": ratio(sums["right"], sums["n"]), **by_kind}
    if kinds:
        asked = np.sum([sums[f"n_{kind}"] > 0 for kind in kinds], axis=0)
        figures["accuracy_macro"] = ratio(np.sum(list(by_kind.values()), axis=0), asked)
    if "counts" in sums:
        figures |= {
            "count_exact": ratio(sums["counts_right"], sums["counts"]),
            "count_binned": ratio(sums["counts_binned"], sums["counts"]),
            "count_mae": ratio(sums["counts_off"], sums["counts_read"]),
            "count_read": ratio(sums["counts_read"], sums["counts"]),
        }
    if "premises" in sums:
        figures["yes_to_no"] = ratio(sums["believed"], sums["premises"])
    return figures


def _parts(predictions: Sequence[Prediction]) -> Mapping[str, Counts]:
    """By answer, where it is yes or no: a model that says yes to all is right half of the time."""
    answers = [normalise(p.answer) for p in predictions]
    counts = {name: column for name, column in _counts(predictions).items() if name in ("n", "right")}
    return rows_by([f"answer: {a}" if a in _YES_NO else "" for a in answers], counts)


vqa = Metric(counts=_counts, figures=_figures, parts=_parts)
