"""Whether boxes are right as often as their confidences say: expected calibration error, and what its plot shows.

A box is right as in average precision: IoU of at least 0.5 with an object of its class that no box of more confidence
has; boxes on difficult objects do not count. Grounding's one box is right at IoU 0.5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation import confidence
from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.metrics.base import Counts, Figures, Metric, ratio, totals
from earthgpt_jax.evaluation.metrics.grounding import iou
from earthgpt_jax.evaluation.metrics.iou import THRESHOLD
from earthgpt_jax.evaluation.metrics.voc_ap import rank
from earthgpt_jax.evaluation.predictions import DETECTION, Prediction

BINS = 15  # of equal width, as in Guo et al. 2017


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Boxes of all classes: f[D] confidences, bool[D] right, i[D] which prediction each is of."""

    confidences: np.ndarray
    right: np.ndarray
    images: np.ndarray


def outcomes(predictions: Sequence[Prediction]) -> Outcomes:
    """Of predictions of one task, with their confidences (`confidence.settled`)."""
    if not predictions or predictions[0].task in DETECTION:
        kind = DETECTION[predictions[0].task] if predictions else None
        found = list(rank(predictions, kind).values()) if kind else []
        columns = [np.concatenate([getattr(item, name) for item in found] or [np.zeros(0)])
                   for name in ("confidences", "hits", "images")]  # fmt: skip
    else:
        overlaps = {place: iou(p) for place, p in enumerate(predictions)}
        boxes = [(predictions[i].confidences[0], overlap >= THRESHOLD, i)
                 for i, overlap in overlaps.items() if overlap is not None]  # fmt: skip
        columns = list(np.array(boxes, float).reshape(-1, 3).T)
    return Outcomes(confidences=columns[0], right=columns[1] > 0, images=columns[2].astype(int))


def bins_of(confidences: np.ndarray) -> np.ndarray:
    """i[D] of `BINS`; (k, k+1] / BINS as in Guo et al., 0 in the first."""
    return np.clip(np.ceil(np.asarray(confidences) * BINS).astype(int) - 1, 0, BINS - 1)


def _counts(predictions: Sequence[Prediction], calibration: Calibration | None) -> Counts:
    found = outcomes(predictions)
    columns = {"n": np.ones(len(predictions)), **_binned(found, found.confidences, len(predictions))}
    if calibration is not None:
        calibrated = _binned(found, calibration(found.confidences), len(predictions))
        columns |= {f"calibrated_{name}": column for name, column in calibrated.items()}
    return columns


def _binned(found: Outcomes, confidences: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Of each bin: boxes, their confidences and how many of them are right, of each prediction."""
    place = found.images * BINS + bins_of(confidences)
    columns: dict[str, np.ndarray] = {}
    for name, weights in (("boxes", np.ones(len(place))), ("sure", confidences), ("right", found.right)):
        table = np.bincount(place, weights, minlength=rows * BINS).reshape(rows, BINS)
        columns |= {f"{name}_{b}": table[:, b] for b in range(BINS)}
    return columns


def _figures(sums: Counts) -> Figures:
    """`ece`: the mean distance of a bin's confidence to its share of right boxes, weighted by boxes; `confidence` and
    `boxes_right`: their means over all boxes."""
    boxes, sure, right = (np.sum([sums[f"{name}_{b}"] for b in range(BINS)], axis=0)
                          for name in ("boxes", "sure", "right"))  # fmt: skip
    figures = {"ece": _ece(sums, ""), "confidence": ratio(sure, boxes), "boxes_right": ratio(right, boxes)}
    if "calibrated_boxes_0" in sums:
        figures["ece_calibrated"] = _ece(sums, "calibrated_")
    return figures


def _ece(sums: Counts, prefix: str) -> np.ndarray:
    off = np.sum([np.abs(sums[f"{prefix}sure_{b}"] - sums[f"{prefix}right_{b}"]) for b in range(BINS)], axis=0)
    return ratio(off, np.sum([sums[f"{prefix}boxes_{b}"] for b in range(BINS)], axis=0))


def reliability(calibration: Calibration | None = None) -> Metric:
    """Of predictions of one task with confidences."""
    return Metric(counts=functools.partial(_counts, calibration=calibration), figures=_figures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin, by its place: boxes, their mean confidence, the share that is right with its 95 % Wilson interval."""

    place: int
    boxes: int
    confidence: float
    right: float
    low: float
    high: float


def bins(predictions: Sequence[Prediction], calibration: Calibration | None = None) -> list[Bin]:
    """Of each bin with boxes, from the lowest confidence on."""
    found = outcomes(predictions)
    sure = found.confidences if calibration is None else calibration(found.confidences)
    sums = totals(_binned(found, sure, len(predictions)))
    made = []
    for b in range(BINS):
        boxes = int(sums[f"boxes_{b}"])
        if boxes:
            right = float(sums[f"right_{b}"]) / boxes
            low, high = _wilson(right, boxes)
            made.append(
                Bin(place=b, boxes=boxes, confidence=float(sums[f"sure_{b}"]) / boxes, right=right, low=low, high=high)
            )
    return made


def _wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float((middle - half) / (1 + z * z / n))), min(1.0, float((middle + half) / (1 + z * z / n)))


def learn(predictions: Sequence[Prediction]) -> dict[str, Calibration]:
    """Task -> its calibration, of every task whose boxes have confidences."""
    learnt = {}
    for task, rows in by_task(confidence.settled(predictions)).items():
        found = outcomes(rows) if any(p.confidences for p in rows) else None
        if found is not None and len(found.confidences):
            learnt[task] = confidence.fit(found.confidences, found.right)
    return learnt


def by_task(predictions: Sequence[Prediction]) -> Mapping[str, list[Prediction]]:
    groups: dict[str, list[Prediction]] = {}
    for p in sorted(predictions, key=lambda p: p.id):
        if p.task in confidence.WITH_BOXES:
            groups.setdefault(p.task, []).append(p)
    return groups
