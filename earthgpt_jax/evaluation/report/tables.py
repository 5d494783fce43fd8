"""The tables of the report, as text for both the page and Markdown."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from earthgpt_jax.evaluation import baselines
from earthgpt_jax.evaluation.benchmarks import Benchmark
from earthgpt_jax.evaluation.confidence import Calibration, are_probabilities, assign_confidences
from earthgpt_jax.evaluation.metrics.calibration import BINS, box_tasks, reliability_bins
from earthgpt_jax.evaluation.metrics.classification import OTHER, confusion_matrix
from earthgpt_jax.evaluation.paired import Difference
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.report.markdown import format_value
from earthgpt_jax.evaluation.scores import HEADLINE, NOT_METRICS, Extra, Scores, baselines_of, score
from earthgpt_jax.evaluation.third_party import scorers
from earthgpt_jax.raster.policy import Stretch
from earthgpt_jax.records import Sensor, Task

GROUPS = ("all", *(sensor.value for sensor in Sensor))
_MAX_CONFUSIONS = 20  # confused pairs of classes that the Markdown report lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text.

    Attributes:
        title: heading above the table.
        head: column names.
        rows: cells; the first column holds names, the others values.
        note: explanation below the table.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def metrics_table(task: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return every metric of a task: over all images with its interval, per sensor, and of the baselines."""
    overall, names = groups.get("all", {}), baselines_of(groups)
    rows = [
        [
            metric,
            format_value(overall.get(metric), overall.get("intervals", {}).get(metric)),
            *(format_value(groups.get(group, {}).get(metric)) for group in GROUPS[1:]),
            *(format_value(overall.get(name, {}).get(metric)) for name in names),
        ]
        for metric in (metric for metric in overall if metric not in NOT_METRICS)
    ]
    rows.append(["n", *(format_value(groups.get(group, {}).get("n")) for group in GROUPS), *[""] * len(names)])
    return Table(title=task, head=[task, *GROUPS, *(f"{name}, all" for name in names)], rows=rows)


def breakdown_table(task: str, groups: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Return the metrics per class, size and source, the headline metric first; None if there are no such groups."""
    parts = {name: cell for name, cell in groups.items() if ": " in name}
    if not parts:
        return None
    headline = HEADLINE[task][0]
    present = dict.fromkeys(name for cell in parts.values() for name in cell)
    metrics = [headline, *(name for name in present if name not in (headline, *NOT_METRICS, "parse_rate"))]
    rows = [
        [group, *(format_value(cell.get(name), cell.get("intervals", {}).get(name) if name == headline else None)
                  for name in metrics), format_value(cell["n"])]
        for group, cell in parts.items()
    ]  # fmt: skip
    note = ""
    if any(group.startswith("size: ") for group in parts):
        note = "Sizes are COCO's: small is below 32² pixels of the original image, medium below 96², large the rest."
    return Table(title=f"{task}, by class, size and source", head=[task, *metrics, "n"], rows=rows, note=note)


def stretch_table(predictions: Sequence[Prediction]) -> Table:
    """Return how the pixels of the images became 8 bits, with the number of images."""
    stretches = {p.record_id: (p.source, p.sensor, p.stretch) for p in predictions}
    images = collections.Counter(
        (source, sensor, Stretch.from_text(text).rule()) for source, sensor, text in stretches.values()
    )
    return Table(
        title="Pixels",
        head=["source", "sensor", "stretch", "images"],
        rows=[[*name, str(count)] for name, count in sorted(images.items())],
        note="Percentiles are those of each scene; each line of the predictions file has their values.",
    )


def published_table(card: Benchmark, model: Scores) -> Table:
    """Return a benchmark's metrics next to the values of EarthGPT's paper, both in percent."""
    overall = model.get(card.task.value, {}).get("all", {})
    published = {item.metric: item for item in card.published}
    rows = []
    for metric in card.metrics:
        value, ends = overall.get(metric), overall.get("intervals", {}).get(metric)
        ours = "" if value is None else f"{100 * value:.2f}" + (
            f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if ends else ""
        )  # fmt: skip
        item = published.get(metric)
        rows.append(
            [metric, ours, f"{item.value:.2f}" if item else "", item.evidence.replace("_", "-") if item else ""]
        )  # fmt: skip
    return Table(
        title=card.title, head=[f"percent ({card.regime.replace('_', '-')})", "these answers", "EarthGPT", "source"],
        rows=rows,
        note="EarthGPT's values were measured on its own split and with its own prompts. An empty cell means that the "
        "value is unknown.",
    )  # fmt: skip


def confidence_table(model: Scores) -> Table | None:
    """Return AP with and without confidences, and calibration errors; None if no task has confidences."""
    metrics = ("boxes_correct", "mean_confidence", "ap50", "ap50_constant", "ece", "ece_if_calibrated",
               "ece_calibrated")  # fmt: skip
    rows = [
        [task, *(format_value(cell.get(name), cell.get("intervals", {}).get(name)) for name in metrics)]
        for task, groups in model.items()
        if "ece" in (cell := groups["all"])
    ]
    if not rows:
        return None
    return Table(
        title="Box confidence",
        head=[
            "task", "boxes correct", "mean confidence", "AP@0.5", "AP@0.5, unranked", "ECE",
            "ECE of a calibrated model", "ECE, calibrated",
        ],
        rows=rows,
        note="The confidence of a box is the geometric mean probability of the tokens of its coordinates, times that "
        "of the tokens of its noun. “AP@0.5” ranks boxes by confidence; “unranked” gives all boxes equal confidence. "
        f"ECE is the expected calibration error over {BINS} bins. It is above 0 for few boxes even if the "
        "confidences are calibrated: “ECE of a calibrated model” is what a calibrated model with these confidences "
        "would show, with its 95 % range. “ECE, calibrated” is measured after isotonic "
        "regression on answers about other images; it is empty if none were given. Calibration changes neither "
        "the ranking nor AP.",
    )  # fmt: skip


def scene_table(tiles: Scores, scenes: Scores) -> Table:
    """Return the detection scores of scenes, whose tiles were merged, next to those of their tiles."""
    metrics = {"ap50": "AP@0.5", "f1": "F1@0.5", "recall": "recall", "precision": "precision"}
    rows = []
    for task, groups in scenes.items():
        for name, cell in (("tiles", tiles[task]["all"]), ("scenes", groups["all"])):
            values = [format_value(cell.get(key), cell.get("intervals", {}).get(key)) for key in metrics]
            rows.append([task, name, *values, str(cell["n"])])
    return Table(
        title="Scenes, merged from tiles",
        head=["task", "images", *metrics.values(), "n"],
        rows=rows,
        note="Boxes of the tiles of a scene are merged before they are scored, so that an object in several tiles "
        "counts once, and one that is cut counts as a whole.",
    )


def reliability_table(
    predictions: Sequence[Prediction], calibrations: Mapping[str, Calibration] | None = None
) -> Table | None:
    """Return the values of the reliability diagrams; None if no task has confidences in [0, 1]."""
    rows = []
    for task, group in box_tasks(assign_confidences(predictions)).items():
        if any(p.confidences for p in group) and are_probabilities(group):
            calibration = (calibrations or {}).get(task)
            variants = [("uncalibrated", None), *([("calibrated", calibration)] if calibration else [])]
            for name, variant in variants:
                rows += [
                    [f"{task}, {name}", str(b.boxes), format_value(b.confidence),
                     format_value(b.correct, (b.low, b.high))]
                    for b in reliability_bins(group, variant)
                ]  # fmt: skip
    if not rows:
        return None
    return Table(
        title="Calibration of confidences",
        head=["task", "boxes", "mean confidence", "fraction correct"],
        rows=rows,
        note=f"One row per bin of confidences, of {BINS} bins of equal width. Confidences are calibrated where the two "
        "values agree.",
    )


def third_party_table(project: str, predictions: Sequence[Prediction], model: Scores) -> Table:
    """Return every figure of another project for the answers, next to our metric, and both for random answers."""
    random = baselines.shuffled(predictions)
    rules = scorers.rules_of(project)
    theirs, theirs_random = scorers.figures(project, predictions), scorers.figures(project, random)
    needs_ap = any(name.startswith("ap") for rule in rules.values() for name in rule.ours.values())
    ours_random = score(random, extras=(Extra.AP,) if needs_ap else ())
    rows, sentences = [], []
    for task, rule in rules.items():
        for name, value in theirs.get(task, {}).items():
            metric = rule.ours.get(name, "")
            rows.append(
                [f"{task}, {name}" + (f" (ours: {metric})" if metric else ""),
                 format_value(model[task]["all"].get(metric)), format_value(value),
                 format_value(ours_random[task]["all"].get(metric)), format_value(theirs_random[task].get(name))]
            )  # fmt: skip
        if task in theirs:
            sentences.append(f"{task}: {rule.description} ({rule.file}).")
    return Table(
        title=f"The same answers by the published rule of {project}",
        head=["task, figure", "our rule", f"{project}'s rule", "random answers, our rule",
              f"random answers, {project}'s rule"],
        rows=rows,
        note=" ".join(sentences) or f"{project} has no rule for the tasks of this file.",
    )  # fmt: skip


def paired_table(differences: Sequence[Difference], *, name: str, other: str) -> Table:
    """Return the differences between two files of answers, with intervals and p-values."""
    rows = [
        [f"{item.task}, {item.metric}", format_value(item.value), format_value(item.other),
         format_value(item.difference, (item.low, item.high)), f"{item.p:.3f}"]
        for item in differences
    ]  # fmt: skip
    return Table(
        title=f"{name} compared with {other}",
        head=["task, metric", name, other, "difference", "p"],
        rows=rows,
        note="95 % intervals and two-sided p-values by paired bootstrap over images. With many metrics, some p-values "
        "are below 0.05 by chance: decide before which one counts.",
    )


def confusions_table(predictions: Sequence[Prediction]) -> Table | None:
    """Return the most frequent confusions of scene classes; None if there are no classification questions."""
    rows = [p for p in predictions if p.task == Task.CLASSIFICATION]
    if not rows:
        return None
    classes, columns, counts = confusion_matrix(rows)
    pairs = [
        (int(counts[i, j]), truth, answer)
        for i, truth in enumerate(classes)
        for j, answer in enumerate(columns)
        if truth != answer and counts[i, j]
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    body = [[f"{truth} → {answer}", str(count)] for count, truth, answer in pairs[:_MAX_CONFUSIONS]]
    return Table(title="Most frequent confusions", head=["true class → answer", "images"], rows=body,
                 note=f"{OTHER}: the answer is not one of the classes.")  # fmt: skip
