"""Compare two models' answers to the same questions by a paired bootstrap over images.

Both models are resampled with the same images, so that what is hard for both does not widen the interval of the
difference.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from earthgpt_jax.evaluation import confidence
from earthgpt_jax.evaluation.metrics import intervals
from earthgpt_jax.evaluation.metrics.average_precision import Interpolation, mean_average_precision, rank_boxes
from earthgpt_jax.evaluation.metrics.base import totals
from earthgpt_jax.evaluation.predictions import DETECTION_TASKS, Prediction
from earthgpt_jax.evaluation.scores import METRICS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of one metric between two models.

    Attributes:
        task, metric: what is compared.
        value, other: the metric of the first and of the second model.
        low, high: 95 % interval of `value - other`.
        p: two-sided p-value of the hypothesis that there is no difference.
        images: number of images.
    """

    task: str
    metric: str
    value: float
    other: float
    low: float
    high: float
    p: float
    images: int

    @property
    def difference(self) -> float:
        return self.value - self.other


def compare(
    predictions: Sequence[Prediction], others: Sequence[Prediction], *, samples: int, seed: int = 0
) -> list[Difference]:
    """Compare every metric of every task.

    CIDEr keeps the document frequencies of all questions, as in its intervals. METEOR, SPICE and COCO's AP are left
    out.

    Args:
        predictions, others: answers to the same questions (`predictions_file.check_same_questions`).
        samples: number of bootstrap samples.
        seed: random seed.
    """
    return [
        _difference(task, metric, *values, samples=drawn, images=images)
        for task, first, second in _by_task(predictions, others)
        for images, metric, values, drawn in _metrics(task, first, second, samples=samples, seed=seed)
    ]


def _by_task(
    predictions: Sequence[Prediction], others: Sequence[Prediction]
) -> Iterator[tuple[str, list[Prediction], list[Prediction]]]:
    groups: dict[str, tuple[list[Prediction], list[Prediction]]] = collections.defaultdict(lambda: ([], []))
    for side, rows in enumerate((predictions, others)):
        for p in sorted(confidence.assign_confidences(rows), key=lambda p: p.id):
            groups[p.task][side].append(p)
    for task in METRICS:
        if str(task) in groups:
            yield str(task), *groups[str(task)]


def _metrics(
    task: str, first: Sequence[Prediction], second: Sequence[Prediction], *, samples: int, seed: int
) -> Iterator[tuple[int, str, tuple[float, float], np.ndarray]]:
    """Yield (images, metric, both values, f[2, samples]) of each metric that both have."""
    metric = METRICS[task]
    image = intervals.image_indices([p.record_id for p in first])
    images = int(image.max()) + 1
    estimates, drawn = [], []
    for rows in (first, second):
        statistics = {**metric.statistics(rows), **metric.corpus_statistics(rows)}
        estimates.append(metric.compute(totals(statistics)))
        drawn.append(metric.compute(intervals.bootstrap_sums(statistics, image, samples=samples, seed=seed)))
    for name in estimates[0]:
        if name in estimates[1] and name not in metric.integers:
            yield images, name, (float(estimates[0][name]), float(estimates[1][name])), np.stack(
                [values[name] for values in drawn]
            )  # fmt: skip
    if task in DETECTION_TASKS:
        weights = np.stack(list(intervals.bootstrap_weights(image, samples=samples, seed=seed)))[:, image].astype(float)
        ranked = [rank_boxes(rows, DETECTION_TASKS[task]) for rows in (first, second)]
        values = [float(mean_average_precision(boxes, Interpolation.VOC12)[0]) for boxes in ranked]
        samples_of = np.stack([mean_average_precision(boxes, Interpolation.VOC12, weights) for boxes in ranked])
        yield images, "ap50", (values[0], values[1]), samples_of


def _difference(task: str, metric: str, value: float, other: float, *, samples: np.ndarray, images: int) -> Difference:
    """Return the difference with its interval and p-value.

    The p-value is twice the fraction of samples on the other side of 0; a sample of no difference counts as half, and
    one sample is added to each side, so that it is never 0.
    """
    differences = samples[0] - samples[1]
    low, high = intervals.percentile_interval(differences, images=images)
    below = (differences < 0).sum() + 0.5 * (differences == 0).sum()
    tail = min(below, len(differences) - below) + 1
    return Difference(
        task=task, metric=metric, value=value, other=other, low=low, high=high,
        p=float(min(1.0, 2 * tail / (len(differences) + 1))), images=images,
    )  # fmt: skip
