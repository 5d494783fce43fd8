"""COCO's average precision, computed by pycocotools, for axis-aligned and oriented boxes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.classification import normalize
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

# In the order in which COCO prints them.
_NAMES = ("coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large")
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
        return {}
    images = [{"id": image} for image in range(1, len(predictions) + 1)]
    categories = [{"id": number, "name": label} for label, number in category.items()]
    with contextlib.redirect_stdout(io.StringIO()):
        stats = _evaluate(*(_index(images, categories, annotations) for annotations in (truths, boxes)), kind=kind)
    return {name: float(value) for name, value in zip(_NAMES, stats, strict=False) if value >= 0}


def _evaluate(truths: COCO, boxes: COCO, *, kind: BoxKind) -> np.ndarray:
    """Run pycocotools with our IoU, which also handles oriented boxes; returns its 12 summary values."""
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
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def _annotation(box: np.ndarray) -> dict:
    return {"area": box_area(box), "box": box}


def _index(images: list[dict], categories: list[dict], annotations: list[dict]) -> COCO:
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {"images": images, "categories": categories, "annotations": annotations}
    index.createIndex()
    return index
