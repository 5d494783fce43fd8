"""Plots of the page, as what its template draws: a matrix of shaded cells, curves as SVG paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.classification import confusion
from earthgpt_jax.evaluation.metrics.ranking import Interpolation, average_precision, curve, rank
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.geometry import BoxKind
from earthgpt_jax.mmrs.record import Task

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


def precision_recall(predictions: Sequence[Prediction], task: Task) -> list[Plot]:
    """A plot a class at IoU 0.5, the classes with most objects first."""
    chosen = sorted((p for p in predictions if p.task == task), key=lambda p: p.id)
    ranked = rank(chosen, BoxKind(task.value)) if chosen else {}
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
