"""Plots of the page, as what its template draws: a matrix of shaded cells, curves as SVG paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.confidence import Calibration, probabilities, settled
from earthgpt_jax.evaluation.metrics.calibration import BINS, bins, by_task
from earthgpt_jax.evaluation.metrics.classification import confusion
from earthgpt_jax.evaluation.metrics.voc_ap import Interpolation, average_precision, curve, rank
from earthgpt_jax.evaluation.predictions import DETECTION, Prediction
from earthgpt_jax.records import Task

SIDE = 240  # of a precision-recall plot
_SHOWN = 24  # classes with a plot, those with most objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """Rows of (true class, cells); a cell is its count and its share of the row."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """One class's precision over recall; `points` are the corners of the steps, in pixels of the plot."""

    title: str
    path: str
    points: Sequence[tuple[float, float]]
    words: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bin of confidences, in pixels of the plot: a point with its interval, and a bar that says how many boxes."""

    x: float
    y: float
    low: float
    high: float
    left: float
    height: float
    words: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability:
    title: str
    bars: Sequence[Bar]
    width: float
    words: str


def matrix(predictions: Sequence[Prediction]) -> Matrix | None:
    """The confusion matrix of scene classes; None without any."""
    chosen = [p for p in predictions if p.task == Task.CLASSIFICATION]
    if not chosen:
        return None
    classes, columns, cells = confusion(chosen)
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    return Matrix(
        columns=columns,
        rows=[
            (name, list(zip(cells[i].tolist(), shares[i].tolist(), strict=True))) for i, name in enumerate(classes)
        ],
    )  # fmt: skip


def precision_recall(predictions: Sequence[Prediction], task: str) -> list[Plot]:
    """A plot a class at IoU 0.5, the classes with most objects first."""
    chosen = sorted(settled([p for p in predictions if p.task == task]), key=lambda p: p.id)
    ranked = rank(chosen, DETECTION[task]) if chosen else {}
    plots = []
    for label, item in sorted(ranked.items(), key=lambda pair: (-pair[1].objects.sum(), pair[0]))[:_SHOWN]:
        if not item.objects.sum():
            continue
        recall, precision = curve(item)
        ap = float(average_precision(item, Interpolation.VOC12)[0])
        corners = [(float(r) * SIDE, float(1 - p) * SIDE) for r, p in zip(recall, precision, strict=True)]
        start = [(0.0, corners[0][1])] if corners else []
        plots.append(
            Plot(
                title=label or "(no class)",
                path="M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in (*start, *corners)) if corners else "",
                points=corners if len(corners) <= 3 else (),
                words=f"AP {ap:.3f}, {int(item.objects.sum())} objects, {len(item.hits)} boxes",
            )
        )
    return plots


def reliability(
    predictions: Sequence[Prediction], calibrations: Mapping[str, Calibration] | None = None
) -> list[Reliability]:
    """Share of right boxes over confidence, a plot a task whose boxes have confidences, and one of the calibrated."""
    shown = []
    for task, rows in by_task(settled(predictions)).items():
        if any(p.confidences for p in rows) and probabilities(rows):
            shown.append(_reliability(task, rows, None))
            if calibration := (calibrations or {}).get(task):
                shown.append(_reliability(f"{task}, calibrated", rows, calibration))
    return shown


def _reliability(title: str, rows: Sequence[Prediction], calibration: Calibration | None) -> Reliability:
    found = bins(rows, calibration)
    boxes = sum(item.boxes for item in found)
    ece = sum(item.boxes * abs(item.confidence - item.right) for item in found) / max(boxes, 1)
    most = max((item.boxes for item in found), default=1)
    return Reliability(
        title=title,
        bars=[
            Bar(
                x=SIDE * item.confidence, y=SIDE * (1 - item.right), low=SIDE * (1 - item.low),
                high=SIDE * (1 - item.high), left=SIDE * item.place / BINS, height=SIDE * 0.3 * item.boxes / most,
                words=f"confidence {item.confidence:.3f}, right {item.right:.3f}, {item.boxes} boxes",
            )
            for item in found
        ],
        width=SIDE / BINS,
        words=f"ECE {ece:.3f}, {boxes} boxes",
    )  # fmt: skip
