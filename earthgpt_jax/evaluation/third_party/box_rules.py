"""Published scoring rules for boxes (grounding and detection), reproduced with their defects."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from earthgpt_jax.boxes import BOX_FORMATS, BoxKind, polygon_to_rect, rect_to_polygon, write_boxes
from earthgpt_jax.evaluation.metrics.average_precision import Interpolation, RankedBoxes, average_precision
from earthgpt_jax.evaluation.metrics.grounding import target
from earthgpt_jax.evaluation.metrics.iou import ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import box_in_pixels, frame_of, parse_answer, truth_box
from earthgpt_jax.evaluation.predictions import Prediction


def answer_in_format(prediction: Prediction, box_format: str) -> str:
    """Return an answer as its model would have written it in another box format; unchanged if it has no boxes."""
    if prediction.box_format == box_format:
        return prediction.prediction
    parsed, frame = parse_answer(prediction), frame_of(prediction)
    if not parsed.boxes:
        return prediction.prediction
    if BOX_FORMATS[box_format].scale > 1:
        polygons = [box.pixels(frame) for box in parsed.boxes]
        return "".join(write_boxes([polygon], box_format=box_format, frame=frame) for polygon in polygons)
    rects = [polygon_to_rect(np.asarray(_corners(box.coords))) for box in parsed.boxes]
    return "".join("[" + ",".join(f"{n:.3f}" for n in rect) + "]" for rect in rects)


def _corners(coords: Sequence[float]) -> Sequence[float] | np.ndarray:
    return coords if len(coords) == 8 else rect_to_polygon(*coords)


def _true_fractions(prediction: Prediction) -> tuple[float, ...]:
    """Return the true axis-aligned box of a grounding question, as fractions of the answer's frame."""
    return polygon_to_rect(frame_of(prediction).to_fractions(np.asarray(target(prediction).polygon, float)))


def plus_one_iou(box1: Sequence[float], box2: Sequence[float]) -> float:
    """Return the IoU with 1 added to every side, in any unit; for fractions, 1 is the whole image."""
    w = max(0.0, min(box1[2], box2[2]) - max(box1[0], box2[0]) + 1)
    h = max(0.0, min(box1[3], box2[3]) - max(box1[1], box2[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (box1, box2)]
    return w * h / (sum(areas) - w * h)


def _lhrs_boxes(text: str) -> list[list[float]] | None:
    """Return the boxes of an answer; None if a bracket holds something other than a list of numbers."""
    try:
        return [list(map(float, part.split(","))) for part in re.findall(r"\[([0-9., ]+)\]", text)]
    except ValueError:
        return None


def lhrs_grounding(predictions: Sequence[Prediction]) -> float:
    """LHRS-Bot: IoU with +1 on fractions, over the answers that can be parsed."""
    hits = []
    for p in predictions:
        boxes = _lhrs_boxes(answer_in_format(p, "lhrs"))
        if boxes and len(boxes[0]) >= 4:  # other answers are left out
            hits.append(plus_one_iou(boxes[0][:4], _true_fractions(p)) > 0.5)
    return float(np.mean(hits)) if hits else 0.0


def vrsbench_grounding(predictions: Sequence[Prediction]) -> float:
    """VRSBench: IoU with +1 on a grid of 100; the box is the first four integers anywhere in the answer."""
    hits = []
    for p in predictions:
        numbers = [int(n) for n in re.findall(r"\d+", answer_in_format(p, "geochat"))][:4]
        truth = [int(n * 100) for n in _true_fractions(p)]
        hits.append(len(numbers) == 4 and plus_one_iou(numbers, truth) >= 0.5)
    return float(np.mean(hits))


def falcon_grounding(predictions: Sequence[Prediction]) -> float:
    """Falcon: a malformed box has IoU 1."""
    hits = []
    for p in predictions:
        group = re.search(r"<box>(.*?)</box>", answer_in_format(p, "falcon"))
        numbers = [float(n) for n in re.findall(r"<(\d+)>", group[1])] if group else []
        truth = [n * 1000 for n in _true_fractions(p)]
        hits.append(bool(group) and falcon_iou(numbers, truth) >= 0.5)
    return float(np.mean(hits))


def falcon_iou(box1: Sequence[float], box2: Sequence[float]) -> float:
    """Return Falcon's IoU: 1 if it cannot be computed; 0.1 is added to the union."""
    try:
        ax0, ay0, ax1, ay1 = box1
        bx0, by0, bx1, by1 = box2
    except ValueError:
        return 1.0
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return shared / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared + 0.1)


def _overlaps(prediction: Prediction, kind: BoxKind) -> np.ndarray:
    """Return the IoU matrix f[boxes, objects], whatever their classes."""
    frame = frame_of(prediction)
    boxes = [box_in_pixels(box, frame) for box in parse_answer(prediction).boxes if box.kind is kind]
    return ious(boxes, [truth_box(np.asarray(item.polygon), kind) for item in prediction.objects], kind)


def earthdial_detection(kind: BoxKind) -> Callable[[Sequence[Prediction]], float]:
    """EarthDial: precision, called mAP. Any number of boxes may count on one object; missed objects cost nothing."""

    def precision(predictions: Sequence[Prediction]) -> float:
        tables = [_overlaps(p, kind) for p in predictions]
        correct = sum(int((table >= 0.5).any(axis=1).sum()) for table in tables)
        boxes = sum(len(table) for table in tables)
        return correct / boxes if boxes else 0.0

    return precision


def falcon_detection(kind: BoxKind) -> Callable[[Sequence[Prediction]], float]:
    """Falcon: AP in which the confidence of a box is its IoU with the truth; classes are ignored."""

    def ap(predictions: Sequence[Prediction]) -> float:
        confidences, correct, images = [], [], []
        for image, p in enumerate(predictions):
            table = _overlaps(p, kind)
            best = table.max(axis=1, initial=0.0)
            taken: set[int] = set()
            for i in np.argsort(-best, kind="stable"):
                j = int(table[i].argmax()) if table.shape[1] else -1
                correct.append(bool(best[i] >= 0.5) and j not in taken)
                taken |= {j} if best[i] >= 0.5 else set()
                confidences.append(best[i])
                images.append(image)
        ranked = RankedBoxes(
            confidences=np.array(confidences, float), correct=np.array(correct, bool), images=np.array(images, int),
            objects=np.array([len(p.objects) for p in predictions], float),
        )  # fmt: skip
        return float(np.nan_to_num(average_precision(ranked, Interpolation.VOC12)[0]))

    return ap
