"""The plots of the page, in the form that its template draws: shaded matrix cells, and curves as SVG paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.confidence import Calibration, are_probabilities, assign_confidences
from earthgpt_jax.evaluation.metrics.average_precision import (
    Interpolation,
    average_precision,
    precision_recall_curve,
    rank_boxes,
)
from earthgpt_jax.evaluation.metrics.calibration import BINS, box_tasks, reliability_bins
from earthgpt_jax.evaluation.metrics.classification import confusion_matrix
from earthgpt_jax.evaluation.predictions import DETECTION_TASKS, Prediction
from earthgpt_jax.records import Task

SIDE = 240  # side of a square plot, in SVG units
_MAX_CLASSES = 24  # classes with a precision-recall curve: those with most objects
_MAX_MARKERS = 3  # points of a curve that are drawn as markers; longer curves are lines only
_LOSS_SIZE = (420, 170)  # width and height of a loss curve, in SVG units


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        columns: predicted classes.
        rows: (true class, cells); a cell is its count and its fraction of the row.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionRecallPlot:
    """The precision-recall curve of one class; `points` are markers, in SVG units."""

    title: str
    path: str
    points: Sequence[tuple[float, float]]
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinMark:
    """One bin of a reliability diagram, in SVG units.

    Attributes:
        x, y: mean confidence and fraction correct.
        low, high: ends of the interval of the fraction.
        left, height: the bar that shows the number of boxes.
        caption: text for pointing devices and screen readers.
    """

    x: float
    y: float
    low: float
    high: float
    left: float
    height: float
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityDiagram:
    """The reliability diagram of one task; `bar_width` is the width of a bin."""

    title: str
    bins: Sequence[BinMark]
    bar_width: float
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossCurve:
    """A smoothed training loss; `first`, `last`, `high` and `low` label the ends of the axes."""

    name: str
    path: str
    width: int
    height: int
    first: int
    last: int
    high: str
    low: str
    caption: str
    not_finite: int


def confusion_plot(predictions: Sequence[Prediction]) -> Matrix | None:
    """Return the confusion matrix of scene classes; None if there are no classification questions."""
    chosen = [p for p in predictions if p.task == Task.CLASSIFICATION]
    if not chosen:
        return None
    classes, columns, counts = confusion_matrix(chosen)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return Matrix(
        columns=columns,
        rows=[
            (name, list(zip(counts[i].tolist(), fractions[i].tolist(), strict=True)))
            for i, name in enumerate(classes)
        ],
    )  # fmt: skip


def precision_recall_plots(predictions: Sequence[Prediction], task: str) -> list[PrecisionRecallPlot]:
    """Return one precision-recall curve per class at IoU 0.5, the classes with most objects first."""
    chosen = sorted(assign_confidences([p for p in predictions if p.task == task]), key=lambda p: p.id)
    ranked = rank_boxes(chosen, DETECTION_TASKS[task]) if chosen else {}
    plots = []
    for label, boxes in sorted(ranked.items(), key=lambda pair: (-pair[1].objects.sum(), pair[0]))[:_MAX_CLASSES]:
        if not boxes.objects.sum():
            continue
        recall, precision = precision_recall_curve(boxes)
        ap = float(average_precision(boxes, Interpolation.VOC12)[0])
        corners = [(float(r) * SIDE, float(1 - p) * SIDE) for r, p in zip(recall, precision, strict=True)]
        start = [(0.0, corners[0][1])] if corners else []
        plots.append(
            PrecisionRecallPlot(
                title=label or "(no class)",
                path="M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in (*start, *corners)) if corners else "",
                points=corners if len(corners) <= _MAX_MARKERS else (),
                caption=f"AP {ap:.3f}, {int(boxes.objects.sum())} objects, {len(boxes.correct)} boxes",
            )
        )
    return plots


def reliability_diagrams(
    predictions: Sequence[Prediction], calibrations: Mapping[str, Calibration] | None = None
) -> list[ReliabilityDiagram]:
    """Return one diagram per task with confidences in [0, 1], and another after calibration where one is given."""
    diagrams = []
    for task, rows in box_tasks(assign_confidences(predictions)).items():
        if any(p.confidences for p in rows) and are_probabilities(rows):
            diagrams.append(_reliability_diagram(task, rows, None))
            if calibration := (calibrations or {}).get(task):
                diagrams.append(_reliability_diagram(f"{task}, calibrated", rows, calibration))
    return diagrams


def _reliability_diagram(title: str, rows: Sequence[Prediction], calibration: Calibration | None) -> ReliabilityDiagram:
    bins = reliability_bins(rows, calibration)
    boxes = sum(b.boxes for b in bins)
    ece = sum(b.boxes * abs(b.confidence - b.correct) for b in bins) / max(boxes, 1)
    most = max((b.boxes for b in bins), default=1)
    return ReliabilityDiagram(
        title=title,
        bins=[
            BinMark(
                x=SIDE * b.confidence, y=SIDE * (1 - b.correct), low=SIDE * (1 - b.low), high=SIDE * (1 - b.high),
                left=SIDE * b.index / BINS, height=SIDE * 0.3 * b.boxes / most,
                caption=f"confidence {b.confidence:.3f}, correct {b.correct:.3f}, {b.boxes} boxes",
            )
            for b in bins
        ],
        bar_width=SIDE / BINS,
        caption=f"ECE {ece:.3f}, {boxes} boxes",
    )  # fmt: skip


def loss_curve(name: str, losses: Sequence[tuple[int, float]]) -> LossCurve | None:
    """Return the curve of (step, loss) pairs, smoothed over a twentieth of its length; None without a finite loss.

    If a step occurs more than once, the last loss counts.
    """
    by_step = {step: loss for step, loss in losses if np.isfinite(loss)}
    if not by_step:
        return None
    steps, values = (np.array(column, float) for column in zip(*sorted(by_step.items()), strict=True))
    window = max(1, len(values) // 20)
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    middles = np.convolve(steps, np.ones(window) / window, "valid")
    width, height = _LOSS_SIZE
    low, high = float(smooth.min()), float(smooth.max())
    x = (middles - steps[0]) / max(steps[-1] - steps[0], 1) * width
    y = height - (smooth - low) / max(high - low, 1e-9) * height
    return LossCurve(
        name=name,
        path="M" + " L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)),
        width=width,
        height=height,
        first=int(steps[0]),
        last=int(steps[-1]),
        high=f"{high:.2f}",
        low=f"{low:.2f}",
        caption=f"{smooth[0]:.3f} at first, {smooth[-1]:.3f} after {int(steps[-1])} steps",
        not_finite=len(losses) - int(np.isfinite([loss for _, loss in losses]).sum()),
    )
