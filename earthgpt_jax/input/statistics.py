"""Statistics of datasets, from their records: classes, box sizes, text lengths in tokens; as text, JSON and HTML."""

from __future__ import annotations

import array
import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.input.prompts.questions import BoxStyle, evaluation_questions
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import Record, Task

COCO = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}  # smallest area in px^2, as in COCO's evaluation code
_QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
_STEPS = (0, *(step * 2**power for power in range(20) for step in (1, 1.5) if step * 2**power % 1 == 0))
_ASPECTS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 50)
_PLOT = (440, 150)  # width and height in px
_BARS = 30  # most classes in a plot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """The distribution of a quantity.

    Attributes:
        quantiles: Name -> value, including the mean; empty if there are no values.
        edges, counts: Histogram: `counts[i]` values have `edges[i] <= value < edges[i + 1]`; the last bin is open.
    """

    name: str
    unit: str
    count: int
    quantiles: Mapping[str, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Statistics of one dataset, or of several together.

    Attributes:
        counts: total, sensor, task, label (of scenes) or object (labels) -> name -> split -> count.
        coco: small, medium, large -> number of boxes.
        distributions: Side of a box (square root of its area), aspect ratio of a box, objects per image of a detection
            dataset, longer side of an image.
        texts: Task, with its question type if it has one -> (tokens of the question, tokens of the answer).
        native: Unit (image, object, ...) -> native, kept, quarantined and dropped; empty for several datasets.
        dropped: The card's reason -> count.
    """

    name: str
    splits: tuple[str, ...]
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    coco: Mapping[str, int]
    distributions: tuple[Distribution, ...]
    texts: Mapping[str, tuple[Distribution, Distribution]]
    native: Mapping[str, Mapping[str, int]]
    dropped: Mapping[str, int]


class _Values:
    """The values measured so far, 4 bytes each; records are not kept."""

    def __init__(self) -> None:
        self.sides, self.aspects, self.objects, self.images = (array.array("f") for _ in range(4))
        self.coco: collections.Counter[str] = collections.Counter()
        self.texts: dict[str, tuple[array.array, array.array]] = {}

    def add(self, record: Record, texts: Sequence[tuple[str, int, Sequence[int]]]) -> None:
        if {Task.HBB, Task.OBB} & set(record.tasks):
            self.objects.append(len(record.objects))
        if record.image:
            self.images.append(max(record.width, record.height))
        if record.objects:
            areas, aspects = _extents(np.stack([item.polygon for item in record.objects]))
            self.sides.extend(np.sqrt(areas).tolist())
            self.aspects.extend(aspects.tolist())
            sizes = np.searchsorted(list(COCO.values()), areas, side="right") - 1
            self.coco.update(np.array(list(COCO))[sizes].tolist())
        for task, question, answers in texts:
            question_tokens, answer_tokens = self.texts.setdefault(task, (array.array("f"), array.array("f")))
            question_tokens.append(question)
            answer_tokens.extend(answers)

    def distributions(self) -> tuple[Distribution, ...]:
        return (
            _distribution("side of a box", "px, square root of its area", self.sides),
            _distribution("aspect ratio of a box", "longer side / shorter side", self.aspects, edges=_ASPECTS),
            _distribution("objects per image", "", self.objects),
            _distribution("longer side of an image", "px", self.images),
        )

    def text_lengths(self) -> dict[str, tuple[Distribution, Distribution]]:
        return {
            task: (_distribution("question", "tokens", question), _distribution("answer", "tokens", answer))
            for task, (question, answer) in sorted(self.texts.items())
        }


def compute_statistics(directories: Sequence[Path], *, tokenizer: Tokenizer) -> list[DatasetStatistics]:
    """Return the statistics of each dataset directory and, for several, of all together.

    Texts are the questions that evaluation asks, with default templates, and their answers. Each reference of a caption
    counts as an answer.
    """
    results, everything = [], _Values()
    manifests = [read_manifest(directory) for directory in directories]
    for directory, values in zip(directories, manifests, strict=True):
        measured = _Values()
        for split in values["counts"]:
            source = store.RecordSource(directory, split)
            for record in Bar(source, desc=f"{values['name']}/{split}", unit="record", leave=False):
                texts = list(_texts(record, tokenizer))
                measured.add(record, texts)
                everything.add(record, texts)
        results.append(_statistics(values["name"], [values], measured))
    if len(results) > 1:
        results.append(_statistics("all together", manifests, everything))
    return results


def _texts(record: Record, tokenizer: Tokenizer) -> Iterator[tuple[str, int, list[int]]]:
    for question in evaluation_questions(record, box_style=BoxStyle()):
        task = f"{question.task}: {question.question_type}" if question.question_type else question.task
        yield task, len(tokenizer.encode(question.text)), [len(tokenizer.encode(t)) for t in question.references]


def _statistics(name: str, manifests: Sequence[Mapping[str, Any]], measured: _Values) -> DatasetStatistics:
    counts: dict[str, dict[str, collections.Counter]] = {k: {} for k in ("total", "sensor", "task", "label", "object")}
    for values in manifests:
        for split, split_counts in values["counts"].items():
            for group, totals in counts.items():
                for name_in_group, count in split_counts[group].items():
                    totals.setdefault(name_in_group, collections.Counter())[split] += count
    manifest = manifests[0] if len(manifests) == 1 else {}
    return DatasetStatistics(
        name=name,
        splits=tuple(dict.fromkeys(split for values in manifests for split in values["counts"])),
        counts={group: {key: dict(c) for key, c in sorted(totals.items())} for group, totals in counts.items()},
        coco={size: measured.coco[size] for size in COCO},
        distributions=measured.distributions(),
        texts=measured.text_lengths(),
        native={unit: dict(row) for unit, row in manifest.get("native", {}).items() if row["native"]},
        dropped=dict(manifest.get("dropped", {})),
    )


def _extents(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas f64[n] and aspect ratios f64[n], at least 1, of oriented boxes f32[n, 8]."""
    corners = polygons.reshape(-1, 4, 2).astype(np.float64)
    following = np.roll(corners, -1, axis=1)
    cross = corners[..., 0] * following[..., 1] - corners[..., 1] * following[..., 0]
    edges = np.linalg.norm(following - corners, axis=2)
    sides = np.sort((edges[:, :2] + edges[:, 2:]) / 2, axis=1)
    return np.abs(cross.sum(axis=1)) / 2, sides[:, 1] / np.maximum(sides[:, 0], 1e-6)


def _distribution(name: str, unit: str, values: array.array, *, edges: Sequence[float] = _STEPS) -> Distribution:
    numbers = np.array(values, np.float64)
    if not len(numbers):
        return Distribution(name=name, unit=unit, count=0, quantiles={}, edges=(), counts=())
    quantiles = dict(zip(_QUANTILES, np.quantile(numbers, list(_QUANTILES.values())).tolist(), strict=True))
    edges = [*edges, np.inf]
    counts, _ = np.histogram(numbers, edges)
    first, last = np.flatnonzero(counts)[[0, -1]].tolist()
    return Distribution(
        name=name,
        unit=unit,
        count=len(numbers),
        quantiles={**quantiles, "mean": float(numbers.mean())},
        edges=tuple(float(edge) for edge in edges[first : last + 1]),
        counts=tuple(counts[first : last + 1].tolist()),
    )


_Row = tuple[str, ...]


def tables(statistics: DatasetStatistics) -> Iterator[tuple[str, _Row, list[_Row]]]:
    """Yield `(title, column names, rows)` of all tables, as text."""
    for group, title in (("total", "records"), ("sensor", "sensors"), ("task", "tasks")):
        yield title, ("", *statistics.splits, "all"), _by_split(statistics, group)
    for group, title in (("label", "scene classes"), ("object", "object classes")):
        if statistics.counts[group]:
            rows = sorted(_by_split(statistics, group), key=lambda row: -int(row[-1]))
            yield title, ("", *statistics.splits, "all"), rows
    total = sum(statistics.coco.values())
    if total:
        rows = [(size, str(count), f"{100 * count / total:.1f} %") for size, count in statistics.coco.items()]
        yield "boxes by COCO size (below 32 x 32 px, below 96 x 96 px, larger)", ("", "boxes", "share"), rows
    rows = [(s.name, *(_figure(v) for v in s.quantiles.values())) for s in statistics.distributions if s.count]
    yield "sizes (px of the original image)", ("", *_QUANTILES, "mean"), rows
    if statistics.texts:
        short = ("median", "95 %", "max")
        columns = ("", "questions", *(f"question {q}" for q in short), "answers", *(f"answer {q}" for q in short))
        rows = [
            (
                task,
                *(word for part in parts for word in (str(part.count), *(_figure(part.quantiles[q]) for q in short))),
            )
            for task, parts in statistics.texts.items()
        ]
        yield "texts (tokens)", columns, rows
    if statistics.native:
        names = ("native", "kept", "quarantined", "dropped")
        yield (
            "native files",
            ("", *names),
            [(f"{unit}s", *(str(row[name]) for name in names)) for unit, row in statistics.native.items()],
        )
    if statistics.dropped:
        yield "dropped", ("", "count"), [(reason, str(count)) for reason, count in statistics.dropped.items()]


def _by_split(statistics: DatasetStatistics, group: str) -> list[_Row]:
    return [
        (name, *(str(row.get(split, 0)) for split in statistics.splits), str(sum(row.values())))
        for name, row in statistics.counts[group].items()
    ]


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def format_statistics(statistics: DatasetStatistics) -> str:
    """Return all tables as text."""
    lines = [statistics.name]
    for title, columns, rows in tables(statistics):
        lines += ["", f"  {title}", *align_columns([columns, *rows], indent="    ")]
    return "\n".join(lines)


def render_page(datasets: Sequence[DatasetStatistics], *, title: str, tokenizer: str, made_by: str = "") -> str:
    """Render a self-contained HTML page of all tables and plots, without JavaScript.

    Args:
        tokenizer: Name of the tokenizer that counted the tokens, to show on the page.
        made_by: What made the page, to show on it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.input", "pages"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    sections = [(each.name, list(_plots(each)), list(tables(each))) for each in datasets]
    return environment.get_template("stats.html").render(
        title=title, tokenizer=tokenizer, sections=sections, made_by=made_by
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bar:
    """A bar of a plot in the plot's coordinates, with y pointing down."""

    x: float
    y: float
    width: float
    height: float
    title: str


def _plots(statistics: DatasetStatistics) -> Iterator[dict[str, Any]]:
    for group, title in (("label", "scene classes"), ("object", "object classes")):
        rows = sorted(((sum(row.values()), name) for name, row in statistics.counts[group].items()), reverse=True)
        if rows:
            more = f", the first {_BARS} of {len(rows)}" if len(rows) > _BARS else ""
            names, counts = [name for _, name in rows[:_BARS]], [count for count, _ in rows[:_BARS]]
            yield _plot(f"{title}{more}", names, counts, ends=(names[0], names[-1] if len(names) > 1 else ""))
    answers = [dataclasses.replace(parts[1], name=f"answer, {task}") for task, parts in statistics.texts.items()]
    for distribution in (*statistics.distributions, *answers):
        if distribution.count and len(distribution.counts) > 1:
            names = [f"from {_figure(edge)}" for edge in distribution.edges]
            unit = f" ({distribution.unit})" if distribution.unit else ""
            ends = (_figure(distribution.edges[0]), f"{_figure(distribution.edges[-1])} and more")
            yield _plot(f"{distribution.name}{unit}", names, distribution.counts, ends=ends)


def _plot(title: str, names: Sequence[str], counts: Sequence[int], *, ends: tuple[str, str]) -> dict[str, Any]:
    width, height = _PLOT
    step, most = width / len(counts), max(counts)
    bars = [
        _Bar(
            x=place * step, y=height * (1 - count / most), width=max(step - 1.5, 1), height=height * count / most,
            title=f"{name}: {count}",
        )
        for place, (name, count) in enumerate(zip(names, counts, strict=True))
    ]  # fmt: skip
    return {"title": title, "bars": bars, "most": most, "ends": ends, "width": width, "height": height}
