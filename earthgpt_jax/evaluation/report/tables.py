"""Tables of the report, as text: for the page and for Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from earthgpt_jax.evaluation import baselines
from earthgpt_jax.evaluation.benchmarks import Benchmark
from earthgpt_jax.evaluation.confidence import Calibration, probabilities, settled
from earthgpt_jax.evaluation.metrics.calibration import bins, by_task
from earthgpt_jax.evaluation.metrics.classification import OTHER, confusion
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.scores import BASELINES, BESIDE, HEADLINE, Extra, Scores, figure, score
from earthgpt_jax.evaluation.third_party import scorers
from earthgpt_jax.records import Sensor, Task

GROUPS = ("all", *(sensor.value for sensor in Sensor))
_CONFUSED = 20  # pairs of classes that the Markdown lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A title, a head and rows of text, the first column a name; `note` stands below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def baselines_of(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name in BASELINES if any(name in cell for cell in groups.values())]


def metrics(task: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every figure of a task: over all with its interval, in each sensor, and the baselines' over all."""
    whole, beside = groups.get("all", {}), baselines_of(groups)
    rows = [
        [
            name,
            figure(whole.get(name), whole.get("intervals", {}).get(name)),
            *(figure(groups.get(group, {}).get(name)) for group in GROUPS[1:]),
            *(figure(whole.get(base, {}).get(name)) for base in beside),
        ]
        for name in (name for name in whole if name not in BESIDE)
    ]
    rows.append(["n", *(figure(groups.get(group, {}).get("n")) for group in GROUPS), *[""] * len(beside)])
    return Table(title=task, head=[task, *GROUPS, *(f"{name}, all" for name in beside)], rows=rows)


def parts(task: str, groups: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """The headline metric, and what it is made of, by class, size and source; None where there are none."""
    chosen = {name: cell for name, cell in groups.items() if ": " in name}
    if not chosen:
        return None
    first = HEADLINE[task][0]
    there = dict.fromkeys(name for cell in chosen.values() for name in cell)
    names = [first, *(name for name in there if name not in (first, *BESIDE, "parse_rate"))]
    rows = [
        [group, *(figure(cell.get(name), cell.get("intervals", {}).get(name) if name == first else None)
                  for name in names), figure(cell["n"])]
        for group, cell in chosen.items()
    ]  # fmt: skip
    note = "Sizes are COCO's: areas below 32² and 96² pixels of the original image." if any(
        group.startswith("size: ") for group in chosen
    ) else ""  # fmt: skip
    return Table(title=f"{task}, by class, size and source", head=[task, *names, "n"], rows=rows, note=note)


def published(card: Benchmark, model: Scores) -> Table:
    """A benchmark's metrics beside the paper's figures, both in percent."""
    whole = model.get(card.task.value, {}).get("all", {})
    known = {item.metric: item for item in card.published}
    rows = []
    for name in card.metrics:
        value, ends = whole.get(name), whole.get("intervals", {}).get(name)
        ours = "" if value is None else f"{100 * value:.2f}" + (
            f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if ends else ""
        )  # fmt: skip
        item = known.get(name)
        rows.append([name, ours, f"{item.value:.2f}" if item else "", item.evidence.replace("_", "-") if item else ""])
    return Table(
        title=card.title, head=[f"percent ({card.regime.replace('_', '-')})", "these answers", "EarthGPT", "source"],
        rows=rows, note="EarthGPT's figures are of its own split and prompts; empty: not known.",
    )  # fmt: skip


def confidences(model: Scores) -> Table | None:
    """What boxes' confidences are worth: AP by them beside AP without them, and calibration; None without any."""
    names = ("boxes_right", "confidence", "ap50", "ap50_constant", "ece", "ece_calibrated")
    rows = [
        [task, *(figure(cell.get(name), cell.get("intervals", {}).get(name)) for name in names)]
        for task, groups in model.items()
        if "ece" in (cell := groups["all"])
    ]
    if not rows:
        return None
    return Table(
        title="Box confidence",
        head=["task", "right", "confidence", "AP@0.5", "AP@0.5, alike", "ECE", "ECE, calibrated"],
        rows=rows,
        note="A box's confidence is the geometric mean probability of the tokens of its coordinates times that of its "
        "noun's. Right: the share of boxes that are; confidence: their mean. AP@0.5 ranks boxes by confidence; alike: "
        "all of them count alike. Calibration keeps the order. ECE is over 15 bins; calibrated on answers about other "
        "images by isotonic regression, empty where none were given.",
    )  # fmt: skip


def reliability(
    predictions: Sequence[Prediction], calibrations: Mapping[str, Calibration] | None = None
) -> Table | None:
    """The figures of the reliability plots."""
    rows = []
    for task, some in by_task(settled(predictions)).items():
        if any(p.confidences for p in some) and probabilities(some):
            kinds = [("as written", None), ("calibrated", (calibrations or {}).get(task))]
            for name, calibration in kinds[: 1 + (kinds[1][1] is not None)]:
                rows += [
                    [f"{task}, {name}", str(b.boxes), figure(b.confidence), figure(b.right, (b.low, b.high))]
                    for b in bins(some, calibration)
                ]
    if not rows:
        return None
    head = ["task", "boxes", "mean confidence", "share right"]
    return Table(
        title="Confidence and truth", head=head, rows=rows, note="A row a bin of confidences, of 15 equal ones."
    )


def by_rule(peer: str, predictions: Sequence[Prediction], model: Scores) -> Table:
    """Our figure and a peer's of the same answers, and both of random answers."""
    random = baselines.shuffled(predictions)
    theirs, of_random = scorers.apply(peer, predictions), scorers.apply(peer, random)
    ranked = any(rule.ours.startswith("ap") for rule in scorers.rules(peer).values())
    ours_of_random = score(random, extras=(Extra.AP,) if ranked else ())
    rows, said = [], []
    for task, rule in scorers.rules(peer).items():
        if task in theirs:
            rows.append(
                [f"{task}, {rule.ours}", figure(model[task]["all"].get(rule.ours)), figure(theirs[task]),
                 figure(ours_of_random[task]["all"].get(rule.ours)), figure(of_random[task])]
            )  # fmt: skip
            said.append(f"{task}: {rule.says} ({rule.file}).")
    head = ["task", "our rule", f"{peer}'s rule", "random, our rule", f"random, {peer}'s rule"]
    note = " ".join(said) or f"{peer} has no rule for the tasks of this file."
    return Table(title=f"The same answers by the published rule of {peer}", head=head, rows=rows, note=note)


def confused(predictions: Sequence[Prediction]) -> Table | None:
    """The most frequent confusions of classes; None without classification."""
    rows = [p for p in predictions if p.task == Task.CLASSIFICATION]
    if not rows:
        return None
    classes, columns, cells = confusion(rows)
    pairs = [
        (int(cells[i, j]), truth, given)
        for i, truth in enumerate(classes)
        for j, given in enumerate(columns)
        if truth != given and cells[i, j]
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    body = [[f"{truth} → {given}", str(count)] for count, truth, given in pairs[:_CONFUSED]]
    return Table(title="Most frequent confusions", head=["true class → answer", "images"], rows=body,
                 note=f"{OTHER}: the answer is none of the classes.")  # fmt: skip
