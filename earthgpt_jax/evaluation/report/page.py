"""Fills the page's template: tables, curves as SVG paths, the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from earthgpt_jax.evaluation.report.gallery import Case, Failure
from earthgpt_jax.evaluation.scores import HEADLINE, Scores
from earthgpt_jax.mmrs.record import Sensor

_GROUPS = ("all", *(sensor.value for sensor in Sensor))
_BESIDE = ("constant", "blind")
_SHOWN_FAILURES = 50
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
) -> None:
    """Writes the page; everything in it is inline, and it has no JavaScript.

    Args:
        runs: a model's name -> its scores with baselines (`scores.assemble`).
        curves: a run's name -> its `(step, loss)`; of equal steps the last counts.
        failures: answers whose boxes could not be read (`failures(predictions)`); None to say nothing of them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.evaluation", "report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page = environment.get_template("page.html").render(
        title=title,
        notes=notes,
        groups=_GROUPS,
        runs=[{"name": name, "headline": _headline(scores), "metrics": _metrics(scores)}
              for name, scores in runs.items()],
        curves=[curve for curve in (_curve(name, points) for name, points in curves.items()) if curve],
        sensors=[(sensor.value, [case for case in gallery if case.sensor == sensor.value]) for sensor in Sensor],
        failures=None if failures is None else failures[:_SHOWN_FAILURES],
        failed=len(failures or ()),
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")


def _headline(scores: Scores) -> list[dict[str, Any]]:
    """One row a task: its main metric in each group, each with both baselines."""
    rows = []
    for task, (metric, title) in HEADLINE.items():
        groups = scores.get(task.value)
        if not groups:
            continue
        cells = []
        for group in _GROUPS:
            values = groups.get(group, {})
            beside = {name: values.get(name, {}).get(metric) for name in _BESIDE}
            known = [value for value in beside.values() if value is not None]
            value = values.get(metric)
            cells.append(
                {
                    "value": _figure(value),
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


def _metrics(scores: Scores) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Task -> rows of (metric, figure in each group, constant and blind over all)."""
    tables = []
    for task, groups in scores.items():
        whole = groups.get("all", {})
        names = [name for name in whole if name not in ("n", *_BESIDE)]
        rows = [
            (
                name,
                [_figure(groups.get(group, {}).get(name)) for group in _GROUPS]
                + [_figure(whole.get(beside, {}).get(name)) for beside in _BESIDE],
            )
            for name in names
        ]
        rows.append(("n", [_figure(groups.get(group, {}).get("n")) for group in _GROUPS] + ["", ""]))
        tables.append((task, rows))
    return tables


def _figure(value: float | None) -> str:
    """Shares with three digits, counts as they are."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


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
