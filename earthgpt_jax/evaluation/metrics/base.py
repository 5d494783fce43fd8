"""What all metrics have in common: numbers a prediction, whose sums over any set of predictions make the figures.

A group (a sensor, a class, a size) is a set of rows, a bootstrap sample is rows with weights; both are sums, so that
every figure of a group and every interval comes from the one definition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.predictions import Prediction

Counts = Mapping[str, np.ndarray]  # name -> f[n], one number a prediction; or their sums, f[] or f[samples]
Figures = dict[str, np.ndarray]  # name -> as the sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One task's metrics.

    Attributes:
        counts: predictions -> numbers of each.
        figures: sums of `counts` -> figures; also over a leading axis of bootstrap samples.
        corpus: more counts, which depend on the other predictions too: CIDEr's, by its document frequencies.
        parts: counts within predictions: of each class and size of the objects in them, as `class: ship`.
        whole: names of figures that are numbers of things, not shares.
    """

    counts: Callable[[Sequence[Prediction]], Counts]
    figures: Callable[[Counts], Figures]
    corpus: Callable[[Sequence[Prediction]], Counts] | None = None
    parts: Callable[[Sequence[Prediction]], Mapping[str, Counts]] | None = None
    whole: frozenset[str] = frozenset()

    def __call__(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The figures of some predictions."""
        return self.plain(self.figures(totals({**self.counts(predictions), **self.in_corpus(predictions)})))

    def in_corpus(self, predictions: Sequence[Prediction]) -> Counts:
        return self.corpus(predictions) if self.corpus else {}

    def plain(self, figures: Figures) -> dict[str, float]:
        return {name: int(value) if name in self.whole else float(value) for name, value in figures.items()}


def totals(counts: Counts) -> Counts:
    return {name: column.sum(axis=0) for name, column in counts.items()}


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, 0 where there is nothing to be a share of."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)


def rows_by(keys: Sequence[str], counts: Counts) -> dict[str, Counts]:
    """The counts of the rows of each key; all rows stay, others' counts are 0. An empty key is no group."""
    places = np.asarray(keys)
    return {
        str(key): {name: np.where(places == key, column, 0) for name, column in counts.items()}
        for key in np.unique(places)
        if key
    }
