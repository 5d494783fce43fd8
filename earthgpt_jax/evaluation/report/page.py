"""Render the HTML page from its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common import files
from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.metrics.calibration import BINS
from earthgpt_jax.evaluation.predictions import DETECTION_TASKS, ChainedTask, Prediction
from earthgpt_jax.evaluation.report import plots
from earthgpt_jax.evaluation.report.gallery import ImageCase, ParseFailure
from earthgpt_jax.evaluation.report.markdown import format_value
from earthgpt_jax.evaluation.report.tables import GROUPS, Table, breakdown_table, metrics_table
from earthgpt_jax.evaluation.scores import HEADLINE, Scores, baselines_of
from earthgpt_jax.records import Sensor, Task

_MAX_FAILURES = 50
_TASK_NAMES = {
    Task.HBB: "horizontal boxes", Task.OBB: "oriented boxes", Task.GROUNDING: "grounding",
    ChainedTask.HBB: "horizontal boxes by chained questions", ChainedTask.OBB: "oriented boxes by chained questions",
}  # fmt: skip


def write_page(
    path: Path,
    *,
    title: str,
    runs: Mapping[str, Scores],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    images: Sequence[ImageCase],
    notes: Sequence[str] = (),
    failures: Sequence[ParseFailure] | None = None,
    max_failures: int = _MAX_FAILURES,
    predictions: Sequence[Prediction] = (),
    tables: Sequence[Table] = (),
    extremes: Mapping[str, Sequence[ImageCase]] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
) -> None:
    """Write the page; everything is inline, and it has no JavaScript.

    Args:
        path: file to write.
        title: title of the page.
        runs: name of a model -> its scores with baselines (`scores.with_baselines`), with or without a breakdown.
        curves: name of a training run -> its (step, loss) pairs.
        images: images for the gallery, grouped by sensor on the page.
        notes: facts listed at the top.
        failures: answers whose boxes could not be parsed; None to leave the section out.
        max_failures: number of failures to list.
        predictions: answers for the confusion matrix and the curves.
        tables: further tables, shown after the scores.
        extremes: title -> images for the gallery, such as the worst and the best ones.
        calibrations: task -> calibration, shown next to the uncalibrated confidences.
    """
    import jinja2

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
                "metrics": [metrics_table(task, groups) for task, groups in scores.items()],
                "breakdown": [table for task, groups in scores.items() if (table := breakdown_table(task, groups))],
            }
            for name, scores in runs.items()
        ],
        tables=tables,
        matrix=plots.confusion_plot(predictions),
        precision_recall=[(str(task), found) for task in DETECTION_TASKS
                          if (found := plots.precision_recall_plots(predictions, task))],
        reliability=plots.reliability_diagrams(predictions, calibrations),
        tasks=_TASK_NAMES,
        bins=BINS,
        side=plots.SIDE,
        curves=[curve for curve in (plots.loss_curve(name, losses) for name, losses in curves.items()) if curve],
        galleries=[
            *(("extreme", name, cases) for name, cases in (extremes or {}).items()),
            *(("sensor", sensor.value, cases) for sensor in Sensor
              if (cases := [case for case in images if case.sensor == sensor.value])),
        ],
        failures=None if failures is None else failures[:max_failures],
        failed=len(failures or ()),
    )  # fmt: skip
    files.write_output(path, page.encode())


def _headline(scores: Scores) -> list[dict[str, Any]]:
    """Return one row per task: its headline metric in each group, with its interval and the baselines."""
    rows = []
    for task, (metric, title) in HEADLINE.items():
        groups = scores.get(str(task))
        if not groups:
            continue
        cells = []
        for group in GROUPS:
            values = groups.get(group, {})
            baselines = {name: values.get(name, {}).get(metric) for name in baselines_of(groups)}
            known = [value for value in baselines.values() if value is not None]
            value, interval = values.get(metric), values.get("intervals", {}).get(metric)
            cells.append(
                {
                    "value": _or_dash(value),
                    "interval": f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else "",
                    "baselines": {name: _or_dash(value) for name, value in baselines.items()} if known else {},
                    # A value that a baseline reaches does not show that the model uses the image.
                    "no_better": value is not None and bool(known) and value <= max(known),
                }
            )
        overall = groups.get("all", {})
        rows.append(
            {"title": title, "cells": cells, "parsed": _or_dash(overall.get("parse_rate")), "n": overall.get("n", 0)}
        )
    return rows


def _or_dash(value: float | None) -> str:
    return format_value(value) or "–"
