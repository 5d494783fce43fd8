"""Predictions -> scores: `{task: {sensor or "all": {metric: value, "n": questions}}}`.

`assemble` puts the constant and the blind baseline of each cell beside it, as `"constant": {...}` and
`"blind": {...}`; that is the form of scores.json.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.classification import classification
from earthgpt_jax.evaluation.metrics.detection import detection
from earthgpt_jax.evaluation.metrics.grounding import grounding
from earthgpt_jax.evaluation.metrics.vqa import vqa
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.geometry import BoxKind
from earthgpt_jax.mmrs.record import Sensor, Task

METRICS: Mapping[Task, Callable[[Sequence[Prediction]], dict[str, float]]] = {
    Task.CLASSIFICATION: classification,
    Task.CAPTION: captions,
    Task.VQA: vqa,
    Task.REGION_CAPTION: captions,
    Task.GROUNDING: grounding,
    Task.HBB: functools.partial(detection, kind=BoxKind.HBB),
    Task.OBB: functools.partial(detection, kind=BoxKind.OBB),
}

# What a table shows of each task: the metric that names it, and its title.
HEADLINE: Mapping[Task, tuple[str, str]] = {
    Task.CLASSIFICATION: ("top1", "classification, top-1"),
    Task.CAPTION: ("cider", "captions, CIDEr"),
    Task.VQA: ("accuracy", "VQA, accuracy"),
    Task.REGION_CAPTION: ("cider", "region captions, CIDEr"),
    Task.GROUNDING: ("pr50", "grounding, Pr@0.5"),
    Task.HBB: ("f1", "horizontal boxes, F1@0.5"),
    Task.OBB: ("f1", "oriented boxes, F1@0.5"),
}

Scores = dict[str, dict[str, dict[str, Any]]]


def score(predictions: Sequence[Prediction]) -> Scores:
    """All metrics of every task that was asked, over all images and per sensor.

    Raises:
        EarthGPTError: no predictions, a task that nothing here scores, or a question answered twice.
    """
    if not predictions:
        raise EarthGPTError("there are no predictions to score; expected at least one answered question")
    if unknown := {p.task for p in predictions} - {task.value for task in METRICS}:
        known = ", ".join(task.value for task in METRICS)
        raise EarthGPTError(f"predictions of task {', '.join(sorted(unknown))} cannot be scored; known are {known}")
    if len({p.id for p in predictions}) != len(predictions):
        twice = collections.Counter(p.id for p in predictions).most_common(1)[0][0]
        raise EarthGPTError(f"question {twice!r} is answered twice; each may be scored only once")
    table: Scores = {}
    for task, metric in METRICS.items():
        for group in ("all", *Sensor):
            chosen = [p for p in predictions if p.task == task and group in ("all", p.sensor)]
            if chosen:
                # By id, so that no figure can depend on the order in which questions were answered.
                values = metric(sorted(chosen, key=lambda p: p.id))
                table.setdefault(task.value, {})[str(group)] = {**values, "n": len(chosen)}
    return table


def assemble(*, model: Scores, constant: Scores, blind: Scores) -> Scores:
    """The model's scores with both baselines beside each cell."""
    return {
        task: {
            group: {
                **values,
                "constant": constant.get(task, {}).get(group, {}),
                "blind": blind.get(task, {}).get(group, {}),
            }
            for group, values in groups.items()
        }
        for task, groups in model.items()
    }


def to_markdown(scores: Scores) -> str:
    """A table of the headline metrics: each sensor, then constant and blind over all images."""
    groups = ["all", *(sensor.value for sensor in Sensor)]
    rows = [["task", *groups, "constant", "blind", "parsed", "n"]]
    for task, (metric, title) in HEADLINE.items():
        cells = scores.get(task.value)
        if cells:
            whole = cells["all"]
            rows.append(
                [
                    title,
                    *(_figure(cells.get(group, {}).get(metric)) for group in groups),
                    *(_figure(whole.get(name, {}).get(metric)) for name in ("constant", "blind")),
                    _figure(whole.get("parse_rate")),
                    str(whole["n"]),
                ]
            )
    rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
