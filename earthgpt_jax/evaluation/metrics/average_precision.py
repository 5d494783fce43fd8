"""All average precisions of a set of answers with boxes, each under the name of its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.coco_ap import coco
from earthgpt_jax.evaluation.metrics.intervals import LEVEL, images, weights
from earthgpt_jax.evaluation.metrics.voc_ap import Interpolation, Labels, Ranked, constant, mean_average_precision, rank
from earthgpt_jax.evaluation.predictions import Prediction

_CHUNK = 50_000_000  # weights held at a time


def average_precisions(predictions: Sequence[Prediction], kind: BoxKind) -> dict[str, float]:
    """Means over the classes that have objects.

    `ap50`, `ap40`: VOC12 at IoU 0.5, and at 0.4 as EarthGPT's paper has it; `..._voc07` by VOC's older rule;
    `ap40_any_class`: whatever the class; `coco_...`: pycocotools'. Where answers come with confidences, `..._constant`
    is the same without them.
    """
    ranked = {percent: rank(predictions, kind, threshold=percent / 100) for percent in (50, 40)}
    figures = {}
    for percent, classes in ranked.items():
        figures[f"ap{percent}"] = _mean(classes, Interpolation.VOC12)
        figures[f"ap{percent}_voc07"] = _mean(classes, Interpolation.VOC07)
    any_class = rank(predictions, kind, threshold=0.4, labels=Labels.IGNORE)
    figures["ap40_any_class"] = _mean(any_class, Interpolation.VOC12)
    if any(p.confidences for p in predictions):
        for percent, classes in ranked.items():
            same = {label: constant(item) for label, item in classes.items()}
            figures[f"ap{percent}_constant"] = _mean(same, Interpolation.VOC12)
    return figures | coco(predictions, kind)


def _mean(classes: Mapping[str, Ranked], rule: Interpolation) -> float:
    return float(mean_average_precision(classes, rule)[0])


def ap_intervals(predictions: Sequence[Prediction], kind: BoxKind, *, samples: int) -> dict[str, list[float]]:
    """Of `ap50` and `ap40`, by the same bootstrap as the others'."""
    image = images([p.record_id for p in predictions])
    found: dict[int, list[np.ndarray]] = {50: [], 40: []}
    ranked = {percent: rank(predictions, kind, threshold=percent / 100) for percent in found}
    most = max(len(predictions), *(len(item.hits) for classes in ranked.values() for item in classes.values()), 1)
    step = max(1, _CHUNK // most)
    drawn = weights(image, samples=samples)
    for start in range(0, samples, step):
        some = np.stack([next(drawn) for _ in range(min(step, samples - start))])[:, image].astype(float)
        for percent, values in found.items():
            values.append(mean_average_precision(ranked[percent], Interpolation.VOC12, some))
    return {
        f"ap{percent}": [float(end) for end in np.percentile(np.concatenate(values), LEVEL)]
        for percent, values in found.items()
    }
