"""VQA accuracy by exact match, overall and by question type, and further metrics of counts and of yes/no questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes.plurals import NUMBER_WORDS
from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, group_by, ratio
from earthgpt_jax.evaluation.metrics.classification import is_correct, normalize
from earthgpt_jax.evaluation.predictions import Prediction

# Upper ends of RSVQA-LR's bins of counts (Lobry et al. 2020): 0, 1-10, 11-100, 101-1000, more.
_BINS = (0, 10, 100, 1000)
_BIN_NAMES = ("0", "1-10", "11-100", "101-1000", "above 1000")
_YES_NO = ("yes", "no")


def parse_count(text: str) -> int | None:
    """Return the count that an answer states, in digits or as a word up to ten; None if it states anything else."""
    text = normalize(text)
    if text in NUMBER_WORDS:
        return NUMBER_WORDS.index(text)
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _statistics(predictions: Sequence[Prediction]) -> Statistics:
    n = len(predictions)
    correct = np.array([is_correct(p) for p in predictions], float)
    columns = {"n": np.ones(n), "correct": correct}
    for question_type in sorted({p.question_type for p in predictions} - {""}):
        of_type = np.array([p.question_type == question_type for p in predictions], float)
        columns |= {f"n_{question_type}": of_type, f"correct_{question_type}": correct * of_type}
    return columns | _count_statistics(predictions) | _no_statistics(predictions)


def _count_statistics(predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    """Return statistics of the questions whose true answer is a number; empty if there is none."""
    pairs = [(parse_count(p.answer), parse_count(p.prediction)) for p in predictions]
    if all(truth is None for truth, _ in pairs):
        return {}
    return {
        "counts": np.array([truth is not None for truth, _ in pairs], float),
        "counts_parsed": np.array([None not in pair for pair in pairs], float),
        "counts_binned": np.array([_same_bin(*pair) for pair in pairs], float),
        "counts_error": np.array([_absolute_error(*pair) for pair in pairs], float),
        "counts_difference": np.array([_difference(*pair) for pair in pairs], float),
        "counts_square": np.array([_difference(*pair) ** 2 for pair in pairs], float),
        "counts_relative": np.array([_absolute_error(*pair) / (pair[0] or np.inf) for pair in pairs], float),
        "counts_positive": np.array([bool(pair[0]) and pair[1] is not None for pair in pairs], float),
        "counts_correct": np.array([truth is not None and truth == count for truth, count in pairs], float),
    }


def _no_statistics(predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    """Return statistics of the questions whose true answer is `no`; empty if there is none."""
    no = np.array([normalize(p.answer) == "no" for p in predictions])
    if not no.any():
        return {}
    return {
        "no": no.astype(float),
        "no_answered_yes": np.array([normalize(p.prediction) == "yes" for p in predictions]) * no.astype(float),
    }


def _same_bin(truth: int | None, count: int | None) -> bool:
    return truth is not None and count is not None and bool(
        np.searchsorted(_BINS, truth) == np.searchsorted(_BINS, count)
    )  # fmt: skip


def _difference(truth: int | None, count: int | None) -> float:
    return float(count - truth) if truth is not None and count is not None else 0.0


def _absolute_error(truth: int | None, count: int | None) -> int:
    return abs(truth - count) if truth is not None and count is not None else 0


def _compute(sums: Statistics) -> Values:
    """Compute the VQA metrics. All are fractions in [0, 1], except the errors of counts.

    - `accuracy`: over all questions (micro average); `accuracy_<type>`: of each question type;
      `accuracy_macro`: mean over the question types.
    - Questions whose answer is a number: `count_exact`: exact match, where a number word equals its digits;
      `count_binned`: match of RSVQA's bins; over the answers that are numbers, `count_mae`, `count_rmse` and
      `count_bias`: mean absolute, root mean square and mean signed error (above 0: counts too many), and `count_mape`:
      mean absolute error divided by the true count, where that is not 0;
      `count_parse_rate`: fraction of answers that are numbers.
    - `false_yes_rate`: fraction of the questions with the answer `no` that are answered `yes`.
    """
    types = [name.removeprefix("n_") for name in sums if name.startswith("n_")]
    by_type = {f"accuracy_{name}": ratio(sums[f"correct_{name}"], sums[f"n_{name}"]) for name in types}
    values = {"accuracy": ratio(sums["correct"], sums["n"]), **by_type}
    if types:
        types_present = np.sum([sums[f"n_{name}"] > 0 for name in types], axis=0)
        values["accuracy_macro"] = ratio(np.sum(list(by_type.values()), axis=0), types_present)
    if "counts" in sums:
        values |= {
            "count_exact": ratio(sums["counts_correct"], sums["counts"]),
            "count_binned": ratio(sums["counts_binned"], sums["counts"]),
            "count_mae": ratio(sums["counts_error"], sums["counts_parsed"]),
            "count_rmse": np.sqrt(ratio(sums["counts_square"], sums["counts_parsed"])),
            "count_mape": ratio(sums["counts_relative"], sums["counts_positive"]),
            "count_bias": ratio(sums["counts_difference"], sums["counts_parsed"]),
            "count_parse_rate": ratio(sums["counts_parsed"], sums["counts"]),
        }
    if "no" in sums:
        values["false_yes_rate"] = ratio(sums["no_answered_yes"], sums["no"])
    return values


def _breakdown(predictions: Sequence[Prediction]) -> Mapping[str, Statistics]:
    """Group yes/no questions by their answer, and counts by their magnitude.

    A model that always says yes is correct on half of balanced questions. The groups of counts are RSVQA's bins.
    """
    answers = [normalize(p.answer) for p in predictions]
    every = _statistics(predictions)
    statistics = {name: column for name, column in every.items() if name in ("n", "correct")}
    groups = group_by([f"answer: {answer}" if answer in _YES_NO else "" for answer in answers], statistics)
    counts = {name: column for name, column in every.items() if name.startswith("counts") or name in statistics}
    return groups | group_by([_magnitude(parse_count(p.answer)) for p in predictions], counts)


def _magnitude(count: int | None) -> str:
    if count is None:
        return ""
    return f"count: {_BIN_NAMES[int(np.searchsorted(_BINS, count))]}"


def _support(name: str) -> tuple[str, ...]:
    """Return the statistic that counts the questions of a value: of a type, of counts, or with the answer `no`."""
    if name.startswith("count_"):
        return ("counts",)
    return {"accuracy": ("n",), "accuracy_macro": ("n",), "false_yes_rate": ("no",)}.get(
        name, (f"n_{name.removeprefix('accuracy_')}",)
    )


vqa = Metric(
    statistics=_statistics,
    compute=_compute,
    breakdown=_breakdown,
    unbounded=frozenset({"count_mae", "count_rmse", "count_mape", "count_bias"}),
    support=_support,
)
