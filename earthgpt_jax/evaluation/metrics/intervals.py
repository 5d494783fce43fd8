"""95 % intervals by bootstrap over images: whole images are drawn, since answers about one image go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Counts, Metric

SAMPLES = 1000
LEVEL = (2.5, 97.5)


def images(record_ids: Sequence[str]) -> np.ndarray:
    """Which image each prediction is about, i[n]; images are numbered by the order of their ids."""
    return np.unique(np.asarray(record_ids), return_inverse=True)[1]


def weights(image: np.ndarray, *, samples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image is drawn, i[images], a bootstrap sample at a time; the same seed draws the same.

    As many images as there are are drawn with replacement (Efron's percentile bootstrap).
    """
    count = int(image.max()) + 1 if len(image) else 0
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(rng.integers(0, count, count), minlength=count)


def resampled(counts: Counts, image: np.ndarray, *, samples: int, seed: int = 0) -> Counts:
    """Sums of the counts over bootstrap samples, name -> f[samples]."""
    images_of = int(image.max()) + 1
    table = np.stack([np.bincount(image, column, minlength=images_of) for column in counts.values()], axis=1)
    sums = np.stack([drawn @ table for drawn in weights(image, samples=samples, seed=seed)])
    return dict(zip(counts, sums.T, strict=True))


def intervals(
    metric: Metric, counts: Counts, image: np.ndarray, *, samples: int, seed: int = 0
) -> dict[str, list[float]]:
    """Figure -> [low, high]; numbers of things have none. Samples without any question of the group do not count."""
    sums = resampled(counts, image, samples=samples, seed=seed)
    asked = sums["n"] > 0
    figures = metric.figures({name: values[asked] for name, values in sums.items()})
    return {
        name: [float(end) for end in np.percentile(values, LEVEL)]
        for name, values in figures.items()
        if name not in metric.whole and len(values)
    }
