"""The `Metric` type: per-prediction statistics whose sums determine every value.

A group (a sensor, a class, an object size) is a subset of the predictions; a bootstrap sample is a weighting of them.
Both are sums of the same statistics, so one definition serves every group and every confidence interval. For example,
top-1 accuracy has the statistics `n` (1 per prediction) and `correct` (0 or 1), and the value `sum(correct) / sum(n)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.predictions import Prediction

Statistics = Mapping[str, np.ndarray]  # name -> f[n], one number per prediction; or their sums, f[] or f[samples]
Values = dict[str, np.ndarray]  # metric name -> array with the shape of the sums


def _all_predictions(name: str) -> tuple[str, ...]:
    del name
    return ("n",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """The metrics of one task.

    Attributes:
        statistics: predictions -> statistics of each prediction.
        compute: sums of the statistics -> metric values; also for a leading axis of bootstrap samples.
        corpus: predictions -> further statistics that depend on the other predictions too, such as CIDEr's, which
            uses document frequencies.
        breakdown: predictions -> statistics of each part of the predictions, by group name such as `class: ship`.
        integers: names of the values that are counts of things, not ratios.
        unbounded: names of the values that are not in [0, 1], such as errors.
        support: value name -> the statistics of which at least one is above 0 for every prediction that the value
            depends on.
    """

    statistics: Callable[[Sequence[Prediction]], Statistics]
    compute: Callable[[Statistics], Values]
    corpus: Callable[[Sequence[Prediction]], Statistics] | None = None
    breakdown: Callable[[Sequence[Prediction]], Mapping[str, Statistics]] | None = None
    integers: frozenset[str] = frozenset()
    unbounded: frozenset[str] = frozenset()
    support: Callable[[str], tuple[str, ...]] = _all_predictions

    def __call__(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metric values of a set of predictions."""
        statistics = {**self.statistics(predictions), **self.corpus_statistics(predictions)}
        return self.to_numbers(self.compute(totals(statistics)))

    def corpus_statistics(self, predictions: Sequence[Prediction]) -> Statistics:
        """Return the statistics of `corpus`; empty if the metric has none."""
        return self.corpus(predictions) if self.corpus else {}

    def to_numbers(self, values: Values) -> dict[str, float]:
        """Convert scalar arrays to Python numbers: `int` for `integers`, `float` otherwise."""
        return {name: int(value) if name in self.integers else float(value) for name, value in values.items()}


def totals(statistics: Statistics) -> Statistics:
    """Sum each statistic over the predictions."""
    return {name: column.sum(axis=0) for name, column in statistics.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return `numerator / denominator`, and 0 where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)


def group_by(keys: Sequence[str], statistics: Statistics) -> dict[str, Statistics]:
    """Return the statistics of each key, with 0 for the predictions of other keys.

    Args:
        keys: the group of each prediction; "" for a prediction without a group.
        statistics: name -> f[n].
    """
    groups = np.asarray(keys)
    return {
        str(key): {name: np.where(groups == key, column, 0) for name, column in statistics.items()}
        for key in np.unique(groups)
        if key
    }
