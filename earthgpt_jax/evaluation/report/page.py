"""Fills the page's template: tables, curves as SVG paths, the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.metrics.calibration import BINS
from earthgpt_jax.evaluation.predictions import DETECTION, Chained, Prediction
from earthgpt_jax.evaluation.report import plots
from earthgpt_jax.evaluation.report.gallery import Case, Failure
from earthgpt_jax.evaluation.report.tables import GROUPS, Table, baselines_of, metrics, parts
from earthgpt_jax.evaluation.scores import HEADLINE, Scores, figure
from earthgpt_jax.records import Sensor, Task

_SHOWN_FAILURES = 50
_TASKS = {
    Task.HBB: "horizontal boxes", Task.OBB: "oriented boxes", Task.GROUNDING: "grounding",
    Chained.HBB: "horizontal boxes by chained questions", Chained.OBB: "oriented boxes by chained questions",
}  # fmt: skip
_CURVE = (420, 170)  # the plot's width and height


def write(
    path: Path,
    *,
    title: str,
    runs: Mapping[str, Scores],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    gallery: Sequence[Case],
    notes: Sequence[str] = (),
    failures: Sequence[Failure] | None = None,
    shown_failures: int = _SHOWN_FAILURES,
    predictions: Sequence[Prediction] = (),
    tables: Sequence[Table] = (),
    extremes: Mapping[str, Sequence[Case]] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
) -> None:
    """Writes the page; everything in it is inline, and it has no JavaScript.

    Args:
        runs: a model's name -> its scores with baselines (`scores.assemble`), with or without `scores.breakdown`.
        curves: a run's name -> its `(step, loss)`; of equal steps the last counts.
        failures: answers whose boxes could not be read (`failures(predictions)`); None to say nothing of them.
        predictions: of which confusions and precision-recall curves are shown.
        tables: more tables, behind the scores.
        extremes: a title -> images, as the worst and the best ones.
        calibrations: of tasks with boxes, shown beside their confidences as they are.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.evaluation", "report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page = environment.get_template("page.html").render(
        title=title,
        notes=notes,
        groups=GROUPS,
        runs=[
            {
                "name": name,
                "headline": _headline(scores),
                "metrics": [metrics(task, groups) for task, groups in scores.items()],
                "parts": [table for task, groups in scores.items() if (table := parts(task, groups))],
            }
            for name, scores in runs.items()
        ],
        tables=tables,
        matrix=plots.matrix(predictions),
        plots=[(str(task), found) for task in DETECTION
               if (found := plots.precision_recall(predictions, task))],
        reliability=plots.reliability(predictions, calibrations),
        tasks=_TASKS,
        bins=BINS,
        side=plots.SIDE,
        curves=[curve for curve in (_curve(name, points) for name, points in curves.items()) if curve],
        galleries=[
            *(("extreme", name, cases) for name, cases in (extremes or {}).items()),
            *(("sensor", sensor.value, cases) for sensor in Sensor
              if (cases := [case for case in gallery if case.sensor == sensor.value])),
        ],
        failures=None if failures is None else failures[:shown_failures],
        failed=len(failures or ()),
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")


def _headline(scores: Scores) -> list[dict[str, Any]]:
    """One row a task: its main metric in each group, with its interval and the baselines."""
    rows = []
    for task, (metric, title) in HEADLINE.items():
        groups = scores.get(str(task))
        if not groups:
            continue
        cells = []
        for group in GROUPS:
            values = groups.get(group, {})
            beside = {name: values.get(name, {}).get(metric) for name in baselines_of(groups)}
            known = [value for value in beside.values() if value is not None]
            value, interval = values.get(metric), values.get("intervals", {}).get(metric)
            cells.append(
                {
                    "value": _figure(value),
                    "interval": f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else "",
                    "beside": {name: _figure(figure) for name, figure in beside.items()} if known else {},
                    # A figure that looking at nothing reaches too says nothing of sight.
                    "idle": value is not None and bool(known) and value <= max(known),
                }
            )
        whole = groups.get("all", {})
        rows.append(
            {"title": title, "cells": cells, "parsed": _figure(whole.get("parse_rate")), "n": whole.get("n", 0)}
        )
    return rows


def _figure(value: float | None) -> str:
    return figure(value) or "–"


def _curve(name: str, points: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """A loss curve, smoothed over a twentieth of its length, with its axes' ends; None without a finite loss."""
    by_step = {step: loss for step, loss in points if np.isfinite(loss)}
    if not by_step:
        return None
    steps, losses = (np.array(column, float) for column in zip(*sorted(by_step.items()), strict=True))
    window = max(1, len(losses) // 20)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    middles = np.convolve(steps, np.ones(window) / window, "valid")
    width, height = _CURVE
    low, high = float(smooth.min()), float(smooth.max())
    x = (middles - steps[0]) / max(steps[-1] - steps[0], 1) * width
    y = height - (smooth - low) / max(high - low, 1e-9) * height
    return {
        "name": name,
        "path": "M" + " L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)),
        "width": width,
        "height": height,
        "first": int(steps[0]),
        "last": int(steps[-1]),
        "high": f"{high:.2f}",
        "low": f"{low:.2f}",
        "words": f"{smooth[0]:.3f} at first, {smooth[-1]:.3f} after {int(steps[-1])} steps",
        "dropped": len(points) - int(np.isfinite([loss for _, loss in points]).sum()),
    }
