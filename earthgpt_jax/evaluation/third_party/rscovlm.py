"""RSCoVLM's rules for detection without confidences, mAP_nc and mF1 (Li et al. 2025, arXiv 2501.09720)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.classification import normalize
from earthgpt_jax.evaluation.metrics.iou import ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import box_in_pixels, frame_of, parse_answer
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.rule import Figures, Rule, comparable_polygon, polygon_of
from earthgpt_jax.records import Task

_IOU = 0.5


def detection(predictions: Sequence[Prediction]) -> Figures:
    """Compute mAP_nc and mF1.

    Every box has confidence 1, so that boxes rank in the order of the file. A label that is no class is taken for the
    class that it resembles most.
    """
    classes = sorted({normalize(item.label) for p in predictions for item in p.objects})
    images = [_image(p, classes) for p in predictions]
    return {"map_nc": _map_nc(images, classes), "mf1": _mf1(images, classes)}


_Image = tuple[list[str], list[str], np.ndarray, np.ndarray]  # labels, true labels, IoU f[boxes, objects], difficult


def _image(prediction: Prediction, classes: Sequence[str]) -> _Image:
    boxes = (_lines(prediction) if prediction.box_format == "rscovlm" else _parsed(prediction)) if classes else []
    labels = [difflib.get_close_matches(normalize(label), classes, n=1, cutoff=0.0)[0] for label, _ in boxes]
    polygons = [polygon for _, polygon in boxes]
    truths = [comparable_polygon(np.asarray(item.polygon, float), prediction) for item in prediction.objects]
    difficult = np.array([item.difficult for item in prediction.objects], bool)
    return (
        labels, [normalize(item.label) for item in prediction.objects], ious(polygons, truths, BoxKind.OBB), difficult,
    )  # fmt: skip


def _parsed(prediction: Prediction) -> list[tuple[str, np.ndarray]]:
    frame = frame_of(prediction)
    return [(box.label, polygon_of(box_in_pixels(box, frame).tolist())) for box in parse_answer(prediction).boxes]


def _lines(prediction: Prediction) -> list[tuple[str, np.ndarray]]:
    """Return (label, polygon in pixels) of each line; numbers beyond the eighth are dropped, as by their parser."""
    boxes = []
    for line in prediction.prediction.splitlines():
        fields, _, label = line.strip().partition(" ")
        try:
            numbers = [float(field) for field in fields.split(",")]
        except ValueError:
            continue
        if len(numbers) >= 8 and label:
            boxes.append((label.strip().lower(), np.array(numbers[:8])))
    return boxes


def _map_nc(images: Sequence[_Image], classes: Sequence[str]) -> float:
    """Compute the mean AP, read at 11 recalls, of boxes in the order of the file."""
    values = []
    for name in classes:
        outcomes: list[bool] = []
        objects = 0
        for labels, true_labels, overlaps, difficult in images:
            members = np.flatnonzero(np.array(true_labels) == name)
            objects += int((~difficult[members]).sum())
            taken: set[int] = set()
            for i in np.flatnonzero(np.array(labels) == name):
                j = int(members[overlaps[i, members].argmax()]) if len(members) else -1
                if j < 0 or overlaps[i, j] < _IOU:
                    outcomes.append(False)
                elif not difficult[j]:
                    outcomes.append(j not in taken)
                    taken.add(j)
        if objects:
            correct = np.cumsum(outcomes) if outcomes else np.zeros(0)
            recall, precision = correct / objects, correct / np.arange(1, len(correct) + 1)
            values.append(np.mean([precision[recall >= t].max(initial=0.0) for t in np.arange(0, 1.001, 0.1)]))
    return float(np.mean(values)) if values else 0.0


def _mf1(images: Sequence[_Image], classes: Sequence[str]) -> float:
    """Compute F1 of mean precision and mean recall from a confusion matrix with the background as a class.

    Every pair with an IoU of 0.5 counts, whatever the classes, so one box may be several entries.
    """
    number = {name: index for index, name in enumerate(classes)}
    matrix = np.zeros((len(classes) + 1, len(classes) + 1))
    for labels, true_labels, overlaps, difficult in images:
        kept = np.flatnonzero(~difficult)
        hits = overlaps[:, kept] >= _IOU
        found = np.zeros(len(kept), bool)
        for i, label in enumerate(labels):
            for k in np.flatnonzero(hits[i]):
                truth = true_labels[kept[k]]
                matrix[number[truth], number[label]] += 1
                found[k] |= truth == label
            matrix[-1, number[label]] += not hits[i].any()
        for k in np.flatnonzero(~found):
            matrix[number[true_labels[kept[k]]], -1] += 1
    correct = np.diag(matrix)
    precision, recall = (float(np.mean(correct / np.where(matrix.sum(axis=axis) == 0, 1, matrix.sum(axis=axis))))
                         for axis in (0, 1))  # fmt: skip
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


_RULE = Rule(
    compute=detection, ours={"map_nc": "map_nc", "mf1": "macro_f1"},
    file="rscovlm/eval/metric/dense_det.py, mmrotate; lmmrotate/modules/f1_metric.py",
    description="boxes rank in the order of the file, and unknown labels become the class that they resemble most "
                "(theirs by rapidfuzz); mF1 counts every pair of a box and an object, and the background as a class",
)  # fmt: skip
RULES: Mapping[str, Rule] = {Task.OBB: _RULE, Task.HBB: _RULE}
