"""95 % confidence intervals by bootstrap over images.

Complete images are drawn, because answers about the same image are correlated. The bootstrap gives the variance of a
value; the interval of a fraction is Wilson's with the number of independent answers that would have this variance, as
in surveys of clusters (Korn and Graubard 1998). It has a width where all answers agree, where percentiles of the
bootstrap have none: 30 correct answers of 30 are [0.88, 1]. The interval of an error is that of its logarithm; values
that may be negative have percentile intervals, widened for few images (Hesterberg 2015). `tests/evaluation/metrics/
test_coverage.py` measures the coverage by simulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, totals

SAMPLES = 1000  # default number of bootstrap samples
CONFIDENCE = 0.95
FEW_IMAGES = 30  # below, intervals are approximate


def image_indices(record_ids: Sequence[str]) -> np.ndarray:
    """Return the image index of each prediction, i[n]; images are numbered in the order of their ids."""
    return np.unique(np.asarray(record_ids), return_inverse=True)[1]


def bootstrap_weights(image: np.ndarray, *, samples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn, i[images], for one bootstrap sample at a time.

    Each sample draws N of N images with replacement. The same seed yields the same samples.

    Args:
        image: the image index of each prediction, i[n].
        samples: number of bootstrap samples.
        seed: random seed.
    """
    count = int(image.max()) + 1 if len(image) else 0
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(rng.integers(0, count, count), minlength=count)


def bootstrap_sums(statistics: Statistics, image: np.ndarray, *, samples: int, seed: int = 0) -> Statistics:
    """Sum the statistics over each bootstrap sample; name -> f[samples]."""
    per_image = _per_image(statistics, image)
    sums = np.stack([weights @ per_image for weights in bootstrap_weights(image, samples=samples, seed=seed)])
    return dict(zip(statistics, sums.T, strict=True))


def _per_image(statistics: Statistics, image: np.ndarray) -> np.ndarray:
    images = int(image.max()) + 1
    return np.stack([np.bincount(image, column, minlength=images) for column in statistics.values()], axis=1)


def intervals(
    metric: Metric, statistics: Statistics, image: np.ndarray, *, samples: int, seed: int = 0
) -> dict[str, list[float]]:
    """Return the 95 % interval of each value as `[low, high]`, except for counts of things.

    Bootstrap samples without any question of the group are ignored. A value that is not a fraction has no interval
    where all samples agree.
    """
    sums = bootstrap_sums(statistics, image, samples=samples, seed=seed)
    nonempty = sums["n"] > 0
    values = metric.compute({name: column[nonempty] for name, column in sums.items()})
    estimates = metric.compute(totals(statistics))
    images = int((_per_image({"n": statistics["n"]}, image) > 0).sum())
    found = {}
    for name, column in values.items():
        if name in metric.integers or not len(column):
            continue
        if name not in metric.unbounded:
            support = _support(metric, statistics, image, name)
            found[name] = fraction_interval(float(estimates[name]), column, images=support or images)
        elif np.ptp(column) > 0:
            positive = min(float(estimates[name]), column.min()) > 0
            found[name] = (
                positive_interval(float(estimates[name]), column, images=images)
                if positive
                else percentile_interval(column, images=images)
            )
    return found


def _support(metric: Metric, statistics: Statistics, image: np.ndarray, name: str) -> int:
    """Return the number of images that a value depends on."""
    columns = {column: statistics[column] for column in metric.support(name) if column in statistics}
    return int((_per_image(columns or {"n": statistics["n"]}, image) > 0).any(axis=1).sum())


def fraction_interval(value: float, samples: np.ndarray, *, images: int) -> list[float]:
    """Return Wilson's interval of a fraction, with the sample size that explains the variance of the bootstrap.

    Args:
        value: the fraction, in [0, 1].
        samples: its values in the bootstrap samples, f[samples].
        images: number of images; the sample size if the samples do not vary.
    """
    value = min(max(value, 0.0), 1.0)
    variance = float(np.var(samples)) * images / max(images - 1, 1)
    explained = value * (1 - value) / variance if variance > 0 else 0.0
    return wilson_interval(value, explained or images, quantile=_quantile(images))


def positive_interval(value: float, samples: np.ndarray, *, images: int) -> list[float]:
    """Return the interval of a positive value, such as an error, as that of its logarithm, which is less skewed."""
    half = _quantile(images) * float(np.std(np.log(samples))) * np.sqrt(images / max(images - 1, 1))
    return [float(value * np.exp(-half)), float(value * np.exp(half))]


def percentile_interval(samples: np.ndarray, *, images: int) -> list[float]:
    """Return the percentiles of bootstrap samples, widened as Student's distribution is wider than the normal one."""
    from scipy.special import ndtr  # `scipy.stats` takes seconds to import

    tail = ndtr(-np.sqrt(images / max(images - 1, 1)) * _quantile(images))
    return [float(end) for end in np.percentile(samples, (100 * tail, 100 * (1 - tail)))]


def wilson_interval(fraction: float, n: float, *, quantile: float = 1.959963984540054) -> list[float]:
    """Return Wilson's interval of a fraction of n outcomes; n need not be whole."""
    square = quantile * quantile
    centre = (fraction + square / (2 * n)) / (1 + square / n)
    half = quantile * np.sqrt(fraction * (1 - fraction) / n + square / (4 * n * n)) / (1 + square / n)
    low, high = float(centre - half), float(centre + half)
    return [0.0 if fraction <= 0 else max(0.0, low), 1.0 if fraction >= 1 else min(1.0, high)]


def _quantile(images: int) -> float:
    """Return the 97.5 % quantile of Student's distribution for a number of independent images."""
    from scipy.special import stdtrit

    return float(stdtrit(max(images - 1, 1), (1 + CONFIDENCE) / 2))
