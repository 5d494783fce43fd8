"""COCO's AP through pycocotools, for upright and oriented boxes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.metrics.iou import ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of, extent, frame_of, numbers, pixels_of
from earthgpt_jax.evaluation.metrics.voc_ap import confidences_of
from earthgpt_jax.evaluation.predictions import Prediction

# As COCO prints them, at most `_MOST` boxes of a class an image.
_STATS = ("coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large")
_MOST = 100


class _Eval(COCOeval):
    """pycocotools' evaluation on IoUs of either kind of boxes.

    Difficult objects are its crowds, which many boxes may match; their overlap is IoU here, not the share of the box.
    """

    kind = BoxKind.HBB

    def computeIoU(self, imgId, catId):
        truths, boxes = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truths and not boxes:
            return []
        order = np.argsort([-box["score"] for box in boxes], kind="mergesort")[: self.params.maxDets[-1]]
        found = [boxes[i]["numbers"] for i in order]
        return ious(found, [truth["numbers"] for truth in truths], self.kind)


def coco(predictions: Sequence[Prediction], kind: BoxKind) -> dict[str, float]:
    """COCO's six APs; a size of which there is no object has none.

    Boxes of equal confidence are ranked by pycocotools: by the order of predictions, then by that of the text.
    """
    labels = sorted({normalise(item.label) for p in predictions for item in p.objects})
    category = {label: number for number, label in enumerate(labels, start=1)}
    truths: list[dict] = []
    boxes: list[dict] = []
    for image, prediction in enumerate(predictions, start=1):
        for item in prediction.objects:
            truths.append(
                _annotation(numbers(np.asarray(item.polygon), kind))
                | {"id": len(truths) + 1, "image_id": image, "category_id": category[normalise(item.label)],
                   "iscrowd": int(item.difficult)}
            )  # fmt: skip
        for box, confidence in zip(boxes_of(prediction).boxes, confidences_of(prediction), strict=True):
            if box.kind is kind and normalise(box.label) in category:  # other classes have no AP
                boxes.append(
                    _annotation(pixels_of(box, frame_of(prediction)))
                    | {"image_id": image, "category_id": category[normalise(box.label)], "score": float(confidence),
                       "id": len(boxes) + 1, "iscrowd": 0}
                )  # fmt: skip
    if not truths:
        return {}
    images = [{"id": image} for image in range(1, len(predictions) + 1)]
    categories = [{"id": number, "name": label} for label, number in category.items()]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Eval(
            *(_index(images, categories, annotations) for annotations in (truths, boxes)), iouType="bbox"
        )
        evaluation.kind = kind
        evaluation.params.maxDets = [1, 10, _MOST]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_STATS, evaluation.stats, strict=False) if value >= 0}


def _annotation(box: np.ndarray) -> dict:
    return {"area": extent(box), "numbers": box}


def _index(images: list[dict], categories: list[dict], annotations: list[dict]) -> COCO:
    index = COCO()
    index.dataset = {"images": images, "categories": categories, "annotations": annotations}
    index.createIndex()
    return index
