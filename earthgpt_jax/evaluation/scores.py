"""Compute the scores of predictions: `{task: {group: {metric: value, "n": questions}}}`.

Groups are `all` and the sensors, and with `breakdown` also classes, sizes and sources, such as `class: ship`. Next to
its values, a group has their 95 % intervals in `intervals`. `with_baselines` adds each baseline's values of the same
group, as `"constant": {...}`, `"random": {...}` and `"blind": {...}`; the file `scores.json` has this form.
"""

from __future__ import annotations

import collections
import enum
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import confidence
from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.metrics import intervals as intervals_lib
from earthgpt_jax.evaluation.metrics.average_precision import (
    Interpolation,
    ap_intervals,
    average_precision,
    average_precisions,
    rank_boxes,
)
from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, group_by, totals
from earthgpt_jax.evaluation.metrics.calibration import calibration_metric, ece_if_calibrated, scored_boxes
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.classification import classification
from earthgpt_jax.evaluation.metrics.detection import detection
from earthgpt_jax.evaluation.metrics.false_premises import false_premises
from earthgpt_jax.evaluation.metrics.grounding import grounding
from earthgpt_jax.evaluation.metrics.meteor_spice import java_metrics
from earthgpt_jax.evaluation.metrics.multi_target import multi_target
from earthgpt_jax.evaluation.metrics.vqa import vqa
from earthgpt_jax.evaluation.predictions import BOX_TASKS, DETECTION_TASKS, ChainedTask, MultiTargetTask, Prediction
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Sensor, Task

METRICS: Mapping[str, Metric] = {
    Task.CLASSIFICATION: classification,
    Task.CAPTION: captions,
    Task.VQA: vqa,
    Task.REGION_CAPTION: captions,
    Task.GROUNDING: grounding,
    MultiTargetTask.GROUNDING: multi_target,
    Task.HBB: detection[BoxKind.HBB],
    Task.OBB: detection[BoxKind.OBB],
    ChainedTask.HBB: detection[BoxKind.HBB],
    ChainedTask.OBB: detection[BoxKind.OBB],
    DerivedTask.PRESENCE: vqa,
    DerivedTask.COUNT: vqa,
    DerivedTask.REGION_CLASS: classification,
    DerivedTask.ABSENT_HBB: false_premises,
    DerivedTask.ABSENT_OBB: false_premises,
    DerivedTask.ABSENT_GROUNDING: false_premises,
}

# Task -> its headline metric, and the title of that metric in tables.
HEADLINE: Mapping[str, tuple[str, str]] = {
    Task.CLASSIFICATION: ("top1", "classification, top-1"),
    Task.CAPTION: ("cider", "captions, CIDEr"),
    Task.VQA: ("accuracy", "VQA, accuracy"),
    Task.REGION_CAPTION: ("cider", "region captions, CIDEr"),
    Task.GROUNDING: ("pr50", "grounding, Pr@0.5"),
    MultiTargetTask.GROUNDING: ("set_f1", "phrases with several targets, F1@0.5"),
    Task.HBB: ("f1", "horizontal boxes, F1@0.5"),
    Task.OBB: ("f1", "oriented boxes, F1@0.5"),
    ChainedTask.HBB: ("f1", "horizontal boxes by chained questions, F1@0.5"),
    ChainedTask.OBB: ("f1", "oriented boxes by chained questions, F1@0.5"),
    DerivedTask.PRESENCE: ("accuracy", "presence, accuracy"),
    DerivedTask.COUNT: ("accuracy", "counts, accuracy"),
    DerivedTask.REGION_CLASS: ("top1", "class of a region, top-1"),
    DerivedTask.ABSENT_HBB: ("refusal_rate", "absent objects (HBB), refusal rate"),
    DerivedTask.ABSENT_OBB: ("refusal_rate", "absent objects (OBB), refusal rate"),
    DerivedTask.ABSENT_GROUNDING: ("refusal_rate", "absent objects (grounding), refusal rate"),
}
_CAPTION_TASKS = (Task.CAPTION, Task.REGION_CAPTION)
BASELINES = ("constant", "random", "blind")
NOT_METRICS = ("n", "intervals", *BASELINES)  # keys of a group that are not metrics

Scores = dict[str, dict[str, dict[str, Any]]]


class Extra(enum.StrEnum):
    """Slower metrics. AP: average precisions and, where boxes have confidences, their calibration. JAVA: METEOR and
    SPICE over all images, where they can be computed."""

    AP = "ap"
    JAVA = "java"


def score(
    predictions: Sequence[Prediction],
    *,
    samples: int = 0,
    extras: Collection[Extra] = (),
    calibrations: Mapping[str, Calibration] | None = None,
) -> Scores:
    """Compute all metrics of every task, over all images and per sensor.

    Args:
        predictions: the answers; their order does not matter.
        samples: bootstrap samples for the intervals; 0 for no intervals.
        extras: slower metrics to compute as well.
        calibrations: task -> calibration fitted to other answers (`calibration.fit_calibrations`).

    Raises:
        EarthGPTError: there are no predictions; a task is unknown; a question is answered twice.
    """
    table: Scores = {}
    for task, rows in _by_task(predictions).items():
        metric = METRICS[task]
        statistics = metric.statistics(rows)
        sensors = np.array([p.sensor for p in rows])
        table[task] = {}
        for group in ("all", *(str(sensor) for sensor in Sensor)):
            chosen = np.ones(len(rows), bool) if group == "all" else sensors == group
            if not chosen.any():
                continue
            members = [rows[i] for i in np.flatnonzero(chosen)]
            columns = {name: column[chosen] for name, column in statistics.items()}
            cell = _cell(metric, columns | dict(metric.corpus_statistics(members)), members, samples)
            if Extra.AP in extras and task in BOX_TASKS:
                _add_box_metrics(cell, task, members, samples, (calibrations or {}).get(task))
            if Extra.JAVA in extras and task in _CAPTION_TASKS and group == "all":
                for extra in java_metrics():
                    _add(cell, _cell(extra, extra.statistics(members), members, samples))
            table[task][group] = cell
    return table


def _add_box_metrics(
    cell: dict[str, Any], task: str, rows: Sequence[Prediction], samples: int, calibration: Calibration | None
) -> None:
    """Add average precisions, and calibration errors if the boxes have confidences in [0, 1]."""
    if task in DETECTION_TASKS:
        cell |= average_precisions(rows, DETECTION_TASKS[task])
        if samples:
            cell["intervals"] |= ap_intervals(rows, DETECTION_TASKS[task], samples=samples)
    if any(p.confidences for p in rows) and confidence.are_probabilities(rows):
        metric = calibration_metric(calibration)
        _add(cell, _cell(metric, metric.statistics(rows), rows, samples))
        cell["ece_if_calibrated"], ends = ece_if_calibrated(scored_boxes(rows).confidences)
        if samples:  # errors of few boxes are biased upwards, so that an interval around them would miss the truth
            cell["intervals"] = {n: pair for n, pair in cell["intervals"].items() if n not in ("ece", "ece_calibrated")}
            cell["intervals"]["ece_if_calibrated"] = list(ends)


def _add(cell: dict[str, Any], added: Mapping[str, Any]) -> None:
    """Add the metrics of a group, and their intervals, to those that it has."""
    cell |= {name: value for name, value in added.items() if name not in NOT_METRICS}
    if "intervals" in added:
        cell["intervals"] |= added["intervals"]


def breakdown(predictions: Sequence[Prediction], *, samples: int = 0) -> Scores:
    """Compute the metrics per class, size and source; groups such as `class: ship`, `size: small`, `source: dior`.

    Detected classes also have their AP at IoU 0.5. Captions have no breakdown, since CIDEr depends on the whole corpus.
    Sources are left out if there is only one.
    """
    table: Scores = {}
    for task, rows in _by_task(predictions).items():
        metric = METRICS[task]
        groups = dict(metric.breakdown(rows)) if metric.breakdown else {}
        sources = [f"source: {p.source}" for p in rows]
        if metric.corpus is None and len(set(sources)) > 1:
            groups |= group_by(sources, metric.statistics(rows))
        cells = {group: _cell(metric, statistics, rows, samples) for group, statistics in groups.items()}
        if task in DETECTION_TASKS:
            for label, boxes in rank_boxes(rows, DETECTION_TASKS[task]).items():
                if boxes.objects.sum() and f"class: {label}" in cells:
                    cells[f"class: {label}"]["ap50"] = float(average_precision(boxes, Interpolation.VOC12)[0])
        if cells:
            table[task] = cells
    return table


def without_nan(value: Any) -> Any:
    """Return scores for a JSON file: undefined values, which are NaN, become null."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def notes(predictions: Sequence[Prediction]) -> list[str]:
    """Return which tasks have too few images for their intervals to be more than approximate."""
    images: dict[str, set[str]] = collections.defaultdict(set)
    for p in predictions:
        images[p.task].add(p.record_id)
    return [
        f"{task}: only {len(ids)} images; intervals of fewer than {intervals_lib.FEW_IMAGES} are approximate."
        for task, ids in sorted(images.items())
        if len(ids) < intervals_lib.FEW_IMAGES
    ]


def with_breakdown(table: Scores, predictions: Sequence[Prediction], *, samples: int) -> Scores:
    """Return `table` with the groups of `breakdown` appended."""
    parts = breakdown(predictions, samples=samples)
    return {task: groups | parts.get(task, {}) for task, groups in table.items()}


def _by_task(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Group predictions by task, with confidences assigned, sorted by id so that no value depends on their order."""
    if not predictions:
        raise EarthGPTError("there are no predictions to score; expected at least one answered question")
    if unknown := {p.task for p in predictions} - {str(task) for task in METRICS}:
        raise EarthGPTError(
            f"predictions of task {', '.join(sorted(unknown))} cannot be scored; the tasks are {', '.join(METRICS)}"
        )
    if len({p.id for p in predictions}) != len(predictions):
        duplicate = collections.Counter(p.id for p in predictions).most_common(1)[0][0]
        raise EarthGPTError(f"question {duplicate!r} is answered twice; each question may be scored only once")
    groups: dict[str, list[Prediction]] = {str(task): [] for task in METRICS}
    for p in sorted(confidence.assign_confidences(predictions), key=lambda p: p.id):
        groups[p.task].append(p)
    return {task: rows for task, rows in groups.items() if rows}


def _cell(metric: Metric, statistics: Statistics, rows: Sequence[Prediction], samples: int) -> dict[str, Any]:
    """Return the values of one group, their number of questions, and their intervals."""
    sums = totals(statistics)
    cell: dict[str, Any] = {**metric.to_numbers(metric.compute(sums)), "n": int(sums["n"])}
    if samples:
        image = intervals_lib.image_indices([p.record_id for p in rows])
        cell["intervals"] = intervals_lib.intervals(metric, statistics, image, samples=samples)
    return cell


def with_baselines(model: Scores, **baselines: Scores) -> Scores:
    """Return the model's scores with the baselines' values in each group; the names are those of `BASELINES`."""
    return {
        task: {
            group: {**values, **{name: table.get(task, {}).get(group, {}) for name, table in baselines.items()}}
            for group, values in groups.items()
        }
        for task, groups in model.items()
    }


def baselines_of(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the baselines that a task's groups have."""
    return [name for name in BASELINES if any(name in cell for cell in groups.values())]
