"""95 % confidence intervals by bootstrap over images.

FullImage images are drawn, because answers about the same image are correlated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Metric, Statistics

SAMPLES = 1000  # default number of bootstrap samples
PERCENTILES = (2.5, 97.5)


def image_indices(record_ids: Sequence[str]) -> np.ndarray:
    """Return the image index of each prediction, i[n]; images are numbered in the order of their ids."""
    return np.unique(np.asarray(record_ids), return_inverse=True)[1]


def bootstrap_weights(image: np.ndarray, *, samples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn, i[images], for one bootstrap sample at a time.

    Each sample draws N of N images with replacement (Efron's percentile bootstrap). The same seed yields the same
    samples.

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
    images = int(image.max()) + 1
    per_image = np.stack([np.bincount(image, column, minlength=images) for column in statistics.values()], axis=1)
    sums = np.stack([weights @ per_image for weights in bootstrap_weights(image, samples=samples, seed=seed)])
    return dict(zip(statistics, sums.T, strict=True))


def intervals(
    metric: Metric, statistics: Statistics, image: np.ndarray, *, samples: int, seed: int = 0
) -> dict[str, list[float]]:
    """Return the 95 % interval of each value as `[low, high]`, except for counts of things.

    Bootstrap samples without any question of the group are ignored.
    """
    sums = bootstrap_sums(statistics, image, samples=samples, seed=seed)
    nonempty = sums["n"] > 0
    values = metric.compute({name: column[nonempty] for name, column in sums.items()})
    return {
        name: [float(end) for end in np.percentile(column, PERCENTILES)]
        for name, column in values.items()
        if name not in metric.integers and len(column)
    }
