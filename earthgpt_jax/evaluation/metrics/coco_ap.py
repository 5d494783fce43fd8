"""COCO's average precision, computed by pycocotools, for axis-aligned and oriented boxes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.classification import normalize
from earthgpt_jax.evaluation.metrics.intervals import bootstrap_weights, fraction_interval, image_indices
from earthgpt_jax.evaluation.metrics.iou import ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import (
    box_area,
    box_confidences,
    box_in_pixels,
    frame_of,
    parse_answer,
    truth_box,
)
from earthgpt_jax.evaluation.predictions import Prediction

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

# In the order in which COCO prints them.
_NAMES = ("coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large")
_SAMPLES = 200  # bootstrap samples of the intervals, at most
_MAX_DETECTIONS = 100  # boxes per class and image that count, as in COCO


def coco_ap(predictions: Sequence[Prediction], kind: BoxKind) -> dict[str, float]:
    """Compute COCO's six APs, in [0, 1].

    `coco_ap` is the mean over IoU 0.50:0.05:0.95; `coco_ap50` and `coco_ap75` are at one IoU; `coco_ap_small`,
    `_medium` and `_large` are over objects of that size. A size without objects is left out.

    pycocotools breaks ties between equal confidences by the order of the predictions, then by the order of the boxes in
    the text. Difficult objects are COCO's crowd regions: any number of boxes may match one; here their overlap is
    the IoU, not COCO's intersection over the area of the box.

    Source: Lin et al. 2014 (COCO).
    """
    evaluation = _evaluation(predictions, kind)
    if evaluation is None:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_NAMES, evaluation.stats, strict=False) if value >= 0}


def coco_intervals(predictions: Sequence[Prediction], kind: BoxKind, *, samples: int) -> dict[str, list[float]]:
    """Return the 95 % intervals of COCO's APs by bootstrap over images, from pycocotools' matches of the images.

    The variance needs fewer samples than percentiles do, so at most 200 are drawn.
    """
    evaluation = _evaluation(predictions, kind)
    if evaluation is None:
        return {}
    image = image_indices([p.record_id for p in predictions])
    drawn = np.stack(list(bootstrap_weights(image, samples=min(samples, _SAMPLES))))[:, image].astype(float)
    weights = np.concatenate([np.ones((1, len(image))), drawn])  # the first sample: every image once
    table = _weighted_precisions(evaluation, weights)  # f[B, areas, IoUs]
    values = {"coco_ap": table[:, 0].mean(axis=1), "coco_ap50": table[:, 0, 0], "coco_ap75": table[:, 0, 5]}
    values |= {f"coco_ap_{size}": table[:, 1 + i].mean(axis=1) for i, size in enumerate(("small", "medium", "large"))}
    images = len(np.unique(image[[bool(p.objects) for p in predictions]]))
    return {
        name: fraction_interval(float(column[0]), column[1:][np.isfinite(column[1:])], images=images)
        for name, column in values.items()
        if np.isfinite(column[0])
    }


def _weighted_precisions(evaluation: COCOeval, weights: np.ndarray) -> np.ndarray:
    """Return the mean AP over classes for image weights f[B, n], f[B, areas, IoUs]; NaN where no class has objects."""
    parameters = evaluation.params
    areas, thresholds, count = len(parameters.areaRng), len(parameters.iouThrs), weights.shape[1]
    sums, classes = np.zeros((len(weights), areas, thresholds)), np.zeros((len(weights), areas, 1))
    for k in range(len(parameters.catIds)):
        for a in range(areas):
            start = (k * areas + a) * count
            parts = [(i, part) for i, part in enumerate(evaluation.evalImgs[start : start + count]) if part is not None]
            objects = weights[:, [i for i, _ in parts]] @ np.array(
                [np.count_nonzero(part["gtIgnore"] == 0) for _, part in parts], float
            )
            defined = objects > 0
            if not defined.any():
                continue
            order = np.argsort(-np.concatenate([part["dtScores"] for _, part in parts]), kind="mergesort")
            owner = np.concatenate([np.full(len(part["dtScores"]), i) for i, part in parts]).astype(int)[order]
            matched = np.concatenate([part["dtMatches"] for _, part in parts], axis=1)[:, order] > 0
            counted = ~np.concatenate([part["dtIgnore"] for _, part in parts], axis=1)[:, order].astype(bool)
            for t in range(thresholds):
                hits = np.cumsum(weights[:, owner] * (matched[t] & counted[t]), axis=1)
                claims = np.cumsum(weights[:, owner] * counted[t], axis=1)
                sums[:, a, t] += np.where(defined, _ap101(hits, claims, objects, parameters.recThrs), 0)
            classes[:, a, 0] += defined
    return np.divide(sums, classes, out=np.full(sums.shape, np.nan), where=np.broadcast_to(classes > 0, sums.shape))


def _ap101(hits: np.ndarray, claims: np.ndarray, objects: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """Return COCO's AP, the mean of the best precision at 101 recalls, of cumulated counts f[B, D]; f[B]."""
    if not hits.shape[1]:
        return np.zeros(len(hits))
    recall = hits / np.maximum(objects[:, None], 1e-12)
    precision = hits / np.maximum(claims, np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.zeros(len(hits))
    for b in range(len(hits)):
        position = np.searchsorted(recall[b], recalls, side="left")
        found[b] = best[b][position[position < recall.shape[1]]].sum() / len(recalls)
    return found


def _evaluation(predictions: Sequence[Prediction], kind: BoxKind) -> COCOeval | None:
    """Return pycocotools' evaluation, with the matches of each image; None if there are no objects."""
    labels = sorted({normalize(item.label) for p in predictions for item in p.objects})
    category = {label: number for number, label in enumerate(labels, start=1)}
    truths: list[dict] = []
    boxes: list[dict] = []
    for image, prediction in enumerate(predictions, start=1):
        for item in prediction.objects:
            truths.append(
                _annotation(truth_box(np.asarray(item.polygon), kind))
                | {"id": len(truths) + 1, "image_id": image, "category_id": category[normalize(item.label)],
                   "iscrowd": int(item.difficult)}
            )  # fmt: skip
        for box, confidence in zip(parse_answer(prediction).boxes, box_confidences(prediction), strict=True):
            if box.kind is kind and normalize(box.label) in category:  # classes without objects have no AP
                boxes.append(
                    _annotation(box_in_pixels(box, frame_of(prediction)))
                    | {"image_id": image, "category_id": category[normalize(box.label)], "score": float(confidence),
                       "id": len(boxes) + 1, "iscrowd": 0}
                )  # fmt: skip
    if not truths:
        return None
    images = [{"id": image} for image in range(1, len(predictions) + 1)]
    categories = [{"id": number, "name": label} for label, number in category.items()]
    with contextlib.redirect_stdout(io.StringIO()):
        return _evaluate(*(_index(images, categories, annotations) for annotations in (truths, boxes)), kind=kind)


def _evaluate(truths: COCO, boxes: COCO, *, kind: BoxKind) -> COCOeval:
    """Match boxes and objects by pycocotools with our IoU, which also handles oriented boxes."""
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        def computeIoU(self, imgId: int, catId: int) -> Any:
            truths, boxes = self._gts[imgId, catId], self._dts[imgId, catId]
            if not truths and not boxes:
                return []
            order = np.argsort([-box["score"] for box in boxes], kind="mergesort")[: self.params.maxDets[-1]]
            return ious([boxes[i]["box"] for i in order], [truth["box"] for truth in truths], kind)

    evaluation = Evaluation(truths, boxes, iouType="bbox")
    evaluation.params.maxDets = [1, 10, _MAX_DETECTIONS]
    evaluation.evaluate()
    return evaluation


def _annotation(box: np.ndarray) -> dict:
    return {"area": box_area(box), "box": box}


def _index(images: list[dict], categories: list[dict], annotations: list[dict]) -> COCO:
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {"images": images, "categories": categories, "annotations": annotations}
    index.createIndex()
    return index
