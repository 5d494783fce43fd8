"""Predictions -> scores: `{task: {group: {metric: value, "n": questions}}}`.

Groups are `all`, the sensors, and in `breakdown` classes, sizes and sources, as `class: ship`. Beside the figures,
`intervals` holds their 95 % intervals. `assemble` puts the baselines of each cell beside it, as `"constant": {...}`,
`"blind": {...}`; that is the form of scores.json.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import confidence
from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.metrics import intervals as intervals_lib
from earthgpt_jax.evaluation.metrics.average_precision import ap_intervals, average_precisions
from earthgpt_jax.evaluation.metrics.base import Counts, Metric, rows_by, totals
from earthgpt_jax.evaluation.metrics.calibration import reliability
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.classification import classification
from earthgpt_jax.evaluation.metrics.detection import detection
from earthgpt_jax.evaluation.metrics.false_premises import premises
from earthgpt_jax.evaluation.metrics.grounding import grounding
from earthgpt_jax.evaluation.metrics.java import java_captions
from earthgpt_jax.evaluation.metrics.voc_ap import Interpolation, average_precision, rank
from earthgpt_jax.evaluation.metrics.vqa import vqa
from earthgpt_jax.evaluation.predictions import DETECTION, WITH_BOXES, Chained, Prediction
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Sensor, Task

METRICS: Mapping[str, Metric] = {
    Task.CLASSIFICATION: classification,
    Task.CAPTION: captions,
    Task.VQA: vqa,
    Task.REGION_CAPTION: captions,
    Task.GROUNDING: grounding,
    Task.HBB: detection[BoxKind.HBB],
    Task.OBB: detection[BoxKind.OBB],
    Chained.HBB: detection[BoxKind.HBB],
    Chained.OBB: detection[BoxKind.OBB],
    DerivedTask.PRESENCE: vqa,
    DerivedTask.COUNT: vqa,
    DerivedTask.REGION_CLASS: classification,
    DerivedTask.ABSENT_HBB: premises,
    DerivedTask.ABSENT_OBB: premises,
    DerivedTask.ABSENT_GROUNDING: premises,
}

# What a table shows of each task: the metric that names it, and its title.
HEADLINE: Mapping[str, tuple[str, str]] = {
    Task.CLASSIFICATION: ("top1", "classification, top-1"),
    Task.CAPTION: ("cider", "captions, CIDEr"),
    Task.VQA: ("accuracy", "VQA, accuracy"),
    Task.REGION_CAPTION: ("cider", "region captions, CIDEr"),
    Task.GROUNDING: ("pr50", "grounding, Pr@0.5"),
    Task.HBB: ("f1", "horizontal boxes, F1@0.5"),
    Task.OBB: ("f1", "oriented boxes, F1@0.5"),
    Chained.HBB: ("f1", "horizontal boxes by chained questions, F1@0.5"),
    Chained.OBB: ("f1", "oriented boxes by chained questions, F1@0.5"),
    DerivedTask.PRESENCE: ("accuracy", "presence, accuracy"),
    DerivedTask.COUNT: ("accuracy", "counts, accuracy"),
    DerivedTask.REGION_CLASS: ("top1", "class of a region, top-1"),
    DerivedTask.ABSENT_HBB: ("refused", "no such object (HBB), refused"),
    DerivedTask.ABSENT_OBB: ("refused", "no such object (OBB), refused"),
    DerivedTask.ABSENT_GROUNDING: ("refused", "no such object (grounding), refused"),
}
_CAPTIONS = (Task.CAPTION, Task.REGION_CAPTION)
BASELINES = ("constant", "random", "blind")
# What a cell holds beside its figures.
BESIDE = ("n", "intervals", *BASELINES)

Scores = dict[str, dict[str, dict[str, Any]]]


class Extra(enum.StrEnum):
    """What takes time: average precisions, and what confidences are worth, where there are some; METEOR and SPICE, over
    all images and where they can be computed."""

    AP = "ap"
    JAVA = "java"


def score(
    predictions: Sequence[Prediction],
    *,
    samples: int = 0,
    extras: Collection[Extra] = (),
    calibrations: Mapping[str, Calibration] | None = None,
) -> Scores:
    """All metrics of every task that was asked, over all images and per sensor.

    Args:
        samples: bootstrap samples of the intervals; 0 for none.
        extras: metrics that take more time.
        calibrations: of tasks with boxes, learnt from other answers (`reliability.learn`).

    Raises:
        EarthGPTError: no predictions, a task that nothing here scores, or a question answered twice.
    """
    table: Scores = {}
    for task, rows in _by_task(predictions).items():
        metric = METRICS[task]
        everything = metric.counts(rows)
        sensors = np.array([p.sensor for p in rows])
        for group in ("all", *(str(sensor) for sensor in Sensor)):
            chosen = np.ones(len(rows), bool) if group == "all" else sensors == group
            if not chosen.any():
                continue
            some = [rows[i] for i in np.flatnonzero(chosen)]
            counts = {name: column[chosen] for name, column in everything.items()} | dict(metric.in_corpus(some))
            cell = table.setdefault(task, {})[group] = _cell(metric, counts, some, samples)
            if Extra.AP in extras and task in DETECTION:
                cell |= average_precisions(some, DETECTION[task])
                if samples:
                    cell["intervals"] |= ap_intervals(some, DETECTION[task], samples=samples)
            known = any(p.confidences for p in some) and confidence.probabilities(some)
            if Extra.AP in extras and task in WITH_BOXES and known:
                measured = reliability((calibrations or {}).get(task))
                more = _cell(measured, measured.counts(some), some, samples)
                cell |= {name: value for name, value in more.items() if name not in BESIDE}
                if samples:
                    cell["intervals"] |= more["intervals"]
            if Extra.JAVA in extras and task in _CAPTIONS and group == "all":
                cell |= java_captions(some)
    return table


def breakdown(predictions: Sequence[Prediction], *, samples: int = 0) -> Scores:
    """The metrics of each class, size and source; groups as `class: ship`, `size: small`, `source: dior`.

    A class of boxes also has its AP at IoU 0.5.
    Captions have sources only; where there is a single source, it is left out.
    """
    table: Scores = {}
    for task, rows in _by_task(predictions).items():
        metric = METRICS[task]
        groups = dict(metric.parts(rows)) if metric.parts else {}
        sources = [f"source: {p.source}" for p in rows]
        if metric.corpus is None and len(set(sources)) > 1:
            groups |= rows_by(sources, metric.counts(rows))
        cells = {group: _cell(metric, counts, rows, samples) for group, counts in groups.items()}
        if task in DETECTION:
            for label, item in rank(rows, DETECTION[task]).items():
                if item.objects.sum() and f"class: {label}" in cells:
                    cells[f"class: {label}"]["ap50"] = float(average_precision(item, Interpolation.VOC12)[0])
        if cells:
            table[task] = cells
    return table


def with_breakdown(table: Scores, predictions: Sequence[Prediction], *, samples: int) -> Scores:
    """`table` with the groups of `breakdown` behind its own."""
    parts = breakdown(predictions, samples=samples)
    return {task: groups | parts.get(task, {}) for task, groups in table.items()}


def _by_task(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Rows by id, so that no figure can depend on the order in which questions were answered; with confidences."""
    if not predictions:
        raise EarthGPTError("there are no predictions to score; expected at least one answered question")
    if unknown := {p.task for p in predictions} - {str(task) for task in METRICS}:
        known = ", ".join(METRICS)
        raise EarthGPTError(f"predictions of task {', '.join(sorted(unknown))} cannot be scored; known are {known}")
    if len({p.id for p in predictions}) != len(predictions):
        twice = collections.Counter(p.id for p in predictions).most_common(1)[0][0]
        raise EarthGPTError(f"question {twice!r} is answered twice; each may be scored only once")
    groups: dict[str, list[Prediction]] = {str(task): [] for task in METRICS}
    for p in sorted(confidence.settled(predictions), key=lambda p: p.id):
        groups[p.task].append(p)
    return {task: rows for task, rows in groups.items() if rows}


def _cell(metric: Metric, counts: Counts, rows: Sequence[Prediction], samples: int) -> dict[str, Any]:
    sums = totals(counts)
    cell: dict[str, Any] = {**metric.plain(metric.figures(sums)), "n": int(sums["n"])}
    if samples:
        image = intervals_lib.images([p.record_id for p in rows])
        cell["intervals"] = intervals_lib.intervals(metric, counts, image, samples=samples)
    return cell


def assemble(*, model: Scores, **baselines: Scores) -> Scores:
    """The model's scores with the baselines beside each cell; names are of `BASELINES`."""
    return {
        task: {
            group: {**values, **{name: table.get(task, {}).get(group, {}) for name, table in baselines.items()}}
            for group, values in groups.items()
        }
        for task, groups in model.items()
    }


def to_markdown(scores: Scores) -> str:
    """A table of the headline metrics: each sensor, then the baselines over all images that there are."""
    groups = ["all", *(sensor.value for sensor in Sensor)]
    beside = [name for name in BASELINES if any(name in groups["all"] for groups in scores.values())]
    rows = [["task", *groups, *beside, "parsed", "n"]]
    for task, (metric, title) in HEADLINE.items():
        cells = scores.get(str(task))
        if cells:
            whole = cells["all"]
            rows.append(
                [
                    title,
                    figure(whole.get(metric), whole.get("intervals", {}).get(metric)),
                    *(figure(cells.get(group, {}).get(metric)) for group in groups[1:]),
                    *(figure(whole.get(name, {}).get(metric)) for name in beside),
                    figure(whole.get("parse_rate")),
                    str(whole["n"]),
                ]
            )
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; all columns but the first hold figures."""
    head, *body = rows
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (head, ["---", *["---:"] * (len(head) - 1)], *body)
    )


def figure(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Shares with three digits, counts as they are, an interval in brackets."""
    if value is None:
        return ""
    text = str(value) if isinstance(value, int) else f"{value:.3f}"
    return text if interval is None else f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]"
