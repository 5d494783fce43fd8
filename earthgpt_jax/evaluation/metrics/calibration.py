"""Calibration of box confidences: expected calibration error (ECE) and reliability diagrams.

Confidences are calibrated if, for example, 80 % of the boxes with confidence 0.8 are correct. A box is correct as in
average precision: its IoU is at least 0.5 with an object of its class that no box of higher confidence is assigned to;
boxes on difficult objects are left out. The one box of a grounding answer is correct at IoU 0.5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation import confidence
from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.metrics.average_precision import rank_boxes
from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, ratio, totals
from earthgpt_jax.evaluation.metrics.grounding import grounding_iou
from earthgpt_jax.evaluation.metrics.intervals import wilson_interval
from earthgpt_jax.evaluation.metrics.iou import THRESHOLD
from earthgpt_jax.evaluation.predictions import BOX_TASKS, DETECTION_TASKS, Prediction

_SIMULATIONS = 400
FEW_BOXES = 100  # below, a calibration is too uncertain to be fitted
BINS = 15  # of equal width, as in Guo et al. 2017


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes:
    """The boxes of all classes: f[D] confidences, bool[D] correct, i[D] index of the prediction of each box."""

    confidences: np.ndarray
    correct: np.ndarray
    images: np.ndarray


def scored_boxes(predictions: Sequence[Prediction]) -> Boxes:
    """Return the boxes of the predictions of one task, whose confidences are assigned (`assign_confidences`)."""
    if not predictions or predictions[0].task in DETECTION_TASKS:
        kind = DETECTION_TASKS[predictions[0].task] if predictions else None
        ranked = list(rank_boxes(predictions, kind).values()) if kind else []
        columns = [np.concatenate([getattr(boxes, name) for boxes in ranked] or [np.zeros(0)])
                   for name in ("confidences", "correct", "images")]  # fmt: skip
    else:
        overlaps = {index: grounding_iou(p) for index, p in enumerate(predictions)}
        rows = [(predictions[i].confidences[0], overlap >= THRESHOLD, i)
                for i, overlap in overlaps.items() if overlap is not None]  # fmt: skip
        columns = list(np.array(rows, float).reshape(-1, 3).T)
    return Boxes(confidences=columns[0], correct=columns[1] > 0, images=columns[2].astype(int))


def bin_indices(confidences: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence, i[D]: bin k is (k / BINS, (k + 1) / BINS], and the first also holds 0."""
    return np.clip(np.ceil(np.asarray(confidences) * BINS).astype(int) - 1, 0, BINS - 1)


def _statistics(predictions: Sequence[Prediction], calibration: Calibration | None) -> Statistics:
    boxes = scored_boxes(predictions)
    columns = {"n": np.ones(len(predictions)), **_bin_sums(boxes, boxes.confidences, len(predictions))}
    if calibration is not None:
        calibrated = _bin_sums(boxes, calibration(boxes.confidences), len(predictions))
        columns |= {f"calibrated_{name}": column for name, column in calibrated.items()}
    return columns


def _bin_sums(boxes: Boxes, confidences: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Return, per bin and prediction, the number of boxes, the sum of their confidences, and how many are correct."""
    cell = boxes.images * BINS + bin_indices(confidences)
    columns: dict[str, np.ndarray] = {}
    for name, weights in (("boxes", np.ones(len(cell))), ("confidence", confidences), ("correct", boxes.correct)):
        table = np.bincount(cell, weights, minlength=rows * BINS).reshape(rows, BINS)
        columns |= {f"{name}_{b}": table[:, b] for b in range(BINS)}
    return columns


def _compute(sums: Statistics) -> Values:
    """Compute the calibration metrics, all in [0, 1].

    - `ece`: expected calibration error, the mean over bins, weighted by boxes, of |mean confidence - fraction
      correct|; 0 is best. `ece_calibrated`: the same after calibration, if one is given.
    - `mean_confidence`, `boxes_correct`: means over all boxes.

    Source: Guo et al. 2017.
    """
    boxes, confidences, correct = (np.sum([sums[f"{name}_{b}"] for b in range(BINS)], axis=0)
                                   for name in ("boxes", "confidence", "correct"))  # fmt: skip
    values = {
        "ece": _ece(sums, ""),
        "mean_confidence": ratio(confidences, boxes),
        "boxes_correct": ratio(correct, boxes),
    }
    if "calibrated_boxes_0" in sums:
        values["ece_calibrated"] = _ece(sums, "calibrated_")
    return values


def _ece(sums: Statistics, prefix: str) -> np.ndarray:
    gaps = [np.abs(sums[f"{prefix}confidence_{b}"] - sums[f"{prefix}correct_{b}"]) for b in range(BINS)]
    return ratio(np.sum(gaps, axis=0), np.sum([sums[f"{prefix}boxes_{b}"] for b in range(BINS)], axis=0))


def ece_if_calibrated(
    confidences: np.ndarray, *, samples: int = _SIMULATIONS, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the ECE that a calibrated model with these confidences would show: mean, and 95 % range.

    The ECE of few boxes is above 0 even if the confidences are calibrated, since the fraction of correct boxes in a bin
    varies. An ECE within this range is no evidence of a wrong calibration.

    Args:
        confidences: of the boxes, f[D] in [0, 1].
        samples: number of simulations, in each of which a box is correct with its confidence as probability.
        seed: random seed.
    """
    confidences = np.asarray(confidences, float)
    if not len(confidences):
        return 0.0, (0.0, 0.0)
    bins, rng = bin_indices(confidences), np.random.default_rng(seed)
    errors = []
    for _ in range(samples):
        gaps = np.bincount(bins, confidences - (rng.uniform(size=len(bins)) < confidences), minlength=BINS)
        errors.append(np.abs(gaps).sum() / len(bins))
    low, high = np.percentile(errors, (2.5, 97.5))
    return float(np.mean(errors)), (float(low), float(high))


def calibration_metric(calibration: Calibration | None = None) -> Metric:
    """Return the metric for the predictions of one task with confidences, with and without a calibration."""
    return Metric(statistics=functools.partial(_statistics, calibration=calibration), compute=_compute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        index: number of the bin, from 0 for the lowest confidences.
        boxes: number of boxes in it.
        confidence: their mean confidence.
        correct: the fraction of them that is correct, with its 95 % Wilson interval `low` to `high`.
    """

    index: int
    boxes: int
    confidence: float
    correct: float
    low: float
    high: float


def reliability_bins(predictions: Sequence[Prediction], calibration: Calibration | None = None) -> list[Bin]:
    """Return the bins that contain boxes, in ascending order of confidence."""
    boxes = scored_boxes(predictions)
    confidences = boxes.confidences if calibration is None else calibration(boxes.confidences)
    sums = totals(_bin_sums(boxes, confidences, len(predictions)))
    bins = []
    for b in range(BINS):
        count = int(sums[f"boxes_{b}"])
        if count:
            correct = float(sums[f"correct_{b}"]) / count
            low, high = wilson_interval(correct, count)
            mean = float(sums[f"confidence_{b}"]) / count
            bins.append(Bin(index=b, boxes=count, confidence=mean, correct=correct, low=low, high=high))
    return bins


def fit_calibrations(predictions: Sequence[Prediction]) -> dict[str, Calibration]:
    """Fit one calibration for each task whose boxes have confidences; task -> calibration."""
    calibrations = {}
    for task, rows in box_tasks(confidence.assign_confidences(predictions)).items():
        boxes = scored_boxes(rows) if any(p.confidences for p in rows) else None
        if boxes is not None and len(boxes.confidences):
            calibrations[task] = confidence.fit_calibration(boxes.confidences, boxes.correct)
    return calibrations


def box_tasks(predictions: Sequence[Prediction]) -> Mapping[str, list[Prediction]]:
    """Group the predictions of tasks with boxes by task, sorted by id."""
    groups: dict[str, list[Prediction]] = {}
    for p in sorted(predictions, key=lambda p: p.id):
        if p.task in BOX_TASKS:
            groups.setdefault(p.task, []).append(p)
    return groups
